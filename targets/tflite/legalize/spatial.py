"""Windows over one or three axes, as windows over two.

Conv1d(x[N,C,W])          -> Squeeze(Conv(Unsqueeze(x)[N,C,1,W])), and so ConvTranspose, MaxPool, AveragePool
Pool3d(x[N,C,D,H,W])      -> pool over H and W of x[N,C*D,H,W], then over D of [N,C,D,H*W]
                             maxima and averages are separable
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from tapeout.sdk import Builder, NodeRule, Rewrite
from tapeout.sdk import graph as g
from tapeout.targets.tflite.legalize.windows import attributes

_NEUTRAL = {"strides": 1, "dilations": 1, "kernel_shape": 1, "output_padding": 0}


class OneAxis(NodeRule):
    """Op(x[N,C,W]) -> Squeeze(Op(Unsqueeze(x)))"""

    ops: ClassVar = ("Conv", "ConvTranspose", "MaxPool", "AveragePool")

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | str | None:
        x, *weights = node.inputs
        if g.rank(x) != 3:
            return None
        if len(node.outputs) > 1 and node.outputs[1].name:
            return "the indices of the maxima are asked for"
        if weights and weights[0] is not None:
            weights[0] = widened(op, weights[0])
        changed: dict[str, object] = {}
        for name, neutral in _NEUTRAL.items():
            stated = g.attribute(node, name)
            changed[name] = None if not stated else (neutral, *stated)
        pads, shape = g.attribute(node, "pads"), g.attribute(node, "output_shape")
        changed["pads"] = None if not pads else (0, pads[0], 0, pads[1])
        changed["output_shape"] = None if not shape else (1, *shape)
        axes = op.constant(np.array([2], np.int64), hint="axes")
        (made,) = op.node(
            node.op_type,
            [op.Unsqueeze(x, axes), *weights],
            attributes(node, **changed),
            hint=node.op_type.lower(),
        )
        squeezed: ir.Value = op.Squeeze(made, axes)
        return squeezed


def widened(op: Builder, weight: ir.Value) -> ir.Value:
    """A weight [O,I,K] as [O,I,1,K]."""
    shape, tensor = g.static_dims(weight), weight.const_value
    if shape is None or tensor is None or not g.is_constant(weight):
        made: ir.Value = op.Unsqueeze(weight, op.constant(np.array([2], np.int64), hint="axes"))
        return made
    wide = (*shape[:2], 1, *shape[2:])
    return g.add_lazy_constant(
        op.graph, wide, tensor.dtype, lambda: tensor.numpy().reshape(wide), weight.name or "weight"
    )


Size = int | ir.Value  # a number, or a vector of one that is computed


def sizes(op: Builder, x: ir.Value) -> list[Size]:
    """The sizes of `x`, computed where they are not known."""
    dims = g.dims(x)
    assert dims is not None
    if all(isinstance(d, int) for d in dims):
        return [int(d) for d in dims]
    shape = op.Shape(x)
    places = [np.array([i], np.int64) for i in range(len(dims) + 1)]
    return [
        d if isinstance(d, int) else op.Slice(shape, places[i], places[i + 1]) for i, d in enumerate(dims)
    ]


def product(op: Builder, a: Size, b: Size) -> Size:
    """a * b"""
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    made: ir.Value = op.Mul(*(np.array([v], np.int64) if isinstance(v, int) else v for v in (a, b)))
    return made


def reshaped(op: Builder, x: ir.Value, shape: Sequence[Size]) -> ir.Value:
    """`x` in `shape`; a single size that is computed follows from the others."""
    if sum(not isinstance(s, int) for s in shape) <= 1:
        numbers = [s if isinstance(s, int) else -1 for s in shape]
        wanted = op.constant(np.array(numbers, np.int64), hint="shape")
    else:
        wanted = op.Concat(*(np.array([s], np.int64) if isinstance(s, int) else s for s in shape), axis=0)
    made: ir.Value = op.Reshape(x, wanted)
    return made


class PoolOverThree(NodeRule):
    """Pool(x[N,C,D,H,W]) -> Pool over H and W, then over D"""

    ops: ClassVar = ("MaxPool", "AveragePool")

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | str | None:
        x = node.inputs[0]
        if g.rank(x) != 5:
            return None
        if len(node.outputs) > 1 and node.outputs[1].name:
            return "the indices of the maxima are asked for"
        assert x is not None
        plane, depth = self._parts(node)
        n, c, d, h, w = sizes(op, x)
        (pooled,) = op.node(node.op_type, [reshaped(op, x, (n, product(op, c, d), h, w))], plane)
        h, w = sizes(op, pooled)[2:]
        flat = reshaped(op, pooled, (n, c, d, product(op, h, w)))
        (pooled,) = op.node(node.op_type, [flat], depth)
        return reshaped(op, pooled, (n, c, sizes(op, pooled)[2], h, w))

    def _parts(self, node: ir.Node) -> tuple[dict[str, object], dict[str, object]]:
        plane: dict[str, object] = {}
        depth: dict[str, object] = {}
        for name in ("kernel_shape", "strides", "dilations"):
            stated = g.attribute(node, name)
            if stated:
                plane[name], depth[name] = stated[1:], (stated[0], 1)
        pads = g.attribute(node, "pads")
        if pads:
            plane["pads"], depth["pads"] = (*pads[1:3], *pads[4:]), (pads[0], 0, pads[3], 0)
        return attributes(node, **plane), attributes(node, **depth)


OverTwoAxes = Rewrite("tflite-over-two-axes", (OneAxis(), PoolOverThree()))
