"""Activations moved next to the operator that can compute them.

    Relu(Transpose(Conv(x)))  ->  Transpose(Relu(Conv(x)))      and so for Clip, Reshape, Squeeze, Unsqueeze

An activation takes each element by itself, so it may stand before or after whatever only moves elements.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from tapeout.sdk import DOMAIN, Builder, NodeRule, Rewrite
from tapeout.sdk import graph as g

_MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze")
_FUSING = ("ConvNHWC", "ConvNDHWC", "ConvTransposeNHWC", "FullyConnected", "MaxPoolNHWC", "AveragePoolNHWC")


class ActivationFirst(NodeRule):
    """Relu(move(op(x))) -> move(Relu(op(x)))"""

    ops: ClassVar = ("Relu", "Clip")

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | str | None:
        value, *bounds = node.inputs
        if any(b is not None and g.scalar(b) is None for b in bounds):
            return None
        moves: list[ir.Node] = []
        while value is not None and (move := g.producer(value, *_MOVES)) is not None:
            reader = moves[-1] if moves else node
            if g.only_use(value) is not reader:
                break
            moves.append(move)
            value = move.inputs[0]
        made = None if value is None else value.producer()
        if not moves or value is None or made is None or made.domain != DOMAIN or made.op_type not in _FUSING:
            return None
        if g.only_use(value) is not moves[-1]:
            return f"'{value.name}' is read elsewhere too"
        op.covers((node,))
        (result,) = op.node(node.op_type, [value, *bounds], {})
        name = node.outputs[0].name
        perm = g.attribute(moves[0], "perm") if len(moves) == 1 else None
        if perm is not None and name and "~" not in name:
            back = sorted(range(len(perm)), key=lambda i: perm[i])
            result.metadata_props["tapeout.layout"] = f"{name}:{','.join(map(str, back))}"
        for move in reversed(moves):
            op.covers((move,))
            kept = {k: g.attribute(move, k) for k in move.attributes}
            (result,) = op.node(move.op_type, [result, *move.inputs[1:]], kept)
        return result


FusibleActivations = Rewrite("tflite-fusible-activations", (ActivationFirst(),))
