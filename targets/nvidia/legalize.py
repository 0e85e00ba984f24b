"""What kernels take in another form only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import onnx_ir as ir

from tapeout.sdk import Builder, NodeRule, Rewrite
from tapeout.sdk import graph as g

# Attributes over the spatial axes, and what they are along an axis of size 1.
PLAIN = {"kernel_shape": 1, "strides": 1, "dilations": 1}


class OverTwoAxes(NodeRule):
    """Conv | MaxPool | AveragePool (x [N, C, L]) -> Squeeze(the same over [N, C, 1, L])"""

    ops: ClassVar[Sequence[str]] = ("Conv", "MaxPool", "AveragePool")

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        if g.rank(node.inputs[0]) != 3 or len(node.outputs) > 1:
            return None
        x, *rest = node.inputs
        values = [op.Unsqueeze(x, [2])]
        if rest:
            values += [op.Unsqueeze(rest[0], [2]), *rest[1:]]
        attributes: dict[str, Any] = {n: a.value for n, a in node.attributes.items()}
        for name, plain in PLAIN.items():
            if name in attributes:
                attributes[name] = [plain, *attributes[name]]
        if "pads" in attributes:
            begin, end = attributes["pads"]
            attributes["pads"] = [0, begin, 0, end]
        (made,) = op.node(node.op_type, values, attributes)
        return op.Squeeze(made, [2])


OVER_TWO_AXES = Rewrite("over-two-axes", (OverTwoAxes(),))
