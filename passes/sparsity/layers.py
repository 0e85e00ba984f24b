"""Convolutions and products with stored weights, seen alike: what pruning and factorization work on.

    Y[r, g, o] = sum over k of X[r, g, k] * W[g, o, k]

A row is what one output position reads: for a convolution the patch under its window.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.passes.quantization.products import Product

Array = np.ndarray[Any, Any]


class Layer(NamedTuple):
    """One weight and the node that reads it first. `stored` is the initializer: the weight itself, or the half
    that a Cast widens; `transposed` where it is stored [K, O]."""

    node: ir.Node
    stored: ir.Value
    groups: int
    transposed: bool

    @property
    def name(self) -> str:
        return self.node.name or ""

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def shape(self) -> tuple[int, ...]:
        shape = g.static_dims(self.stored)
        assert shape is not None
        return shape

    @property
    def outputs(self) -> int:
        return self.shape[1 if self.transposed else 0]

    def weight(self) -> Array:
        """The weight as float64 [G, O/G, K]."""
        array = g.constant(self.stored)
        assert array is not None
        array = np.asarray(array.T if self.transposed else array, np.float64)
        return array.reshape(self.groups, array.shape[0] // self.groups, -1)

    def store(self, weight: Array) -> None:
        """Put `weight` [G, O/G, K] in place of the stored one, in its type."""
        self.stored.const_value = ir.tensor(self.packed(weight), name=self.stored.name)

    def packed(self, weight: Array) -> Array:
        """`weight` [G, O/G, K] in the shape and type of the stored one."""
        tensor = self.stored.const_value
        assert tensor is not None
        flat = weight.reshape(self.shape[::-1]).T if self.transposed else weight.reshape(self.shape)
        return np.ascontiguousarray(flat).astype(tensor.dtype.numpy())

    def constants(self, weight: Array, means: Array) -> dict[str, Array]:
        """By name the weight as `weight` [G, O/G, K] would be stored, and a bias that keeps the outputs' means where
        those of the inputs are `means` [G, K]."""
        values = {self.stored.name or "": self.packed(weight)}
        bias = self.bias
        if bias is not None and bias.const_value is not None:
            held = bias.const_value.numpy()
            shift = np.einsum("gok,gk->go", self.weight() - weight, means).reshape(-1)
            values[bias.name or ""] = (held + shift).astype(held.dtype)
        return values

    @property
    def bias(self) -> ir.Value | None:
        """The constant [O] that is added to the product and that nothing else reads: an input of the node, or of
        the Add behind it."""
        value = self.node.inputs[2] if len(self.node.inputs) > 2 else None
        if self.node.op_type == "MatMul":
            behind = g.only_use(self.node.outputs[0])
            if behind is None or behind.op_type != "Add" or behind.domain:
                return None
            value = next((v for v in behind.inputs if v is not self.node.outputs[0]), None)
        alone = value is not None and g.is_constant(value) and g.only_use(value) is not None
        whole = g.static_dims(value) == (self.outputs,) and float(g.attribute(self.node, "beta", 1.0)) == 1.0
        return value if alone and whole else None

    @property
    def result(self) -> ir.Value:
        """The product with its bias."""
        bias, made = self.bias, self.node.outputs[0]
        if bias is None or self.node.op_type != "MatMul":
            return made
        behind = g.only_use(made)
        assert behind is not None
        return behind.outputs[0]

    def shift(self, amount: Array) -> None:
        """Add `amount` [O] to the bias, which there must be."""
        bias = self.bias
        assert bias is not None and bias.const_value is not None
        old = bias.const_value.numpy()
        bias.const_value = ir.tensor((old + amount).astype(old.dtype), name=bias.name)

    def rows(self, x: Array, count: int, seed: int) -> Array:
        """At most `count` rows [R, G, K] of the input `x` at positions drawn by `seed`."""
        if self.node.op_type == "Conv":
            return Product(self.node, self.stored, None, self.groups, False).rows(x, self.shape, count, seed)
        turned = self.node.op_type == "Gemm" and g.attribute(self.node, "transA", 0)
        return drawn((x.T if turned else x).reshape(-1, self.size // self.outputs), count, seed)[:, None]

    def positions(self, y: Array, count: int, seed: int) -> Array:
        """The outputs [R, G, O/G] at the positions that `rows` draws, of a tensor `y` shaped as the output."""
        flat = (np.moveaxis(y, 1, -1) if self.node.op_type == "Conv" else y).reshape(-1, self.outputs)
        flat = drawn(flat, count, seed)
        return flat.reshape(len(flat), self.groups, -1)


def drawn(rows: Array, count: int, seed: int) -> Array:
    """At most `count` of `rows`, as `Product.rows` draws them."""
    if len(rows) <= count:
        return rows
    return rows[np.sort(np.random.default_rng(seed).choice(len(rows), count, replace=False))]


def layers(graph: ir.Graph) -> Iterator[Layer]:
    """Every weight of a Conv, Gemm or MatMul in `graph` that is a constant matrix, in order; a weight that
    several nodes read comes once."""
    seen: set[ir.Value] = set()
    for node in graph:
        found = layer(node)
        if found is not None and found.stored not in seen:
            seen.add(found.stored)
            yield found


def layer(node: ir.Node) -> Layer | None:
    """`node` as a layer; None where its weight is computed, or where it is none."""
    if node.domain or node.op_type not in ("Conv", "Gemm", "MatMul") or len(node.inputs) < 2:
        return None
    stored = node.inputs[1]
    cast = g.producer(stored, "Cast")
    if cast is not None:
        stored = cast.inputs[0]
    if (
        stored is None
        or not g.is_constant(stored)
        or stored.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16)
    ):
        return None
    if node.op_type == "Conv":
        return Layer(node, stored, int(g.attribute(node, "group", 1)), False)
    if g.rank(stored) != 2 or (node.op_type == "Gemm" and float(g.attribute(node, "alpha", 1.0)) != 1.0):
        return None
    return Layer(node, stored, 1, node.op_type == "MatMul" or not g.attribute(node, "transB", 0))
