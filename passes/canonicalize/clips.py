"""Bounds are stated once: chains of Clip, Relu, Min and Max with constants become one Clip or one Relu.

Clip(Clip(x, a, b), c, d) -> Clip(x, clip(a, c, d), clip(b, c, d))      a <= b, c <= d; Relu is Clip(0, inf)
Min(Max(x, a), b) -> Clip(x, a, b)      Max(Min(x, b), a) -> Clip(x, a, b)      where a <= b
Max(Max(x, a), b) -> Clip(x, max(a, b)), and Min likewise
Clip(x, 0, none) -> Relu(x)             Clip(x, none, none) -> x
Max(x, 0) -> Relu(x)                    float
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.rewriting import Builder, NodeRule, Rule
from tapeout.passes.canonicalize.identities import same_shape, uniform

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


class Bounds(NamedTuple):
    """x limited to [low, high]; None where there is no limit."""

    x: ir.Value
    low: float | None
    high: float | None


def bounds(value: ir.Value | None) -> Bounds | None:
    """`value` as a limited x, where it is made by Clip, Relu, or Min or Max with a constant number."""
    node = None if value is None else g.producer(value, "Clip", "Relu", "Min", "Max")
    if node is None or node.inputs[0] is None:
        return None
    if node.op_type == "Relu":
        return Bounds(node.inputs[0], 0.0, None)
    if node.op_type == "Clip":
        low, high = (node.inputs[i] if i < len(node.inputs) else None for i in (1, 2))
        a, b = _number(low), _number(high)
        if (low is not None and a is None) or (high is not None and b is None):
            return None
        return Bounds(node.inputs[0], _finite(a, -1), _finite(b, 1))
    if len(node.inputs) != 2:
        return None
    for x, c in (node.inputs, node.inputs[::-1]):
        number = uniform(c)
        if number is not None and not np.isnan(number) and x is not None and same_shape(x, node.outputs[0]):
            return Bounds(x, None, number) if node.op_type == "Min" else Bounds(x, number, None)
    return None


def _number(value: ir.Value | None) -> float | int | None:
    number = g.scalar(value)
    return None if number is None or np.isnan(number) else number


def _finite(number: float | int | None, sign: int) -> float | int | None:
    """No limit where it is infinite."""
    return None if number is not None and number == sign * np.inf else number


def _limited(number: float | None, by: Bounds) -> float | None:
    if number is None:
        return None
    if by.low is not None:
        number = max(number, by.low)
    return number if by.high is None else min(number, by.high)


class MergeBounds(NodeRule):
    """Two limits by constants, one on the other -> one."""

    ops = ("Clip", "Relu", "Min", "Max")

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | str | None:
        outer = bounds(node.outputs[0])
        if outer is None or outer.x.dtype is None:
            return None
        inner = bounds(outer.x)
        if inner is None or g.is_constant(inner.x):
            return self._alone(op, node, outer)
        for each in (outer, inner):
            if each.low is not None and each.high is not None and each.low > each.high:
                return "a lower bound lies above the upper one"
        low = _limited(inner.low, outer) if inner.low is not None else outer.low
        high = _limited(inner.high, outer) if inner.high is not None else outer.high
        return self._state(op, Bounds(inner.x, low, high), node)

    def _alone(self, op: Builder, node: ir.Node, b: Bounds) -> ir.Value | None:
        """The plainest form of one limit."""
        if b.low is None and b.high is None:
            return b.x
        floats = b.x.dtype in FLOATS
        if node.op_type in ("Clip", "Max") and b.low == 0 and b.high is None and floats:
            return self._state(op, b, node)
        if node.op_type == "Clip" and _limits(node) != (b.low is not None, b.high is not None):
            return self._state(op, b, node)
        return None

    def _state(self, op: Builder, b: Bounds, node: ir.Node) -> ir.Value:
        assert b.x.dtype is not None
        if b.low == 0 and b.high is None and b.x.dtype in FLOATS:
            return op.Relu(b.x)  # type: ignore[no-any-return]
        low, high = (
            None if n is None else op.constant(np.array(n), b.x.dtype, "bound") for n in (b.low, b.high)
        )
        return op.Clip(b.x, low, high)  # type: ignore[no-any-return]


def _limits(node: ir.Node) -> tuple[bool, bool]:
    low, high = (i < len(node.inputs) and node.inputs[i] is not None for i in (1, 2))
    return low, high


CLIPS: tuple[Rule, ...] = (MergeBounds(),)
