"""Scale and shift by constants, folded into the weights of the linear operator before or after them.

    Conv(x, W, B) * s + t            -> Conv(x, W s, B s + t)            s, t per output channel
    ConvTranspose, Gemm, MatMul        likewise
    Conv(x * s + t, W, B)            -> Conv(x, W s, B + sum(W t))       s, t per input channel;
                                                                         t = 0 or no padding
    ConvTranspose(x * s, W, B)       -> ConvTranspose(x, W s, B)
    Gemm(x * s + t, W, C)            -> Gemm(x, W s, C + alpha W t)
    MatMul(x * s + t, W)             -> MatMul(x, W s) + W t
    (MatMul(x, W) + b) * s + t       -> MatMul(x, W s) + (b s + t)
    BatchNormalization, Mul, Div, Add and Sub with constants are all x * s + t.

Scales and shifts are computed in float64. Results are equal up to rounding wherever the source and the folded
weights are finite; an infinite x times a zero scale is NaN in both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.rewriting import Builder, NodeRule, Rewrite

Array = np.ndarray[Any, Any]

# Scales and shifts are held; anything of more elements is a weight.
LIMIT = 1 << 20


@dataclass(frozen=True)
class Affine:
    """`node` computes x * scale + shift, float64 vectors over axis `axis` of x (or of one element)."""

    node: ir.Node
    x: ir.Value
    scale: Array
    shift: Array


def affine(node: ir.Node, axis: int) -> Affine | None:
    """`node` as a scale and shift along `axis` of its input; its output has the rank of its input."""
    if node.op_type == "BatchNormalization":
        return _batch_normalization(node) if axis == 1 else None
    if node.op_type not in ("Mul", "Div", "Add", "Sub") or len(node.inputs) != 2:
        return None
    left, right = node.inputs
    if g.is_constant(right) and not g.is_constant(left):
        x, c, swapped = left, right, False
    elif g.is_constant(left) and not g.is_constant(right):
        x, c, swapped = right, left, True
    else:
        return None
    vector = _along(c, x, axis)
    if x is None or vector is None:
        return None
    one, zero = np.ones(1), np.zeros(1)
    if node.op_type == "Mul":
        return Affine(node, x, vector, zero)
    if node.op_type == "Div":
        return None if swapped or np.any(vector == 0) else Affine(node, x, 1.0 / vector, zero)
    if node.op_type == "Add":
        return Affine(node, x, one, vector)
    return Affine(node, x, -one, vector) if swapped else Affine(node, x, one, -vector)


def _batch_normalization(node: ir.Node) -> Affine | None:
    if g.attribute(node, "training_mode", 0) or any(v.uses() for v in node.outputs[1:]):
        return None
    found = [g.constant(v, LIMIT) for v in node.inputs[1:5]]
    if any(a is None for a in found) or node.inputs[0] is None:
        return None
    gamma, beta, mean, variance = (a.astype(np.float64) for a in found if a is not None)
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(variance + g.attribute(node, "epsilon", 1e-5))
    return Affine(node, node.inputs[0], scale, beta - mean * scale)


def _along(c: ir.Value | None, x: ir.Value | None, axis: int) -> Array | None:
    """The constant `c` as a vector over `axis` of x; None where it varies elsewhere or adds rank."""
    rank, shape = g.rank(x), g.static_dims(c)
    if not rank or shape is None or len(shape) > rank or int(np.prod(shape)) > LIMIT:
        return None
    axis %= rank
    full = (1,) * (rank - len(shape)) + shape
    if any(d != 1 for i, d in enumerate(full) if i != axis):
        return None
    dims = g.dims(x)
    if dims is None or (full[axis] != 1 and dims[axis] != full[axis]):
        return None
    array = g.constant(c)
    return None if array is None else array.astype(np.float64).reshape(-1)


def scaled(op: Builder, weight: ir.Value, factor: Callable[[], Array]) -> ir.Value:
    """A lazy constant: `weight` times `factor()`, which broadcasts into it, computed in float64."""
    tensor, dtype = weight.const_value, weight.dtype
    shape = g.static_dims(weight)
    assert tensor is not None and dtype is not None and shape is not None

    def make() -> Array:
        array = tensor.numpy()
        out = np.empty_like(array)
        if array.dtype.kind == "f":
            np.multiply(array, factor(), out=out, dtype=np.float64, casting="unsafe")
            return out
        return (array.astype(np.float64) * factor()).astype(array.dtype)

    return g.add_lazy_constant(op.graph, shape, dtype, make, weight.name or "weight")


def is_one(vector: Array) -> bool:
    return bool(np.all(vector == 1.0))


def is_zero(vector: Array) -> bool:
    return bool(np.all(vector == 0.0))


def _bias(
    op: Builder, old: ir.Value | None, count: int, dtype: ir.DataType | None, f: Callable[[Array], Array]
) -> Any:
    """The bias `f(old)` of `count` elements; none where there was none and it is zero."""
    before = g.constant(old)
    after = f(np.zeros(count) if before is None else before.astype(np.float64))
    if old is None and is_zero(after):
        return None
    return op.constant(np.broadcast_to(after, (count,)), dtype, hint=(old.name if old else None) or "bias")


def _attributes(node: ir.Node, **changed: Any) -> dict[str, Any]:
    return {k: v.value for k, v in node.attributes.items()} | changed


def _constants(node: ir.Node, indices: range) -> str | None:
    for i in indices:
        if i < len(node.inputs) and node.inputs[i] is not None and not g.is_constant(node.inputs[i]):
            return f"input {i} of {node.op_type} '{node.name}' is computed"
    return None


def _sole(node: ir.Node, reader: ir.Node) -> str | None:
    if g.only_use(node.outputs[0]) is not reader:
        return f"'{node.outputs[0].name}' is read elsewhere"
    return None


def _out_shape(node: ir.Node) -> tuple[int, ...]:
    """How a vector over output channels broadcasts into the weight of a convolution."""
    w = g.static_dims(node.inputs[1])
    assert w is not None
    return (-1, *[1] * (len(w) - 1))


class AfterLinear(NodeRule):
    """Conv(x, W, B) * s + t -> Conv(x, W s, B s + t); ConvTranspose, Gemm and MatMul likewise"""

    ops = ("BatchNormalization", "Mul", "Div", "Add", "Sub")

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        for value in node.inputs[:2]:
            linear = g.producer(value, "Conv", "ConvTranspose", "Gemm", "MatMul")
            if linear is None:
                continue
            found = affine(node, -1 if linear.op_type == "MatMul" else 1)
            if found is None or found.x is not value:
                continue
            if linear.op_type == "MatMul" and is_one(found.scale):
                return None  # a bias: MatMul has no place for it
            why = _sole(linear, node) or _constants(linear, range(1, 3))
            if why is None and linear.op_type == "MatMul" and _matrix(linear) is None:
                why = "the second factor is no matrix"
            if why is not None:
                return why
            op.covers([linear, node])
            return getattr(self, linear.op_type.lower())(op, linear, found)
        return None

    def conv(self, op: Builder, linear: ir.Node, f: Affine) -> Any:
        w = linear.inputs[1]
        assert w is not None
        count = w.shape[0]  # type: ignore[index]
        assert isinstance(count, int)
        shape = _out_shape(linear)
        weight = w if is_one(f.scale) else scaled(op, w, lambda: f.scale.reshape(shape))
        b = linear.inputs[2] if len(linear.inputs) > 2 else None
        bias = _bias(op, b, count, w.dtype, lambda old: old * f.scale + f.shift)
        return op.Conv(linear.inputs[0], weight, bias, _name=f.node.outputs[0].name, **_attributes(linear))

    def convtranspose(self, op: Builder, linear: ir.Node, f: Affine) -> Any:
        w = linear.inputs[1]
        shape = g.static_dims(w)
        assert w is not None and shape is not None
        group = g.attribute(linear, "group", 1)
        count = shape[1] * group

        def factor() -> Array:
            # Output channel o of group k is W[inputs of k, o - k * shape[1]].
            each = np.broadcast_to(f.scale, (count,)).reshape(group, 1, shape[1])
            rows = np.broadcast_to(each, (group, shape[0] // group, shape[1])).reshape(shape[0], shape[1])
            return rows.reshape(shape[0], shape[1], *[1] * (len(shape) - 2))

        weight = w if is_one(f.scale) else scaled(op, w, factor)
        b = linear.inputs[2] if len(linear.inputs) > 2 else None
        bias = _bias(op, b, count, w.dtype, lambda old: old * f.scale + f.shift)
        name = f.node.outputs[0].name
        return op.ConvTranspose(linear.inputs[0], weight, bias, _name=name, **_attributes(linear))

    def gemm(self, op: Builder, linear: ir.Node, f: Affine) -> Any:
        w = linear.inputs[1]
        assert w is not None and w.shape is not None
        transposed = g.attribute(linear, "transB", 0)
        count = w.shape[0] if transposed else w.shape[1]
        assert isinstance(count, int)
        c = linear.inputs[2] if len(linear.inputs) > 2 else None
        if c is not None and g.static_dims(c) not in ((count,), (1, count), (), (1,), (1, 1)):
            return "the bias of Gemm is no row"
        beta = g.attribute(linear, "beta", 1.0)
        axes = (-1, 1) if transposed else (1, -1)
        weight = w if is_one(f.scale) else scaled(op, w, lambda: f.scale.reshape(axes))
        bias = _bias(op, c, count, w.dtype, lambda old: beta * old.reshape(-1) * f.scale + f.shift)
        attributes = _attributes(linear, beta=None)
        return op.Gemm(linear.inputs[0], weight, bias, _name=f.node.outputs[0].name, **attributes)

    def matmul(self, op: Builder, linear: ir.Node, f: Affine) -> Any:
        w = linear.inputs[1]
        assert w is not None
        y = op.MatMul(linear.inputs[0], scaled(op, w, lambda: f.scale.reshape(1, -1)))
        return y if is_zero(f.shift) else op.Add(y, op.constant(f.shift, w.dtype, hint="bias"))


def _matrix(node: ir.Node) -> tuple[int, int] | None:
    """The shape of a MatMul's constant second factor where it is a matrix."""
    shape = g.static_dims(node.inputs[1]) if g.is_constant(node.inputs[1]) else None
    return None if shape is None or len(shape) != 2 else (shape[0], shape[1])


class AfterBias(NodeRule):
    """(MatMul(x, W) + b) * s + t -> MatMul(x, W s) + (b s + t)"""

    ops = ("BatchNormalization", "Mul", "Div", "Add", "Sub")

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        for value in node.inputs[:2]:
            add = g.producer(value, "Add", "Sub")
            bias = None if add is None else affine(add, -1)
            product = None if bias is None else g.producer(bias.x, "MatMul")
            found = affine(node, -1) if product is not None else None
            if node.op_type == "BatchNormalization" and product is not None and g.rank(value) == 2:
                found = affine(node, 1)
            if add is None or bias is None or product is None or found is None or found.x is not value:
                continue
            if _matrix(product) is None:
                continue
            why = _sole(product, add) or _sole(add, node)
            if why is not None:
                return why
            op.covers([product, add, node])
            w = product.inputs[1]
            assert w is not None
            scale = bias.scale * found.scale
            shift = bias.shift * found.scale + found.shift
            y = bias.x
            if not is_one(scale):
                y = op.MatMul(product.inputs[0], scaled(op, w, functools.partial(np.reshape, scale, (1, -1))))
            return op.Add(y, op.constant(shift, w.dtype, hint="bias"))
        return None


class BeforeLinear(NodeRule):
    """Conv(x * s + t, W, B) -> Conv(x, W s, B + sum(W t)), t = 0 or no padding; others likewise"""

    ops = ("Conv", "ConvTranspose", "Gemm", "MatMul")

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        made = g.producer(node.inputs[0], "BatchNormalization", "Mul", "Div", "Add", "Sub")
        if made is None:
            return None
        found = affine(made, -1 if node.op_type == "MatMul" else 1)
        if found is None:
            return None
        if g.producer(found.x, "Conv", "ConvTranspose", "Gemm", "MatMul") is not None and g.only_use(found.x):
            return None  # it goes there: that needs no new bias
        why = _sole(made, node) or _constants(node, range(1, 3))
        if node.op_type == "MatMul" and _matrix(node) is None:
            why = why or "the second factor is no matrix"
        if node.op_type == "Gemm" and g.attribute(node, "transA", 0):
            why = why or "Gemm transposes its first factor"
        if not is_zero(found.shift):
            if node.op_type == "ConvTranspose":
                why = why or "a shift before ConvTranspose changes along the borders"
            if node.op_type == "Conv" and (
                any(g.attribute(node, "pads", ()))
                or g.attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")
            ):
                why = why or "a shift before a padded Conv changes along the borders"
        if why is not None:
            return why
        op.covers([made, node])
        return getattr(self, "conv" if "Conv" in node.op_type else node.op_type.lower())(op, node, found)

    def conv(self, op: Builder, node: ir.Node, f: Affine) -> Any:
        w = node.inputs[1]
        shape = g.static_dims(w)
        assert w is not None and shape is not None
        group = g.attribute(node, "group", 1)
        ones = [1] * (len(shape) - 2)
        transposed = node.op_type == "ConvTranspose"
        inputs = shape[0] if transposed else shape[1] * group

        def spread(vector: Array) -> Array:
            """A vector over input channels, shaped to multiply W."""
            full = np.broadcast_to(vector, (inputs,))
            if transposed:
                return full.reshape(-1, 1, *ones)
            rows = np.repeat(full.reshape(group, shape[1]), shape[0] // group, axis=0)
            return rows.reshape(shape[0], shape[1], *ones)

        weight = w if is_one(f.scale) else scaled(op, w, lambda: spread(f.scale))
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if not is_zero(f.shift):
            axes = tuple(range(1, len(shape)))
            bias = _lazy_bias(
                op,
                bias,
                shape[0],
                w,
                lambda array: (array.astype(np.float64) * spread(f.shift)).sum(axis=axes),
            )
        return op.node(node.op_type, [f.x, weight, bias], _attributes(node), hint=node.outputs[0].name)[0]

    def gemm(self, op: Builder, node: ir.Node, f: Affine) -> Any:
        w = node.inputs[1]
        assert w is not None and w.shape is not None
        transposed = g.attribute(node, "transB", 0)
        count = w.shape[0] if transposed else w.shape[1]
        assert isinstance(count, int)
        alpha, beta = g.attribute(node, "alpha", 1.0), g.attribute(node, "beta", 1.0)
        c = node.inputs[2] if len(node.inputs) > 2 else None
        axes = (1, -1) if transposed else (-1, 1)
        changed: dict[str, Any] = {}
        if not is_zero(f.shift):
            if c is not None and (g.static_dims(c) not in ((count,), (1, count)) or beta != 1.0):
                return "the bias of Gemm is no row"
            changed["beta"] = None
            side = 1 if transposed else 0
            c = _lazy_bias(
                op, c, count, w,
                lambda array: alpha * (array.astype(np.float64) * f.shift.reshape(axes)).sum(axis=side),
            )  # fmt: skip
        weight = w if is_one(f.scale) else scaled(op, w, lambda: f.scale.reshape(axes))
        return op.Gemm(f.x, weight, c, _name=node.outputs[0].name, **_attributes(node, **changed))

    def matmul(self, op: Builder, node: ir.Node, f: Affine) -> Any:
        w, shape = node.inputs[1], _matrix(node)
        assert w is not None and shape is not None
        if g.rank(f.x) == 1:
            return "the first factor is a vector"
        weight = w if is_one(f.scale) else scaled(op, w, lambda: f.scale.reshape(-1, 1))
        y = op.MatMul(f.x, weight)
        if is_zero(f.shift):
            return y
        shift = _lazy_bias(
            op,
            None,
            shape[1],
            w,
            lambda array: (array.astype(np.float64) * f.shift.reshape(-1, 1)).sum(axis=0),
        )
        return op.Add(y, shift)


def _lazy_bias(
    op: Builder, old: ir.Value | None, count: int, w: ir.Value, f: Callable[[Array], Array]
) -> ir.Value:
    """`old` (or zero) plus `f(weight)`, computed when it is read."""
    tensor, dtype = w.const_value, w.dtype
    before = None if old is None else old.const_value
    assert tensor is not None and dtype is not None

    def make() -> Array:
        start = np.zeros(count) if before is None else before.numpy().astype(np.float64).reshape(-1)
        return np.broadcast_to(start + f(tensor.numpy()), (count,)).astype(dtype.numpy())

    return g.add_lazy_constant(op.graph, (count,), dtype, make, (old.name if old else None) or "bias")


AFFINE = Rewrite("affine", (AfterLinear(), AfterBias(), BeforeLinear()))
