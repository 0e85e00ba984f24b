"""Quantization as arithmetic in float32, for targets that compute it in float.

QuantizeLinear(x, s, z)    -> Cast(Clip(Round(x / s) + z, lowest, highest))
DequantizeLinear(q, s, z)  -> (Cast(q) - z) * s
DynamicQuantizeLinear(x)   -> the range of x with 0 in it, then as QuantizeLinear
QLinearMatMul, QLinearConv -> QuantizeLinear(MatMul / Conv(DequantizeLinear..., DequantizeLinear...))
MatMulInteger, ConvInteger -> Cast(MatMul / Conv(a - za, b - zb)), exact below 2^24
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.rewriting import Builder, NodeRule, Rule

D = ir.DataType
FLOAT = D.FLOAT

Result = Any  # values, a reason, or None: see NodeRule.rewrite

SMALL = (D.INT8, D.UINT8, D.INT16, D.UINT16)
HELD = (*SMALL, D.INT32)


def along(op: Builder, value: ir.Value, x: ir.Value, axis: int) -> ir.Value | str:
    """A scale or zero point shaped to broadcast with `x` along `axis`; the reason where it cannot be."""
    rank, own = g.rank(x), g.rank(value)
    if rank is None or own is None:
        return "the rank is not known"
    if own == 0 or g.static_dims(value) == (1,):
        return value if own == 0 else op.Reshape(value, np.zeros(0, np.int64))
    if own != 1:
        return "scales in blocks"
    shape = np.ones(rank, np.int64)
    shape[axis % rank] = -1
    shaped: ir.Value = op.Reshape(value, shape)
    return shaped


def single(op: Builder, value: ir.Value) -> ir.Value:
    """`value` as float32."""
    return value if value.dtype == FLOAT else op.Cast(value, to=FLOAT)


def quantized(
    op: Builder, x: ir.Value, scale: ir.Value, zero: ir.Value | None, dtype: ir.DataType
) -> ir.Value:
    """Cast(Clip(Round(x / scale) + zero)) to `dtype`."""
    limits = np.iinfo(dtype.numpy())
    steps = op.Round(op.Div(x, scale))
    if zero is not None:
        steps = op.Add(steps, single(op, zero))
    held = op.Clip(steps, np.float32(limits.min).reshape(()), np.float32(limits.max).reshape(()))
    made: ir.Value = op.Cast(held, to=dtype)
    return made


def dequantized(op: Builder, q: ir.Value, scale: ir.Value, zero: ir.Value | None) -> ir.Value:
    """(Cast(q) - zero) * scale; the difference of integers is exact in float32 up to 16 bits."""
    number = single(op, q)
    if zero is not None:
        number = op.Sub(number, single(op, zero))
    made: ir.Value = op.Mul(number, scale)
    return made


class Quantize(NodeRule):
    """QuantizeLinear(x, s, z) -> Cast(Clip(Round(x / s) + z, lowest, highest))"""

    ops = ("QuantizeLinear",)

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        x, scale, zero = (*node.inputs, None)[:3]
        assert x is not None and scale is not None
        dtype = node.outputs[0].dtype
        if dtype not in SMALL or x.dtype != FLOAT or scale.dtype != FLOAT:
            return f"{x.dtype} to {dtype}"
        if g.attribute(node, "block_size", 0):
            return "scales in blocks"
        axis = g.attribute(node, "axis", 1)
        shaped = along(op, scale, x, axis)
        point = None if zero is None else along(op, zero, x, axis)
        if isinstance(shaped, str) or isinstance(point, str):
            return "scales in blocks"
        return quantized(op, x, shaped, point, dtype)


class Dequantize(NodeRule):
    """DequantizeLinear(q, s, z) -> (Cast(q) - z) * s"""

    ops = ("DequantizeLinear",)

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        q, scale, zero = (*node.inputs, None)[:3]
        assert q is not None and scale is not None
        if q.dtype not in SMALL or scale.dtype != FLOAT or node.outputs[0].dtype != FLOAT:
            return f"{q.dtype} with scales of {scale.dtype}"
        if g.attribute(node, "block_size", 0):
            return "scales in blocks"
        axis = g.attribute(node, "axis", 1)
        shaped = along(op, scale, q, axis)
        point = None if zero is None else along(op, zero, q, axis)
        if isinstance(shaped, str) or isinstance(point, str):
            return "scales in blocks"
        return dequantized(op, q, shaped, point)


class DynamicQuantize(NodeRule):
    """DynamicQuantizeLinear(x) -> s = (max - min) / 255, z = Clip(Round(-min / s)), QuantizeLinear(x)"""

    ops = ("DynamicQuantizeLinear",)

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        x = node.inputs[0]
        assert x is not None
        high = op.Max(op.ReduceMax(x, keepdims=0), np.zeros((), np.float32))
        low = op.Min(op.ReduceMin(x, keepdims=0), np.zeros((), np.float32))
        scale = op.Div(op.Sub(high, low), np.float32(255).reshape(()))
        start = op.Round(op.Div(op.Neg(low), scale))
        held = op.Clip(start, np.float32(0).reshape(()), np.float32(255).reshape(()))
        zero = op.Cast(held, to=D.UINT8)
        return quantized(op, x, scale, zero, D.UINT8), scale, zero


class QLinear(NodeRule):
    """QLinearMatMul(a, sa, za, b, sb, zb, sy, zy) -> QuantizeLinear(MatMul(Dequantize(a), Dequantize(b)))"""

    ops = ("QLinearMatMul", "QLinearConv")

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        a, sa, za, b, sb, zb, sy, zy, bias = (*node.inputs, None)[:9]
        dtype = node.outputs[0].dtype
        assert a is not None and b is not None and sa is not None and sb is not None and sy is not None
        if dtype not in SMALL or any(v.dtype not in (FLOAT, D.FLOAT16) for v in (sa, sb, sy)):
            return "types other than integers with float32 or float16 scales"
        sa, sb, sy = single(op, sa), single(op, sb), single(op, sy)
        matmul = node.op_type == "QLinearMatMul"
        weight_axis = -1 if matmul else 0

        def shaped(value: ir.Value | None, like: ir.Value, axis: int) -> ir.Value | str | None:
            if value is None:
                return None
            # One scale per row of the first matrix counts along the axis before the last.
            return along(op, value, like, axis) if (g.rank(value) or 0) < 2 else value

        parts = [shaped(sa, a, -2), shaped(za, a, -2), shaped(sb, b, weight_axis), shaped(zb, b, weight_axis)]
        if any(isinstance(p, str) for p in parts):
            return "scales in blocks"
        first = dequantized(op, a, parts[0], parts[1])  # type: ignore[arg-type]
        second = dequantized(op, b, parts[2], parts[3])  # type: ignore[arg-type]
        if matmul:
            made = op.MatMul(first, second)
        else:
            shift: list[Any] = []
            if bias is not None:
                one = op.Reshape(sa, np.zeros(0, np.int64)) if g.rank(sa) else sa
                shift = [op.Mul(op.Mul(op.Cast(bias, to=FLOAT), sb), one)]
            made = op.node("Conv", [first, second, *shift], dict(node.attributes))[0]
        target = [shaped(v, made, -2) if matmul else shaped(v, made, 1) for v in (sy, zy)]
        if any(isinstance(p, str) for p in target):
            return "scales in blocks"
        return quantized(op, made, target[0], target[1], dtype)  # type: ignore[arg-type]


class IntegerProducts(NodeRule):
    """MatMulInteger(a, b, za, zb) -> Cast(MatMul(a - za, b - zb)); ConvInteger likewise. Exact while a sum
    of products stays below 2^24, as 255 * 255 * depth promises."""

    ops = ("MatMulInteger", "ConvInteger")

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        a, b, za, zb = (*node.inputs, None, None)[:4]
        assert a is not None and b is not None
        shape = g.static_dims(b)
        if shape is None:
            return "the depth of the sums is not known"
        matmul = node.op_type == "MatMulInteger"
        depth = shape[-2 if len(shape) > 1 else 0] if matmul else math.prod(shape[1:])
        if depth * 255 * 255 >= 1 << 24:
            return f"sums of {depth} products, which float32 does not hold exactly"

        def centred(q: ir.Value, zero: ir.Value | None, axis: int) -> ir.Value | None:
            number = single(op, q)
            if zero is None:
                return number
            point = along(op, zero, q, axis)
            return None if isinstance(point, str) else op.Sub(number, single(op, point))

        first, second = centred(a, za, -2), centred(b, zb, -1 if matmul else 0)
        if first is None or second is None:
            return "zero points in blocks"
        made = (
            op.MatMul(first, second) if matmul else op.node("Conv", [first, second], dict(node.attributes))[0]
        )
        return op.Cast(made, to=D.INT32)


QUANTIZED: tuple[Rule, ...] = (Quantize(), Dequantize(), DynamicQuantize(), QLinear(), IntegerProducts())
