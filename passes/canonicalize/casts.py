"""Casts that change nothing go, and a cast of an exact cast is one.

    Cast(x, type of x) -> x                 CastLike(x, y) -> Cast(x, type of y)
    Cast(Cast(x, A), B) -> Cast(x, B)       where A holds every value of x's type
    f(Cast(c, wide)) -> Cast(f(c), wide)    f one of Transpose, Reshape, Squeeze, Unsqueeze; c a constant

The last keeps a weight in its storage type while what moves its elements is folded into it.
"""

from __future__ import annotations

import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.rewriting import Builder, NodeRule, Rule

D = ir.DataType

_INTS = {D.INT8: (7, True), D.INT16: (15, True), D.INT32: (31, True), D.INT64: (63, True),
         D.UINT8: (8, False), D.UINT16: (16, False), D.UINT32: (32, False), D.UINT64: (64, False),
         D.BOOL: (1, False)}  # fmt: skip
# Bits of the significand, and of the exponent.
_FLOATS = {D.FLOAT16: (11, 5), D.BFLOAT16: (8, 8), D.FLOAT: (24, 8), D.DOUBLE: (53, 11)}


def holds(wide: ir.DataType, narrow: ir.DataType) -> bool:
    """True where every value of type `narrow` is a value of type `wide`."""
    if wide == narrow:
        return True
    if narrow in _INTS:
        bits, signed = _INTS[narrow]
        if wide in _INTS and wide != D.BOOL:
            room, takes = _INTS[wide]
            return room >= bits and (takes or not signed)
        return wide in _FLOATS and _FLOATS[wide][0] >= bits
    if narrow in _FLOATS and wide in _FLOATS:
        return all(a >= b for a, b in zip(_FLOATS[wide], _FLOATS[narrow], strict=True))
    return False


class DropCast(NodeRule):
    """Cast and CastLike to the type that x has -> x; CastLike(x, y) -> Cast(x, type of y)."""

    ops = ("Cast", "CastLike")

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | None:
        x, y = node.inputs[0], node.outputs[0]
        if x is None or x.dtype is None or y.dtype is None:
            return None
        if x.dtype == y.dtype:
            return x
        if node.op_type == "CastLike":
            return op.Cast(x, to=int(y.dtype), saturate=g.attribute(node, "saturate"))  # type: ignore[no-any-return]
        return None


class MergeCasts(NodeRule):
    """Cast(Cast(x, A), B) -> Cast(x, B) where A holds every value of x's type."""

    ops = ("Cast",)

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | str | None:
        inner = g.producer(node.inputs[0], "Cast")
        if inner is None or inner.inputs[0] is None:
            return None
        x, middle = inner.inputs[0], inner.outputs[0].dtype
        if x.dtype is None or middle is None or not holds(middle, x.dtype):
            return "the inner Cast rounds, wraps or saturates"
        if g.is_constant(x):
            return None
        rest = {k: g.attribute(node, k) for k in ("saturate", "round_mode")}
        return op.Cast(x, to=g.attribute(node, "to"), **rest)  # type: ignore[no-any-return]


class MoveIntoStorage(NodeRule):
    """f(Cast(c)) -> Cast(f(c)) for a constant c and an f that only moves elements."""

    ops = ("Transpose", "Reshape", "Squeeze", "Unsqueeze")

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | None:
        cast = g.producer(node.inputs[0], "Cast")
        if cast is None or not g.is_constant(cast.inputs[0]):
            return None
        if any(not g.is_constant(v) for v in node.inputs[1:]):
            return None
        moved = op.node(node.op_type, [cast.inputs[0], *node.inputs[1:]], dict(node.attributes))[0]
        attributes = {k: g.attribute(cast, k) for k in cast.attributes}
        return op.node("Cast", [moved], attributes)[0]


CASTS: tuple[Rule, ...] = (DropCast(), MergeCasts(), MoveIntoStorage())
