"""Products by a constant matrix, with the order of weights that kernels want: tapeout::FullyConnected(X, W[O,I], B[O]).

    MatMul(x, W)                       -> FullyConnected(x, W^T)                W constant [I,O]
    Gemm(a, b, c, alpha, beta)         -> FullyConnected(a, alpha b^T, beta c)  b and c constant, c a row
                                       -> alpha MatMul(a, b) + beta c           else
    FullyConnected(x, W) + b           -> FullyConnected(x, W, b)               b constant along the columns
    MatMul(a[K], b)                    -> Squeeze(MatMul(Unsqueeze(a), b)), and so for b[K]
    DequantizeLinear(Wq, s, axis)      -> DequantizeLinear(Wq^T, s^T, 1 - axis), where it is W

Weights are transposed when they are written; a float16 weight behind Cast stays so, and codes stay codes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import functions
from tapeout.compiler.ir import graph as g
from tapeout.compiler.rewriting import Builder, Changes, NodeRule, Rewrite

Array = np.ndarray[Any, Any]

SPECIFICATION = """<domain: "tapeout", opset_import: ["" : 25]>
FullyConnected (X, W, B) => (Y)
{
  w = Transpose <perm = [1, 0]> (W)
  y = MatMul (X, w)
  Y = Add (y, B)
}"""


def stored(value: ir.Value | None) -> tuple[ir.Value, bool] | None:
    """The constant that holds `value`, and whether a Cast widens it; None for a computed value."""
    if g.is_constant(value):
        assert value is not None
        return value, False
    cast = g.producer(value, "Cast")
    if cast is None or not g.is_constant(cast.inputs[0]):
        return None
    held = cast.inputs[0]
    assert held is not None
    return (held, True) if held.dtype == ir.DataType.FLOAT16 else None


def codes(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear of a constant that makes `value`, with constant scales."""
    node = g.producer(value, "DequantizeLinear")
    return node if node is not None and all(v is None or g.is_constant(v) for v in node.inputs) else None


def transposed(matrix: Array, block: int = 16) -> Array:
    """The transpose in a memory order of its own, made block by block: three times as fast as in one go."""
    made = np.empty(matrix.shape[::-1], matrix.dtype)
    for begin in range(0, len(matrix), block):
        made[:, begin : begin + block] = matrix[begin : begin + block].T
    return made


def remade(
    op: Builder,
    weight: ir.Value,
    shape: tuple[int, ...],
    make: Callable[[Array], Array],
    memory: dict[Any, ir.Value],
) -> ir.Value:
    """`make(weight)` as a constant computed when it is written, once for each weight in `memory`."""
    node = codes(weight)
    if node is not None:
        return _turned(op, node, shape, memory)
    found = stored(weight)
    assert found is not None
    held, widened = found
    tensor = held.const_value
    assert tensor is not None
    key = (id(tensor), shape)
    value = memory.get(key)
    if value is None:
        value = memory[key] = g.add_lazy_constant(
            op.graph,
            shape,
            tensor.dtype,
            lambda: np.ascontiguousarray(make(tensor.numpy())),
            held.name or "weight",
        )
    if not widened:
        return value
    cast: ir.Value = op.Cast(value, to=int(ir.DataType.FLOAT))
    return cast


def _turned(op: Builder, node: ir.Node, shape: tuple[int, ...], memory: dict[Any, ir.Value]) -> ir.Value:
    """DequantizeLinear(Wq [...,I,O], s, axis) -> DequantizeLinear(Wq^T [O,I], s^T, axis'), `shape` being [O,I];
    the dimensions before the last two are 1."""
    rank = g.rank(node.inputs[0]) or 2
    axis = int(g.attribute(node, "axis", 1)) % rank
    made: list[ir.Value] = []
    for value in node.inputs:
        assert value is not None and value.const_value is not None and value.dtype is not None
        dims = tuple(g.static_dims(value) or ())
        if len(dims) < 2:
            made.append(value)
            continue
        turned = dims[-2:][::-1]
        key = (value, turned)
        if key not in memory:
            tensor = value.const_value
            memory[key] = g.add_lazy_constant(
                op.graph,
                turned,
                value.dtype,
                functools.partial(_transpose, tensor, dims[-2:]),
                value.name or "weight",
            )
        made.append(memory[key])
    attributes: dict[str, Any] = {"axis": 0 if axis == rank - 1 else 1}
    if block := g.attribute(node, "block_size", 0):
        attributes["block_size"] = block
    return op.node("DequantizeLinear", made, attributes)[0]


def _transpose(tensor: ir.TensorProtocol, shape: tuple[int, ...]) -> Array:
    return np.ascontiguousarray(tensor.numpy().reshape(shape).T)


@dataclass
class _Rule(NodeRule):
    model: ir.Model
    memory: dict[Any, ir.Value] = field(default_factory=dict)

    def make(self, op: Builder, x: ir.Value, w: ir.Value, bias: ir.Value | None, channels: int) -> ir.Value:
        functions.declare(self.model, SPECIFICATION)
        if bias is None:
            bias = op.constant(np.zeros(channels, np.float32), hint="zero_bias")
        made: ir.Value = op.FullyConnected(x, w, bias, _domain=functions.DOMAIN)
        shape = g.dims(x)
        made.dtype = ir.DataType.FLOAT
        if shape is not None:
            made.shape = ir.Shape([*shape[:-1], channels])
        return made


class Product(_Rule):
    """MatMul(x, W) -> FullyConnected(x, W^T)"""

    ops: ClassVar = ("MatMul",)

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | str | None:
        x, w = node.inputs
        shape, rank = g.static_dims(w), g.rank(x)
        if x is None or w is None or shape is None or rank is None:
            return None
        if stored(w) is None and codes(w) is None:
            return None
        if w.dtype != ir.DataType.FLOAT:
            return None
        if len(shape) < 2 or rank < len(shape) or any(d != 1 for d in shape[:-2]):
            return None
        inner, outer = shape[-2:]
        if rank == 1:
            return None
        weight = remade(op, w, (outer, inner), lambda a: transposed(a.reshape(inner, outer)), self.memory)
        return self.make(op, x, weight, None, outer)


class General(_Rule):
    """Gemm(a, b, c) -> FullyConnected(a, alpha b^T, beta c), or MatMul and Add"""

    ops: ClassVar = ("Gemm",)

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | str | None:
        a, b, c = (*node.inputs, None)[:3]
        if a is None or b is None or a.dtype != ir.DataType.FLOAT:
            return None
        alpha, beta = float(g.attribute(node, "alpha", 1.0)), float(g.attribute(node, "beta", 1.0))
        if g.attribute(node, "transA", 0):
            a = op.Transpose(a, perm=(1, 0))
        turned = bool(g.attribute(node, "transB", 0))
        shape = g.static_dims(b)
        plain = turned and alpha == 1.0
        if shape is not None and (stored(b) is not None or (codes(b) is not None and alpha == 1.0)):
            outer, inner = shape if turned else shape[::-1]
            if c is not None and beta == 1.0 and codes(c) is not None and g.static_dims(c) == (outer,):
                w = b if plain else remade(op, b, (outer, inner), transposed, {})
                return self.make(op, a, w, c, outer)
            bias = None if c is None else along_columns(c, outer)

            def weight(array: Array) -> Array:
                array = array if turned else transposed(array)
                return array if alpha == 1.0 else (array * alpha).astype(array.dtype)

            w = b if plain else remade(op, b, (outer, inner), weight, {})
            added = c is None or bias is not None
            scaled = None if bias is None else op.constant((bias * beta).astype(np.float32), hint="bias")
            product = self.make(op, a, w, scaled, outer)
            if added:
                return product
        else:
            product = op.MatMul(a, op.Transpose(b, perm=(1, 0)) if turned else b)
            if alpha != 1.0:
                product = op.Mul(product, alpha)
        if c is None:
            return product
        total: ir.Value = op.Add(product, c if beta == 1.0 else op.Mul(c, beta))
        return total


class Bias(_Rule):
    """FullyConnected(x, W, 0) + b -> FullyConnected(x, W, b)"""

    ops: ClassVar = ("Add",)

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | str | None:
        for value, other in (node.inputs, reversed(node.inputs)):
            made = None if value is None else value.producer()
            if made is None or made.op_type != "FullyConnected" or made.domain != functions.DOMAIN:
                continue
            assert value is not None
            if g.only_use(value) is not node:
                return f"'{value.name}' is read elsewhere too"
            x, w, old = made.inputs
            shape, rank = g.static_dims(w), g.rank(value)
            if x is None or w is None or shape is None or rank is None or (g.rank(other) or 0) > rank:
                return None
            held = g.constant(old)
            if held is not None and not held.any() and codes(other) and g.static_dims(other) == shape[:1]:
                op.covers((made, node))
                return self.make(op, x, w, other, shape[0])
            bias = along_columns(other, shape[0])
            if held is None or bias is None:
                return None
            op.covers((made, node))
            return self.make(op, x, w, op.constant((held + bias).astype(np.float32), hint="bias"), shape[0])
        return None


class Vectors(NodeRule):
    """MatMul(a[K], b) -> Squeeze(MatMul(Unsqueeze(a), b))"""

    ops: ClassVar = ("MatMul",)

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | str | None:
        a, b = node.inputs
        left, right = g.rank(a), g.rank(b)
        if left is None or right is None or 1 not in (left, right):
            return None
        gone = []
        if left == 1:
            a = op.Unsqueeze(a, op.constant(np.array([0], np.int64), hint="axes"))
            gone.append(-2)
        if right == 1:
            b = op.Unsqueeze(b, op.constant(np.array([1], np.int64), hint="axes"))
            gone.append(-1)
        product = op.MatMul(a, b)
        squeezed: ir.Value = op.Squeeze(product, op.constant(np.array(gone, np.int64), hint="axes"))
        return squeezed


def along_columns(value: ir.Value | None, channels: int) -> Array | None:
    """A constant that is added to each row, as a vector of `channels` elements; None for any other."""
    shape = g.static_dims(value)
    if shape is None or any(d != 1 for d in shape[:-1]) or (shape and shape[-1] not in (1, channels)):
        return None
    array = g.constant(value)
    return None if array is None else np.broadcast_to(array.reshape(-1), (channels,))


@dataclass(frozen=True)
class FullyConnected:
    """Every product by a constant matrix becomes tapeout::FullyConnected."""

    name: str = "fully-connected"

    def __call__(self, model: ir.Model) -> Changes:
        memory: dict[Any, ir.Value] = {}
        rules = (Vectors(), Product(model, memory), General(model), Bias(model))
        return Rewrite(self.name, rules)(model)
