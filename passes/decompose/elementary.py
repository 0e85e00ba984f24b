"""Elementary functions by polynomials and quotients fitted for float32: within 5e-7 of the true value.

    Erf(x)   -> u P(u^2) / Q(u^2),  u = clip(x, -4, 4)
    Atan(x)  -> sign(x) A(|x|),  A(t) = t P(t^2) for t <= 1, pi/2 - A(1/t) beyond
    Asin(x)  -> sign(x) S(|x|),  S(t) = t P(t^2) for t <= 1/2, pi/2 - 2 S(sqrt((1 - t) / 2)) beyond
    Acos(x)  -> pi/2 - Asin(x)
    IsNaN(x) -> not x = x;   IsInf(x) -> |x| = inf

The coefficients are least-maximum fits of ours (iteratively weighted least squares on Chebyshev points).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.rewriting import Builder, NodeRule

ERF_P = (1.128378987, 0.19625551998615265, 0.053468070924282074, 0.004003848414868116, 0.00028803269378840923,
         1.9746100861084415e-06)  # fmt: skip
ERF_Q = (1.0, 0.5072580575942993, 0.11647888273000717, 0.015444843098521233, 0.001216383883729577,
         3.747811206267215e-05)  # fmt: skip
ATAN = (1.0, -0.3333328664302826, 0.19998374581336975, -0.14263050258159637, 0.10947791486978531,
        -0.08393994718790054, 0.05783567205071449, -0.031085500493645668, 0.010876965709030628,
        -0.00178730848710984)  # fmt: skip
ASIN = (1.0, 0.16666792333126068, 0.0749436765909195, 0.04555768519639969, 0.023823963478207588,
        0.04269026219844818)  # fmt: skip

SINGLE = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def polynomial(op: Builder, u: Any, coefficients: Sequence[float]) -> Any:
    """c0 + c1 u + c2 u^2 + ..., by Horner's scheme."""
    result: Any = op.Mul(u, coefficients[-1])
    for c in reversed(coefficients[1:-1]):
        result = op.Mul(op.Add(result, c), u)
    return op.Add(result, coefficients[0])


def _signed(op: Builder, x: Any, magnitude: Any) -> Any:
    """`magnitude` with the sign of x."""
    return op.Where(op.Less(x, 0.0), op.Neg(magnitude), magnitude)


class Erf(NodeRule):
    """Erf(x) -> u P(u^2) / Q(u^2), u = clip(x, -4, 4)"""

    ops = ("Erf",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        x = node.inputs[0]
        if x is None or x.dtype not in SINGLE:
            return "the fit is for float32"
        u = op.Clip(x, -4.0, 4.0)
        square = op.Mul(u, u)
        quotient = op.Div(op.Mul(u, polynomial(op, square, ERF_P)), polynomial(op, square, ERF_Q))
        return op.Clip(quotient, -1.0, 1.0)


class Atan(NodeRule):
    """Atan(x) -> sign(x) A(|x|), A(t) = t P(t^2) for t <= 1, pi/2 - A(1/t) beyond"""

    ops = ("Atan",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        x = node.inputs[0]
        if x is None or x.dtype not in SINGLE:
            return "the fit is for float32"
        t = op.Abs(x)
        beyond = op.Greater(t, 1.0)
        u = op.Where(beyond, op.Reciprocal(t), t)
        near = op.Mul(u, polynomial(op, op.Mul(u, u), ATAN))
        far = op.Sub(op.constant(math.pi / 2, x.dtype), near)
        return _signed(op, x, op.Where(beyond, far, near))


def _asin(op: Builder, x: ir.Value) -> Any:
    t = op.Abs(x)
    beyond = op.Greater(t, 0.5)
    half = op.Sqrt(op.Mul(op.Sub(op.constant(1, x.dtype), t), 0.5))
    u = op.Where(beyond, half, t)
    near = op.Mul(u, polynomial(op, op.Mul(u, u), ASIN))
    far = op.Sub(op.constant(math.pi / 2, x.dtype), op.Mul(near, 2.0))
    return _signed(op, x, op.Where(beyond, far, near))


class Asin(NodeRule):
    """Asin(x) -> sign(x) S(|x|), S(t) = t P(t^2) for t <= 1/2, pi/2 - 2 S(sqrt((1 - t) / 2)) beyond"""

    ops = ("Asin", "Acos")

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        x = node.inputs[0]
        if x is None or x.dtype not in SINGLE:
            return "the fit is for float32"
        angle = _asin(op, x)
        return angle if node.op_type == "Asin" else op.Sub(op.constant(math.pi / 2, x.dtype), angle)


class IsNaN(NodeRule):
    """IsNaN(x) -> not x = x"""

    ops = ("IsNaN",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        return op.Not(op.Equal(node.inputs[0], node.inputs[0]))


class IsInf(NodeRule):
    """IsInf(x) -> |x| = inf, or x = inf, or x = -inf"""

    ops = ("IsInf",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        x = node.inputs[0]
        positive, negative = g.attribute(node, "detect_positive", 1), g.attribute(node, "detect_negative", 1)
        if positive and negative:
            return op.Equal(op.Abs(x), math.inf)
        if positive or negative:
            return op.Equal(x, math.inf if positive else -math.inf)
        return op.Greater(op.Abs(x), math.inf)  # detects nothing: never true


ELEMENTARY = (Erf(), Atan(), Asin(), IsNaN(), IsInf())
