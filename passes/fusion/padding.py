"""Explicit padding, as the padding of the window operator behind it.

    Conv(Pad(x, p, 0), W)                       -> Conv(x, W, pads + p)
    AveragePool(Pad(x, p, 0))                   -> AveragePool(x, pads = p, count_include_pad=1)
    MaxPool(Pad(x, p, c))                       -> MaxPool(x, pads + p), c no larger than any x: -inf, or 0
                                                   after Relu, Sigmoid, Abs, Exp or a Clip from 0 up

Only spatial axes, nothing cropped, no automatic padding. MaxPool's own padding is minus infinity, so that
every window must reach past the padding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.rewriting import Builder, NodeRule, Rewrite


class PadIntoWindow(NodeRule):
    """Conv(Pad(x, p, 0), W) -> Conv(x, W, pads + p); AveragePool and MaxPool where that is the same"""

    ops = ("Conv", "AveragePool", "MaxPool")

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        pad = g.producer(node.inputs[0], "Pad")
        if pad is None or pad.inputs[0] is None:
            return None
        found = spatial_pads(pad)
        if isinstance(found, str):
            return found
        rank = len(found) // 2
        own = list(g.attribute(node, "pads", (0,) * (2 * rank)))
        if g.only_use(pad.outputs[0]) is not node:
            return f"'{pad.outputs[0].name}' is read elsewhere"
        if g.attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            return f"{node.op_type} pads by itself"
        why = getattr(self, node.op_type.lower())(node, pad, found, own)
        if why is not None:
            return str(why)
        attributes = {k: v.value for k, v in node.attributes.items() if k != "auto_pad"}
        attributes["pads"] = [a + b for a, b in zip(own, found, strict=True)]
        if node.op_type == "AveragePool":
            attributes["count_include_pad"] = 1
        op.covers([pad, node])
        return op.node(node.op_type, [pad.inputs[0], *node.inputs[1:]], attributes)[0]

    def conv(self, node: ir.Node, pad: ir.Node, pads: list[int], own: list[int]) -> str | None:
        return None if fill(pad) == 0 else f"the padding holds {fill(pad)}, not 0"

    def averagepool(self, node: ir.Node, pad: ir.Node, pads: list[int], own: list[int]) -> str | None:
        if fill(pad) != 0:
            return f"the padding holds {fill(pad)}, not 0"
        if any(own) and not g.attribute(node, "count_include_pad", 0):
            return "the pool has padding of its own that it does not count"
        return _windows(node, [a + b for a, b in zip(pads, own, strict=True)])

    def maxpool(self, node: ir.Node, pad: ir.Node, pads: list[int], own: list[int]) -> str | None:
        if len(node.outputs) > 1 and node.outputs[1].uses():
            return "the indices of the maxima are read"
        value = fill(pad)
        if value is None or not (np.isneginf(value) or _least(pad.inputs[0]) >= value):
            return f"the padding holds {value}, which may be a maximum"
        return _windows(node, [a + b for a, b in zip(pads, own, strict=True)])


def _windows(node: ir.Node, pads: list[int]) -> str | None:
    kernel = g.attribute(node, "kernel_shape")
    if g.attribute(node, "ceil_mode", 0):
        return "the pool rounds its size up"
    if any(d != 1 for d in g.attribute(node, "dilations", ())):
        return "the pool is dilated"
    if any(p >= k for p, k in zip(pads, (*kernel, *kernel), strict=True)):
        return "a window would lie in the padding alone"
    return None


def spatial_pads(pad: ir.Node) -> list[int] | str:
    """ONNX `pads` over the spatial axes of a constant Pad that adds nothing elsewhere, or the reason."""
    rank, pads = g.rank(pad.inputs[0]), g.constant(pad.inputs[1], 64)
    axes = g.constant(pad.inputs[3], 64) if len(pad.inputs) > 3 else None
    if rank is None or rank < 3:
        return "the rank is not known"
    if g.attribute(pad, "mode", "constant") != "constant":
        return f"the padding is of mode '{g.attribute(pad, 'mode')}'"
    if pads is None or (len(pad.inputs) > 3 and pad.inputs[3] is not None and axes is None):
        return "the pads are computed"
    order = [int(a) % rank for a in axes] if axes is not None else list(range(rank))
    begin, end = [0] * rank, [0] * rank
    for i, axis in enumerate(order):
        begin[axis], end[axis] = int(pads[i]), int(pads[len(order) + i])
    if any(p < 0 for p in (*begin, *end)):
        return "the padding crops"
    if any((*begin[:2], *end[:2])):
        return "the padding is not of the spatial axes only"
    return [*begin[2:], *end[2:]]


def fill(pad: ir.Node) -> float | None:
    """The number that a constant Pad fills in, None where it is computed."""
    if len(pad.inputs) < 3 or pad.inputs[2] is None:
        return 0.0
    value = g.scalar(pad.inputs[2])
    return None if value is None else float(value)


def _least(value: ir.Value | None) -> float:
    """A number that no element of `value` is below; minus infinity where nothing is known."""
    node = None if value is None else value.producer()
    if node is None or node.domain != "":
        return -np.inf
    if node.op_type in ("Relu", "Sigmoid", "Softplus", "Abs", "Exp", "HardSigmoid", "Sqrt"):
        return 0.0
    if node.op_type == "Clip" and len(node.inputs) > 1:
        low = g.scalar(node.inputs[1])
        return -np.inf if low is None else float(low)
    if node.op_type in ("MaxPool", "Reshape", "Transpose"):
        return _least(node.inputs[0])
    return -np.inf


PADDING = Rewrite("padding", (PadIntoWindow(),))
