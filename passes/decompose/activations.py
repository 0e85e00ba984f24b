"""Activations in terms of simpler functions, in forms that neither overflow nor cancel.

Swish(x, a)            -> x * Sigmoid(a x)
Mish(x)                -> x * n / (n + 2),  n = w (w + 2),  w = exp(min(x, 20))
Softplus(x)            -> max(x, 0) + log1p(exp(-|x|))
Softsign(x)            -> x / (1 + |x|)
Elu(x, a)              -> max(x, 0) + a (exp(min(x, 0)) - 1);  from Elu(., 1) where that is kept
Selu(x, a, c)          -> c Elu(x, a)
Celu(x, a)             -> a Elu(x / a)
ThresholdedRelu(x, a)  -> where(x > a, x, 0)
Shrink(x, l, b)        -> where(x < -l, x + b, where(x > l, x - b, 0))
HardSigmoid(x, a, b)   -> clip(a x + b, 0, 1)
HardSwish(x)           -> x * clip(x + 3, 0, 6) / 6
LeakyRelu(x, a)        -> max(x, 0) + a min(x, 0);  PRelu likewise
Gelu(x)                -> x/2 (1 + erf(x / sqrt 2));  x/2 (1 + tanh(...))
Hardmax(x)             -> the index of the first maximum equals the position
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.rewriting import Builder, NodeRule

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def log1p(op: Builder, y: Any) -> Any:
    """log(1 + y) with the relative accuracy of y: y log(w) / (w - 1), w = 1 + y rounded."""
    w = op.Add(y, 1.0)
    quotient = op.Div(op.Mul(y, op.Log(w)), op.Sub(w, 1.0))
    return op.Where(op.Equal(w, 1.0), y, quotient)


def _sixths(op: Builder, x: Any) -> Any:
    """clip(x + 3, 0, 6)"""
    return op.Clip(op.Add(x, 3.0), 0.0, 6.0)


class Swish(NodeRule):
    """Swish(x, a) -> x * Sigmoid(a x)"""

    ops = ("Swish",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        x, alpha = node.inputs[0], g.attribute(node, "alpha", 1.0)
        return op.Mul(x, op.Sigmoid(x if alpha == 1.0 else op.Mul(x, alpha)))


class Mish(NodeRule):
    """Mish(x) -> x * n / (n + 2), n = w (w + 2), w = exp(min(x, 20)): tanh(log(1 + w)) without the logarithm.
    Above 20 the quotient is 1 in every float type."""

    ops = ("Mish",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        x = node.inputs[0]
        if x is None or x.dtype == ir.DataType.FLOAT16:
            return "n overflows in float16"
        w = op.Exp(op.Clip(x, None, 20.0))
        n = op.Mul(w, op.Add(w, 2.0))
        return op.Mul(x, op.Div(n, op.Add(n, 2.0)))


class Softplus(NodeRule):
    """Softplus(x) -> max(x, 0) + log1p(exp(-|x|))"""

    ops = ("Softplus",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        x = node.inputs[0]
        return op.Add(op.Relu(x), log1p(op, op.Exp(op.Neg(op.Abs(x)))))


class Softsign(NodeRule):
    """Softsign(x) -> x / (1 + |x|)"""

    ops = ("Softsign",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        return op.Div(node.inputs[0], op.Add(op.Abs(node.inputs[0]), 1.0))


class Elu(NodeRule):
    """Elu(x, a) -> max(x, 0) + a (exp(min(x, 0)) - 1)"""

    ops = ("Elu",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        x = node.inputs[0]
        tail = op.Sub(op.Exp(op.Clip(x, None, 0.0)), 1.0)
        return op.Add(op.Relu(x), op.Mul(tail, g.attribute(node, "alpha", 1.0)))


class EluOfOne(NodeRule):
    """Elu(x, a) -> max(x, 0) + a Elu(min(x, 0)), for targets whose Elu has no factor"""

    ops = ("Elu",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        x, alpha = node.inputs[0], g.attribute(node, "alpha", 1.0)
        if alpha == 1.0:
            return None
        return op.Add(op.Relu(x), op.Mul(op.Elu(op.Clip(x, None, 0.0)), alpha))


class Selu(NodeRule):
    """Selu(x, a, c) -> c Elu(x, a)"""

    ops = ("Selu",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        alpha, gamma = g.attribute(node, "alpha", 1.6732632), g.attribute(node, "gamma", 1.050701)
        return op.Mul(op.Elu(node.inputs[0], alpha=alpha), gamma)


class Celu(NodeRule):
    """Celu(x, a) -> a Elu(x / a) = max(x, 0) + min(0, a (exp(x / a) - 1))"""

    ops = ("Celu",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        x, alpha = node.inputs[0], g.attribute(node, "alpha", 1.0)
        if alpha == 1.0:
            return op.Elu(x)
        if alpha <= 0:
            return f"alpha is {alpha}"
        return op.Mul(op.Elu(op.Div(x, alpha)), alpha)


class ThresholdedRelu(NodeRule):
    """ThresholdedRelu(x, a) -> where(x > a, x, 0)"""

    ops = ("ThresholdedRelu",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        x = node.inputs[0]
        assert x is not None
        return op.Where(op.Greater(x, g.attribute(node, "alpha", 1.0)), x, op.constant(0, x.dtype))


class Shrink(NodeRule):
    """Shrink(x, l, b) -> where(x < -l, x + b, where(x > l, x - b, 0))"""

    ops = ("Shrink",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        x, limit, bias = node.inputs[0], g.attribute(node, "lambd", 0.5), g.attribute(node, "bias", 0.0)
        if x is None or x.dtype not in FLOATS:
            return "only floats are written out"
        above = op.Where(op.Greater(x, limit), op.Sub(x, bias), op.constant(0, x.dtype))
        return op.Where(op.Less(x, -limit), op.Add(x, bias), above)


class HardSigmoid(NodeRule):
    """HardSigmoid(x, a, b) -> clip(a x + b, 0, 1); of 1/6 and 1/2 -> clip(x + 3, 0, 6) / 6, which many
    kernels have as an activation of the sum"""

    ops = ("HardSigmoid",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        alpha, beta = g.attribute(node, "alpha", 0.2), g.attribute(node, "beta", 0.5)
        if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
            return op.Mul(_sixths(op, node.inputs[0]), 1 / 6)
        return op.Clip(op.Add(op.Mul(node.inputs[0], alpha), beta), 0.0, 1.0)


class HardSwish(NodeRule):
    """HardSwish(x) -> x * clip(x + 3, 0, 6) / 6"""

    ops = ("HardSwish",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        x = node.inputs[0]
        return op.Mul(x, op.Mul(_sixths(op, x), 1 / 6))


class LeakyRelu(NodeRule):
    """LeakyRelu(x, a) -> max(x, 0) + a min(x, 0); PRelu likewise"""

    ops = ("LeakyRelu", "PRelu")

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        x = node.inputs[0]
        if x is None or x.dtype not in FLOATS:
            return "only floats are written out"
        slope = node.inputs[1] if node.op_type == "PRelu" else g.attribute(node, "alpha", 0.01)
        return op.Add(op.Relu(x), op.Mul(op.Clip(x, None, 0.0), slope))


class Gelu(NodeRule):
    """Gelu(x) -> x/2 (1 + erf(x / sqrt 2)); tanh form: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))"""

    ops = ("Gelu",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        x = node.inputs[0]
        if g.attribute(node, "approximate", "none") == "tanh":
            c = math.sqrt(2 / math.pi)
            cube = op.Add(op.Mul(op.Mul(x, x), 0.044715 * c), c)
            gate = op.Tanh(op.Mul(x, cube))
        else:
            gate = op.Erf(op.Mul(x, math.sqrt(0.5)))
        return op.Mul(op.Mul(x, 0.5), op.Add(gate, 1.0))


class Hardmax(NodeRule):
    """Hardmax(x) -> ArgMax(x) equals the position along the axis"""

    ops = ("Hardmax",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        x, shape = node.inputs[0], g.dims(node.inputs[0])
        axis = g.attribute(node, "axis", -1)
        if x is None or shape is None or x.dtype is None or not isinstance(shape[axis], int):
            return "the size of the axis is not known"
        axis %= len(shape)
        places = np.arange(shape[axis], dtype=np.int64).reshape(-1, *[1] * (len(shape) - 1 - axis))
        first = op.ArgMax(x, axis=axis, keepdims=1)
        return op.Cast(op.Equal(first, places), to=int(x.dtype))


ACTIVATIONS = (
    Swish(), Mish(), Softplus(), Softsign(), Elu(), Selu(), Celu(), ThresholdedRelu(), Shrink(),
    HardSigmoid(),
    HardSwish(), LeakyRelu(), Gelu(), Hardmax(),
)  # fmt: skip
