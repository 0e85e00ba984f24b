"""Windows over one or three axes, as windows over two.

Conv1d(x[N,C,W])          -> Squeeze(Conv(Unsqueeze(x)[N,C,1,W])), and so ConvTranspose, MaxPool, AveragePool
Pool3d(x[N,C,D,H,W])      -> pool over H and W of x[N,C*D,H,W], then over D of [N,C,D,H*W]
                             maxima and averages are separable
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.rewriting import Builder, NodeRule, Rewrite
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


class PoolOverThree(NodeRule):
    """Pool(x[N,C,D,H,W]) -> Pool over H and W, then over D"""

    ops: ClassVar = ("MaxPool", "AveragePool")

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | str | None:
        x = node.inputs[0]
        if g.rank(x) != 5:
            return None
        if len(node.outputs) > 1 and node.outputs[1].name:
            return "the indices of the maxima are asked for"
        shape, out = g.static_dims(x), g.static_dims(node.outputs[0])
        if shape is None or out is None:
            return "a size is not known"
        n, c, d, *_ = shape
        plane, depth = self._parts(node)
        flat = self._reshape(op, x, (n, c * d, *shape[3:]))
        (pooled,) = op.node(node.op_type, [flat], plane)
        flat = self._reshape(op, pooled, (n, c, d, out[3] * out[4]))
        (pooled,) = op.node(node.op_type, [flat], depth)
        return self._reshape(op, pooled, out)

    def _reshape(self, op: Builder, x: ir.Value | None, shape: tuple[int, ...]) -> ir.Value:
        made: ir.Value = op.Reshape(x, op.constant(np.array(shape, np.int64), hint="shape"))
        return made

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
