"""Models that arrive quantized, by whatever tool, in the one form that the rows are about: DequantizeLinear and
QuantizeLinear around operators on floats, activations int8. No scale is altered.

    QLinearConv(x, sx, zx, w, sw, zw, sy, zy, b)  ->  Q(Conv(DQ(x), DQ(w), DQ(b, sx * sw)))
    QLinearMatMul(a, sa, za, b, sb, zb, sy, zy)   ->  Q(MatMul(DQ(a), DQ(b)))
    Q(x, s, z uint8), DQ(q, s, z uint8)           ->  Q(x, s, z - 128), DQ(q, s, z - 128)       in int8
    DQ(q uint8 input or computed)                 ->  DQ(Q(DQ(q), s, z - 128), s, z - 128)
    uint8 output Q(x, s, z)                       ->  Q(DQ(Q(x, s, z - 128)), s, z)
    Reshape(DQ(c)), Transpose(DQ(c))              ->  DQ(Reshape(c)), DQ(Transpose(c))          c constant, one scale

All are exact: the same real numbers.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.rewriting import Builder, NodeRule, Rewrite

D = ir.DataType
SHIFT = 128
MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten")

Result = Any


class LinearProducts(NodeRule):
    """QLinearConv, QLinearMatMul -> Q(op(DQ(a), DQ(b)))"""

    ops: ClassVar = ("QLinearConv", "QLinearMatMul")

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        a, sa, za, b, sb, zb, sy, zy, bias = (*node.inputs, None)[:9]
        if any(v is None or v.dtype != D.FLOAT for v in (sa, sb, sy)):
            return "scales are not float32"
        matmul = node.op_type == "QLinearMatMul"
        if any(_elements(v) != 1 for v in (sa, sy)):
            return "activations with a scale per row"
        parts = [_scalars(op, v) for v in (sa, za, sy, zy)]
        first = op.DequantizeLinear(a, parts[0], parts[1])
        if _elements(sb) == 1:
            second = op.DequantizeLinear(b, _scalars(op, sb), _scalars(op, zb))
        else:
            rank = g.rank(b)
            if matmul and rank != 2:
                return "scales per column of a stack of matrices"
            second = op.DequantizeLinear(b, sb, zb, axis=1 if matmul else 0)
        if matmul:
            made = op.MatMul(first, second)
        else:
            inputs = [first, second]
            if bias is not None:
                left, right = g.constant(sa), g.constant(sb)
                if left is None or right is None:
                    return "computed scales"
                shape = g.static_dims(bias)
                product = left.reshape(()).astype(np.float64) * right.astype(np.float64).reshape(-1)
                scale = np.broadcast_to(product, shape or (1,)).astype(np.float32)
                inputs.append(op.DequantizeLinear(bias, scale, axis=0))
            made = op.node("Conv", inputs, dict(node.attributes))[0]
        return op.QuantizeLinear(made, parts[2], parts[3])


class QuantizeToInt8(NodeRule):
    """Q(x, s, z uint8) -> Q(x, s, z - 128) int8, where DequantizeLinear alone reads it or a border is uint8"""

    ops: ClassVar = ("QuantizeLinear",)

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        made = node.outputs[0]
        if made.dtype != D.UINT8:
            return None
        x, scale, zero = (*node.inputs, None)[:3]
        assert x is not None and scale is not None
        before = g.producer(x, "DequantizeLinear")
        if made.is_graph_output() and before is not None and _same(before, scale, zero, SHIFT):
            return None  # int8 inside, uint8 outside already
        readers = [u.node for u in made.uses()]
        if any(n.domain != "" or n.op_type != "DequantizeLinear" for n in readers):
            return "its codes are read as numbers"
        shifted = _shifted(op, zero, scale)
        if shifted is None:
            return "a computed zero point"
        kept = {k: g.attribute(node, k) for k in ("axis", "block_size") if k in node.attributes}
        stored = op.QuantizeLinear(x, scale, shifted, **kept)
        for reader in readers:
            theirs = (*reader.inputs, None)[1:3]
            assert theirs[0] is not None
            own = _shifted(op, theirs[1], theirs[0])
            if own is None:
                return "a computed zero point"
        for reader in readers:
            theirs = (*reader.inputs, None)[1:3]
            assert theirs[0] is not None
            own = _shifted(op, theirs[1], theirs[0])
            inputs = [stored, theirs[0], own]
            (real,) = op.node(
                "DequantizeLinear", inputs, {k: g.attribute(reader, k) for k in reader.attributes}
            )
            g.replace(op.graph, reader.outputs[0], real)
        if not made.is_graph_output():
            made.name = g.fresh(op.graph, made.name or "codes")  # what it was called were other numbers
            return stored
        real = op.DequantizeLinear(stored, scale, shifted, **kept)
        inputs = [real, scale] if zero is None else [real, scale, zero]
        return op.QuantizeLinear(*inputs, **kept)


class DequantizeFromInt8(NodeRule):
    """DQ(c uint8, s, z) -> DQ(c - 128, s, z - 128) for a constant c; behind an exact requantize for others"""

    ops: ClassVar = ("DequantizeLinear",)

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        codes, scale, zero = (*node.inputs, None)[:3]
        if codes is None or codes.dtype != D.UINT8 or scale is None or node.outputs[0].dtype != D.FLOAT:
            return None
        shifted = _shifted(op, zero, scale)
        if shifted is None:
            return "a computed zero point"
        kept = {k: g.attribute(node, k) for k in node.attributes}
        if g.is_constant(codes):
            shape, tensor = g.static_dims(codes), codes.const_value
            assert shape is not None and tensor is not None
            make = functools.partial(_moved, tensor)
            stored = g.add_lazy_constant(op.graph, shape, D.INT8, make, codes.name or "weight")
            return op.node("DequantizeLinear", [stored, scale, shifted], kept)[0]
        readers = [u.node for u in node.outputs[0].uses()]
        if readers and all(_is_quantize(n) and _same(n, scale, shifted, 0) for n in readers):
            return None  # done
        if g.producer(codes, "QuantizeLinear") is not None:
            return None  # the other rule's
        inputs = [codes, scale] if zero is None else [codes, scale, zero]
        real = op.node("DequantizeLinear", inputs, kept)[0]
        stored = op.node("QuantizeLinear", [real, scale, shifted], kept)[0]
        return op.node("DequantizeLinear", [stored, scale, shifted], kept)[0]


class MoveBeforeDequantize(NodeRule):
    """Transpose(DQ(c)) -> DQ(Transpose(c)) for a constant c with one scale"""

    ops: ClassVar = MOVES

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        value = node.inputs[0]
        dequantize = g.producer(value, "DequantizeLinear")
        if value is None or dequantize is None or not g.is_constant(dequantize.inputs[0]):
            return None
        if _elements(dequantize.inputs[1]) != 1:
            return None
        kept = {k: g.attribute(node, k) for k in node.attributes}
        moved = op.node(node.op_type, [dequantize.inputs[0], *node.inputs[1:]], kept)[0]
        return op.DequantizeLinear(moved, *dequantize.inputs[1:])


def _is_quantize(node: ir.Node) -> bool:
    return node.domain == "" and node.op_type == "QuantizeLinear"


def _elements(value: ir.Value | None) -> int | None:
    shape = g.static_dims(value)
    return None if shape is None else int(np.prod(shape))


def _scalars(op: Builder, value: ir.Value | None) -> ir.Value | None:
    """A scale or zero point of one element without its axes."""
    if value is None or g.rank(value) == 0:
        return value
    made: ir.Value = op.Reshape(value, np.zeros(0, np.int64))
    return made


def _shifted(op: Builder, zero: ir.Value | None, scale: ir.Value) -> ir.Value | None:
    """The zero point of the same numbers in int8; None where it is computed."""
    if zero is None:
        shape = g.static_dims(scale)
        return None if shape is None else op.constant(np.full(shape, -SHIFT, np.int8), hint="zero_point")
    array = g.constant(zero)
    if array is None:
        return None
    return op.constant((array.astype(np.int16) - SHIFT).astype(np.int8), hint="zero_point")


def _same(node: ir.Node, scale: ir.Value, zero: ir.Value | None, shift: int) -> bool:
    """Whether a QuantizeLinear or DequantizeLinear has this scale, and this zero point less `shift`."""
    theirs = (*node.inputs, None)[1:3]
    a, b = g.constant(theirs[0]), g.constant(scale)
    if a is None or b is None or not np.array_equal(a, b):
        return False
    za, zb = g.constant(theirs[1]), g.constant(zero)
    own = np.zeros(1) if za is None else za.astype(np.int64)
    other = np.zeros(1) if zb is None else zb.astype(np.int64)
    return bool(np.all(own == other - shift))


def _moved(tensor: ir.TensorProtocol) -> np.ndarray[Any, Any]:
    made: np.ndarray[Any, Any] = (tensor.numpy().astype(np.int16) - SHIFT).astype(np.int8)
    return made


ARRIVING = Rewrite(
    "arriving quantization",
    (LinearProducts(), QuantizeToInt8(), DequantizeFromInt8(), MoveBeforeDequantize()),
)
