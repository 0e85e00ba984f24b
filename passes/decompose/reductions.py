"""Reductions in terms of ReduceSum, ReduceMax and arithmetic.

ReduceL1(x)           -> ReduceSum(|x|)
ReduceL2(x)           -> Sqrt(ReduceSum(x * x))
ReduceSumSquare(x)    -> ReduceSum(x * x)
ReduceLogSum(x)       -> Log(ReduceSum(x))
ReduceLogSumExp(x)    -> m + Log(ReduceSum(Exp(x - m))), m = ReduceMax(x)
Reduce*(x, [])        -> Reduce*(x), or x where empty axes ask for no reduction
ArgMax(select_last)   -> n - 1 - ArgMax of the reversed axis
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.rewriting import Builder, NodeRule, Rule

Result = Any  # values, a reason, or None: see NodeRule.rewrite

_ALL = (
    *("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"),
    *("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"),
)


def _axes(node: ir.Node) -> ir.Value | None:
    return node.inputs[1] if len(node.inputs) > 1 else None


def _attributes(node: ir.Node) -> dict[str, Any]:
    return {k: g.attribute(node, k) for k in ("keepdims", "noop_with_empty_axes")}


class EmptyAxes(NodeRule):
    """Reduce*(x, []) -> Reduce*(x), over all axes; with noop_with_empty_axes what is done to elements"""

    ops = _ALL

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        x, axes = node.inputs[0], _axes(node)
        noop = bool(g.attribute(node, "noop_with_empty_axes", 0))
        empty = axes is None or g.static_dims(axes) == (0,)
        if not empty or (axes is None and not noop):
            return None
        if not noop:
            keepdims = g.attribute(node, "keepdims")
            return getattr(op, node.op_type)(x, keepdims=keepdims)
        if node.op_type in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"):
            return x
        if node.op_type in ("ReduceL1", "ReduceL2"):
            return op.Abs(x)
        if node.op_type == "ReduceSumSquare":
            return op.Mul(x, x)
        return op.Log(x) if node.op_type == "ReduceLogSum" else x


class Norms(NodeRule):
    """ReduceL1, ReduceL2, ReduceSumSquare, ReduceLogSum -> ReduceSum and what stands around it"""

    ops = ("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum")

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        x, axes, kind = node.inputs[0], _axes(node), node.op_type
        inner = op.Abs(x) if kind == "ReduceL1" else x if kind == "ReduceLogSum" else op.Mul(x, x)
        total = op.ReduceSum(inner, axes, **_attributes(node))
        return op.Sqrt(total) if kind == "ReduceL2" else op.Log(total) if kind == "ReduceLogSum" else total


class LogSumExp(NodeRule):
    """ReduceLogSumExp(x) -> m + Log(ReduceSum(Exp(x - m))), m = ReduceMax(x) held to finite numbers"""

    ops = ("ReduceLogSumExp",)

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        x, axes = node.inputs[0], _axes(node)
        assert x is not None
        if x.dtype is None or not x.dtype.is_floating_point():
            return "only floating point is decomposed"
        limit = float(np.finfo(x.dtype.numpy()).max)
        kept = _attributes(node) | {"keepdims": 1}
        # Where all are -inf (or one is inf) x - m would be NaN; with m finite the log of the sum is right.
        m = op.Min(op.Max(op.ReduceMax(x, axes, **kept), -limit), limit)
        total = op.Log(op.ReduceSum(op.Exp(op.Sub(x, m)), axes, **_attributes(node)))
        if not g.attribute(node, "keepdims", 1):
            m = op.Min(op.Max(op.ReduceMax(x, axes, **_attributes(node)), -limit), limit)
        return op.Add(total, m)


class LastPosition(NodeRule):
    """ArgMax(x, select_last_index=1) -> n - 1 - ArgMax(Reverse(x)), likewise ArgMin"""

    ops = ("ArgMax", "ArgMin")

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        x = node.inputs[0]
        if not g.attribute(node, "select_last_index", 0):
            return None
        dims = g.dims(x)
        if dims is None:
            return "the rank is not known"
        axis = g.attribute(node, "axis", 0) % len(dims)
        one = [np.array([v], np.int64) for v in (-1, np.iinfo(np.int64).min, axis, -1)]
        place = getattr(op, node.op_type)(
            op.Slice(x, *one), axis=axis, keepdims=g.attribute(node, "keepdims", 1)
        )
        size = dims[axis]
        last: Any = size - 1 if isinstance(size, int) else None
        if last is None:
            last = op.Sub(op.Squeeze(op.Shape(x, start=axis, end=axis + 1), np.array([0], np.int64)), 1)
        else:
            last = np.asarray(last, np.int64)
        return op.Sub(last, place)


REDUCTIONS: tuple[Rule, ...] = (EmptyAxes(), Norms(), LogSumExp(), LastPosition())
