"""Normalizations in terms of means, products and sums.

LayerNormalization(x, g, b)       -> d r g + b,  d = x - mean(x),  r = 1 / sqrt(mean(d^2) + eps)
InstanceNormalization(x, g, b)    -> the same over the axes after the channels
GroupNormalization(x, g, b, G)    -> the same over [N, G, rest], reshaped back before g and b
RMSNormalization(x, g)            -> x / sqrt(mean(x^2) + eps) g
BatchNormalization(x, g, b, m, v) -> x s + t,  s = g / sqrt(v + eps),  t = b - m s
LpNormalization(x)                -> x / |x|_p, 0 where the length is 0
MeanVarianceNormalization(x)      -> d / (sqrt(mean(d^2)) + 1e-9)
GlobalAveragePool, GlobalMaxPool  -> ReduceMean, ReduceMax over the axes after the channels
GlobalLpPool(x), LpPool(x)        -> sums of |x|^p over the axes, or n * AveragePool(|x|^p), to the power 1/p
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.rewriting import Builder, NodeRule

LIMIT = 1 << 20


def centred(op: Builder, x: Any, axes: Sequence[int], epsilon: float) -> tuple[Any, Any, Any]:
    """((x - mean) * r, mean, r), r = 1 / sqrt(mean((x - mean)^2) + epsilon), over `axes`, which are kept."""
    where = np.asarray(axes, np.int64)
    mean = op.ReduceMean(x, where, keepdims=1)
    d = op.Sub(x, mean)
    variance = op.ReduceMean(op.Mul(d, d), where, keepdims=1)
    r = op.Reciprocal(op.Sqrt(op.Add(variance, epsilon)))
    return op.Mul(d, r), mean, r


def per_channel(op: Builder, v: ir.Value | None, rank: int) -> Any:
    """A vector over channels, shaped to broadcast into [N, C, ...]."""
    shape = np.array([-1, *[1] * (rank - 2)], np.int64)
    tensor = None if v is None else v.const_value
    if v is None or tensor is None or not g.is_constant(v) or tensor.size > LIMIT:
        return op.Reshape(v, shape)
    return op.constant(tensor.numpy().reshape(shape), hint=v.name or "scale")


class LayerNormalization(NodeRule):
    """LayerNormalization(x, g, b) -> d r g + b"""

    ops = ("LayerNormalization",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        x, rank = node.inputs[0], g.rank(node.inputs[0])
        if rank is None:
            return "the rank is not known"
        axes = list(range(g.attribute(node, "axis", -1) % rank, rank))
        y, mean, r = centred(op, x, axes, g.attribute(node, "epsilon", 1e-5))
        y = op.Mul(y, node.inputs[1])
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            y = op.Add(y, node.inputs[2])
        return [y, mean, r][: len(node.outputs)]


class RMSNormalization(NodeRule):
    """RMSNormalization(x, g) -> x / sqrt(mean(x^2) + eps) g"""

    ops = ("RMSNormalization",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        x, rank = node.inputs[0], g.rank(node.inputs[0])
        if rank is None:
            return "the rank is not known"
        axes = np.arange(g.attribute(node, "axis", -1) % rank, rank)
        mean = op.ReduceMean(op.Mul(x, x), axes.astype(np.int64), keepdims=1)
        r = op.Reciprocal(op.Sqrt(op.Add(mean, g.attribute(node, "epsilon", 1e-5))))
        return op.Mul(op.Mul(x, r), node.inputs[1])


class InstanceNormalization(NodeRule):
    """InstanceNormalization(x, g, b) -> d r g + b over the axes after the channels"""

    ops = ("InstanceNormalization",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        x, rank = node.inputs[0], g.rank(node.inputs[0])
        if rank is None:
            return "the rank is not known"
        y, _, _ = centred(op, x, range(2, rank), g.attribute(node, "epsilon", 1e-5))
        return op.Add(op.Mul(y, per_channel(op, node.inputs[1], rank)), per_channel(op, node.inputs[2], rank))


class GroupNormalization(NodeRule):
    """GroupNormalization(x, g, b, G) -> d r over [N, G, rest], reshaped back, times g plus b"""

    ops = ("GroupNormalization",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        x, shape = node.inputs[0], g.dims(node.inputs[0])
        groups, epsilon = g.attribute(node, "num_groups"), g.attribute(node, "epsilon", 1e-5)
        if x is None or shape is None or len(shape) < 2 or not isinstance(shape[1], int):
            return "the number of channels is not known"
        rank = len(shape)
        if groups == shape[1]:
            y, _, _ = centred(op, x, range(2, rank), epsilon)
        elif groups == 1:
            y, _, _ = centred(op, x, range(1, rank), epsilon)
        else:
            split = op.Reshape(x, np.array([0, groups, shape[1] // groups, *[0] * (rank - 2)], np.int64)
                               if rank == 3 else np.array([0, groups, -1], np.int64))  # fmt: skip
            count = g.rank(split)
            y, _, _ = centred(op, split, range(2, 4 if count == 4 else 3), epsilon)
            back = _shape(op, x, shape)
            y = op.Reshape(y, back)
        return op.Add(op.Mul(y, per_channel(op, node.inputs[1], rank)), per_channel(op, node.inputs[2], rank))


def _shape(op: Builder, x: ir.Value, shape: g.Shape) -> Any:
    """A shape to reshape back to `shape`: a constant where at most one dimension is no number."""
    if sum(isinstance(d, str) for d in shape) <= 1:
        return np.array([d if isinstance(d, int) else -1 for d in shape], np.int64)
    return op.Shape(x)


class BatchNormalization(NodeRule):
    """BatchNormalization(x, g, b, m, v) -> x s + t, s = g / sqrt(v + eps), t = b - m s"""

    ops = ("BatchNormalization",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        x, rank = node.inputs[0], g.rank(node.inputs[0])
        if rank is None or x is None or x.dtype is None:
            return "the rank is not known"
        if g.attribute(node, "training_mode", 0):
            return "it trains"
        epsilon = g.attribute(node, "epsilon", 1e-5)
        arrays = [g.constant(v, LIMIT) for v in node.inputs[1:5]]
        if all(a is not None for a in arrays):
            gamma, beta, mean, variance = (a.astype(np.float64) for a in arrays if a is not None)
            s = gamma / np.sqrt(variance + epsilon)
            t = beta - mean * s
            shape = (-1, *[1] * max(rank - 2, 0))
            scale = op.constant(s.reshape(shape), x.dtype, hint="scale")
            return op.Add(op.Mul(x, scale), op.constant(t.reshape(shape), x.dtype, hint="shift"))
        factor = op.Div(node.inputs[1], op.Sqrt(op.Add(node.inputs[4], epsilon)))
        shift = op.Sub(node.inputs[2], op.Mul(node.inputs[3], factor))
        rank = max(rank, 2)
        return op.Add(op.Mul(x, per_channel(op, factor, rank)), per_channel(op, shift, rank))


class LpNormalization(NodeRule):
    """LpNormalization(x) -> x / |x|_p, 0 where the length is 0"""

    ops = ("LpNormalization",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        x, axis, p = node.inputs[0], g.attribute(node, "axis", -1), g.attribute(node, "p", 2)
        if x is None or x.dtype is None:
            return "the type is not known"
        axes = np.array([axis], np.int64)
        if p == 1:
            length = op.ReduceSum(op.Abs(x), axes, keepdims=1)
        else:
            length = op.Sqrt(op.ReduceSum(op.Mul(x, x), axes, keepdims=1))
        one = op.constant(1, x.dtype)
        return op.Div(x, op.Where(op.Equal(length, 0.0), one, length))


class MeanVarianceNormalization(NodeRule):
    """MeanVarianceNormalization(x) -> d / (sqrt(mean(d^2)) + 1e-9)"""

    ops = ("MeanVarianceNormalization",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        x = node.inputs[0]
        axes = np.asarray(g.attribute(node, "axes", (0, 2, 3)), np.int64)
        d = op.Sub(x, op.ReduceMean(x, axes, keepdims=1))
        deviation = op.Sqrt(op.ReduceMean(op.Mul(d, d), axes, keepdims=1))
        return op.Div(d, op.Add(deviation, 1e-9))


class GlobalPool(NodeRule):
    """GlobalAveragePool, GlobalMaxPool -> ReduceMean, ReduceMax over the axes after the channels"""

    ops = ("GlobalAveragePool", "GlobalMaxPool")

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        rank = g.rank(node.inputs[0])
        if rank is None or rank < 3:
            return "the rank is not known"
        axes = np.arange(2, rank).astype(np.int64)
        if node.op_type == "GlobalAveragePool":
            return op.ReduceMean(node.inputs[0], axes, keepdims=1)
        return op.ReduceMax(node.inputs[0], axes, keepdims=1)


def _power(op: Builder, x: Any, p: int) -> Any:
    """|x|^p"""
    return op.Abs(x) if p == 1 else op.Mul(x, x) if p == 2 else op.Pow(op.Abs(x), float(p))


def _root(op: Builder, x: Any, p: int) -> Any:
    return x if p == 1 else op.Sqrt(x) if p == 2 else op.Pow(x, 1.0 / p)


class LpPool(NodeRule):
    """LpPool(x) -> (n AveragePool(|x|^p))^(1/p), n the window's area; GlobalLpPool: sums over the axes"""

    ops = ("LpPool", "GlobalLpPool")

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        x, rank, p = node.inputs[0], g.rank(node.inputs[0]), g.attribute(node, "p", 2)
        if rank is None:
            return "the rank is not known"
        if node.op_type == "GlobalLpPool":
            total = op.ReduceSum(_power(op, x, p), np.arange(2, rank).astype(np.int64), keepdims=1)
            return _root(op, total, p)
        if g.attribute(node, "ceil_mode", 0):
            return "the pool rounds its size up"
        kernel = g.attribute(node, "kernel_shape")
        attributes = {k: v.value for k, v in node.attributes.items() if k not in ("p", "ceil_mode")}
        mean = op.AveragePool(_power(op, x, p), count_include_pad=1, **attributes)
        return _root(op, op.Mul(mean, float(np.prod(kernel))), p)


NORMALIZATIONS = (
    LayerNormalization(), RMSNormalization(), InstanceNormalization(), GroupNormalization(),
    BatchNormalization(),
    LpNormalization(), MeanVarianceNormalization(), GlobalPool(), LpPool(),
)  # fmt: skip
