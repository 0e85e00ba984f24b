"""Arithmetic in terms of simpler arithmetic.

Max(a, b, c)          -> Max(Max(a, b), c), likewise Min and Sum; Mean -> Sum / n
Tan(x)                -> Sin(x) / Cos(x)
Sinh(x), Cosh(x)      -> by exponentials; Sinh near 0 by tanh(x/2), where exponentials cancel
Asinh, Acosh, Atanh   -> by logarithms, near 0 by their series
Mod(x, y, fmod=1)     -> Mod(x, y) less y where its sign is not that of x (integers)
BitwiseNot(x)         -> x xor all ones; BitwiseOr(a, b) -> (a xor b) xor (a and b)
Abs(x), Sign(x)       -> by Max and comparisons (int64)
Div(a, b)             -> through int32 (int64 that counts elements)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.rewriting import Builder, NodeRule, Rule

INT32, INT64, FLOAT = ir.DataType.INT32, ir.DataType.INT64, ir.DataType.FLOAT

Result = Any  # values, a reason, or None: see NodeRule.rewrite


def present(node: ir.Node) -> list[ir.Value]:
    """The inputs that are there."""
    return [v for v in node.inputs if v is not None]


class VariadicPairs(NodeRule):
    """Max, Min, Sum of many -> pairs; of one -> itself; Sum of two -> Add; Mean -> Sum / n."""

    ops = ("Max", "Min", "Sum", "Mean")

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        inputs = present(node)
        kind = "Add" if node.op_type in ("Sum", "Mean") else node.op_type
        if len(inputs) == 2 and kind == node.op_type:
            return None
        total = inputs[0]
        for value in inputs[1:]:
            total = getattr(op, kind)(total, value)
        if node.op_type == "Mean" and len(inputs) > 1:
            total = op.Div(total, float(len(inputs)))
        return total


class Tan(NodeRule):
    """Tan(x) -> Sin(x) / Cos(x)"""

    ops = ("Tan",)

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        return op.Div(op.Sin(node.inputs[0]), op.Cos(node.inputs[0]))


class Hyperbolic(NodeRule):
    """Sinh(x) -> 2t / (1 - tt), t = Tanh(x/2), where |x| < 1, else (e^x - e^-x) / 2; Cosh(x) likewise.

    The halves are taken before the exponential, e^(x - ln 2): they overflow only where the result does.
    """

    ops = ("Sinh", "Cosh")

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        (x,) = present(node)
        if x.dtype != FLOAT:
            return "only float32 is decomposed"
        half = float(np.log(2.0))
        up, down = op.Exp(op.Sub(x, half)), op.Exp(op.Sub(op.Neg(x), half))
        if node.op_type == "Cosh":
            return op.Add(up, down)
        t = op.Tanh(op.Mul(x, 0.5))
        near = op.Div(op.Mul(t, 2.0), op.Add(op.Neg(op.Mul(t, t)), 1.0))
        return op.Where(op.Less(op.Abs(x), 1.0), near, op.Sub(up, down))


# Below it the series are used: a logarithm near 1 loses what it is to give.
NEAR = 0.25
ASINH = (1.0, -1 / 6, 3 / 40, -15 / 336, 105 / 3456, -945 / 42240)
ATANH = (1.0, 1 / 3, 1 / 5, 1 / 7, 1 / 9, 1 / 11)


def _odd(op: Builder, a: ir.Value, factors: Sequence[float]) -> ir.Value:
    """factors[0] a + factors[1] a^3 + factors[2] a^5 + ..."""
    square = op.Mul(a, a)
    total = op.Add(op.Mul(square, factors[-1]), factors[-2])
    for factor in reversed(factors[:-2]):
        total = op.Add(op.Mul(total, square), factor)
    made: ir.Value = op.Mul(total, a)
    return made


def _asinh(op: Builder, a: ir.Value) -> ir.Value:
    """asinh of a not negative: the series, log(a + sqrt(aa + 1)), and log(a) + log(2) before aa overflows."""
    held = op.Min(a, 1e18)
    middle = op.Log(op.Add(held, op.Sqrt(op.Add(op.Mul(held, held), 1.0))))
    far = op.Add(op.Log(a), float(np.log(2.0)))
    near = _odd(op, op.Min(a, NEAR), ASINH)
    made: ir.Value = op.Where(op.Less(a, NEAR), near, op.Where(op.Greater(a, 1e18), far, middle))
    return made


class AreaFunctions(NodeRule):
    """Asinh(x) -> sign(x) asinh(|x|); Acosh(x) -> 2 asinh(sqrt((x - 1) / 2));
    Atanh(x) -> sign(x) log((1 + a) / (1 - a)) / 2, a = |x|, or its series near 0."""

    ops = ("Asinh", "Acosh", "Atanh")

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        (x,) = present(node)
        if x.dtype != FLOAT:
            return "only float32 is decomposed"
        if node.op_type == "Acosh":
            return op.Mul(_asinh(op, op.Sqrt(op.Mul(op.Add(x, -1.0), 0.5))), 2.0)
        a = op.Abs(x)
        if node.op_type == "Asinh":
            return op.Mul(op.Sign(x), _asinh(op, a))
        far = op.Mul(op.Log(op.Div(op.Add(a, 1.0), op.Add(op.Neg(a), 1.0))), 0.5)
        near = _odd(op, op.Min(a, NEAR), ATANH)
        return op.Mul(op.Sign(x), op.Where(op.Less(a, NEAR), near, far))


class IntegerFmod(NodeRule):
    """Mod(x, y, fmod=1) -> r - y where r is not 0 and its sign is not that of x, else r; r = Mod(x, y)"""

    ops = ("Mod",)

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        x, y = present(node)
        if not g.attribute(node, "fmod", 0) or x.dtype is None or not x.dtype.is_integer():
            return None
        r = op.Mod(x, y)
        crossed = op.Xor(op.Less(r, 0), op.Less(x, 0))
        return op.Where(op.And(op.Not(op.Equal(r, 0)), crossed), op.Sub(r, y), r)


class BitwiseNotOr(NodeRule):
    """BitwiseNot(x) -> x xor all ones; BitwiseOr(a, b) -> (a xor b) xor (a and b)"""

    ops = ("BitwiseNot", "BitwiseOr")

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        inputs = present(node)
        if node.op_type == "BitwiseOr":
            a, b = inputs
            return op.BitwiseXor(op.BitwiseXor(a, b), op.BitwiseAnd(a, b))
        dtype = inputs[0].dtype
        assert dtype is not None
        kind = dtype.numpy()
        return op.BitwiseXor(inputs[0], np.asarray(~np.zeros((), kind), kind))


class EqualShapes(NodeRule):
    """BitwiseAnd(a, b), BitShift(a, b) of different known shapes -> of operands expanded to the common one"""

    ops = ("BitwiseAnd", "BitShift")

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        a, b = present(node)
        first, second = g.static_dims(a), g.static_dims(b)
        if first is None or second is None or first == second:
            return None
        common = np.array(np.broadcast_shapes(first, second), np.int64)
        parts = [v if s == tuple(common) else op.Expand(v, common) for v, s in ((a, first), (b, second))]
        attributes = {"direction": g.attribute(node, "direction")} if node.op_type == "BitShift" else {}
        return getattr(op, node.op_type)(*parts, **attributes)


class PowOfOneType(NodeRule):
    """Pow(x, y) -> Pow(x, Cast(y)) where x is float and y an integer"""

    ops = ("Pow",)

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        x, y = present(node)
        if x.dtype is None or y.dtype is None or x.dtype == y.dtype:
            return None
        if not x.dtype.is_floating_point() and not (x.dtype.is_integer() and y.dtype.is_integer()):
            return "an integer to a fractional power"
        return op.Pow(x, op.Cast(y, to=x.dtype))


class Int64SignAbs(NodeRule):
    """Abs(x) -> Max(x, -x); Sign(x) -> Cast(x > 0) - Cast(x < 0) (int64)"""

    ops = ("Abs", "Sign")

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        (x,) = present(node)
        if x.dtype != INT64:
            return None
        if node.op_type == "Abs":
            return op.Max(x, op.Neg(x))
        return op.Sub(op.Cast(op.Greater(x, 0), to=INT64), op.Cast(op.Less(x, 0), to=INT64))


class NarrowDivision(NodeRule):
    """Div(a, b) -> Cast(Div(Cast(a), Cast(b))) through int32, of int64 that counts elements"""

    ops = ("Div",)

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        a, b = present(node)
        if a.dtype != INT64:
            return None
        if not (counts(a) and counts(b)):
            return "int64 that may not fit int32"
        return op.Cast(op.Div(op.Cast(a, to=INT32), op.Cast(b, to=INT32)), to=INT64)


_COUNTING = frozenset({"Shape", "Size", "ArgMax", "ArgMin", "NonZero"})
# Of these the first input decides; of the others all do.
_MOVING = frozenset(
    {"Reshape", "Squeeze", "Unsqueeze", "Slice", "Expand", "Gather", "Tile", "Split", "CumSum", "Pad"}
    | {"ReduceSum", "ReduceProd", "ReduceMax", "ReduceMin", "Transpose", "Identity", "Flatten"}
)
_KEEPING = _MOVING | {
    "Concat",
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Mod",
    "Max",
    "Min",
    "Neg",
    "Abs",
    "Range",
    "Where",
}


def counts(value: ir.Value, depth: int = 64) -> bool:
    """True where an int64 tensor is made from shapes, positions and small constants only."""
    array = g.constant(value, limit=1 << 16)
    if array is not None:
        return array.size == 0 or bool(np.all(np.abs(array.astype(np.float64)) < 2**31))
    node = value.producer()
    if node is None or node.domain != "" or depth == 0:
        return False
    if node.op_type in _COUNTING or (node.op_type == "TopK" and value is node.outputs[1]):
        return True
    if node.op_type == "Cast":
        source = node.inputs[0]
        assert source is not None
        if source.dtype in (INT64, ir.DataType.UINT32):
            return counts(source, depth - 1)
        return source.dtype is not None and (source.dtype == ir.DataType.BOOL or source.dtype.is_integer())
    if node.op_type not in _KEEPING:
        return False
    read = node.inputs[:1] if node.op_type in _MOVING else node.inputs[1 if node.op_type == "Where" else 0 :]
    return all(v is not None and counts(v, depth - 1) for v in read)


class CastLike(NodeRule):
    """CastLike(x, y) -> Cast(x) to the type of y"""

    ops = ("CastLike",)

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        x, like = present(node)
        if like.dtype is None:
            return "the type to cast to is not known"
        return op.Cast(x, to=like.dtype, saturate=g.attribute(node, "saturate"))


class UnboundedClip(NodeRule):
    """Clip(x) -> x"""

    ops = ("Clip",)

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        inputs = present(node)
        return inputs[0] if len(inputs) == 1 else None


ARITHMETIC: tuple[Rule, ...] = (
    VariadicPairs(),
    Tan(),
    Hyperbolic(),
    AreaFunctions(),
    IntegerFmod(),
    BitwiseNotOr(),
    EqualShapes(),
    PowOfOneType(),
    Int64SignAbs(),
    NarrowDivision(),
    CastLike(),
    UnboundedClip(),
)
