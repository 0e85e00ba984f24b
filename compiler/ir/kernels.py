"""Operators on NumPy arrays, with ONNX's semantics exactly: cheap shape arithmetic without a session.

A kernel takes the inputs in order (None for an absent one) and the attributes as keywords with ONNX's
defaults. The structural ones (Gather, Concat, Reshape, ...) work on arrays of objects too, which is how
symbolic shapes travel. A kernel raises `Declined` where NumPy would round otherwise than ONNX Runtime, and
`Undefined` where ONNX gives no result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

Array = np.ndarray[Any, Any]


class Declined(Exception):
    """This node is not evaluated here; the message says why."""


class Undefined(Declined):
    """ONNX gives this node no result on these inputs. Runtimes may crash on it, so none is asked."""


def ints(array: Array | None) -> list[Any]:
    """The elements of a 1-D (or 0-D) integer tensor."""
    return [] if array is None else array.reshape(-1).tolist()


def axis_of(axis: int, rank: int) -> int:
    """`axis` counted from the front. Raises Declined where there is none such."""
    if not -rank <= axis < max(rank, 1):
        raise Undefined(f"axis {axis} of rank {rank}")
    return axis + rank if axis < 0 else axis


# --- structure ---------------------------------------------------------------------------------------------


def shape(x: Array, *, start: int = 0, end: int | None = None) -> Array:
    return np.array(x.shape[slice(*clamped(start, end, x.ndim))], dtype=np.int64)


def clamped(start: int, end: int | None, rank: int) -> tuple[int, int]:
    """Start and end of Shape's slice, clamped to [0, rank]."""
    end = rank if end is None else end
    low, high = (min(max(i + rank if i < 0 else i, 0), rank) for i in (start, end))
    return low, max(low, high)


def gather(x: Array, indices: Array, *, axis: int = 0) -> Array:
    axis = axis_of(axis, x.ndim)
    size = x.shape[axis]
    if indices.size and (indices.min() < -size or indices.max() >= size):
        raise Undefined(f"an index is outside of {size} elements")
    return np.asarray(np.take(x, indices.astype(np.int64), axis=axis))


def gather_elements(x: Array, indices: Array, *, axis: int = 0) -> Array:
    axis = axis_of(axis, x.ndim)
    if indices.size and (indices.min() < -x.shape[axis] or indices.max() >= x.shape[axis]):
        raise Undefined("an index is out of range")
    indices = np.where(indices < 0, indices + x.shape[axis], indices)
    window = tuple(slice(None) if i == axis else slice(n) for i, n in enumerate(indices.shape))
    return np.take_along_axis(x[window], indices, axis)


def concat(*xs: Array, axis: int) -> Array:
    return np.concatenate(xs, axis=axis)


def slice_(
    x: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None
) -> Array:
    where = ints(axes) if axes is not None else range(len(ints(starts)))
    window: list[slice] = [slice(None)] * x.ndim
    for axis, start, end, step in zip(
        where,
        ints(starts),
        ints(ends),
        ints(steps) if steps is not None else [1] * len(ints(starts)),
        strict=True,
    ):
        axis = axis_of(axis, x.ndim)
        window[axis] = python_slice(start, end, step, x.shape[axis])
    return x[tuple(window)]


def python_slice(start: int, end: int, step: int, size: int) -> slice:
    """ONNX's Slice along an axis of `size` as a Python slice."""
    if step == 0:
        raise Undefined("a step of 0")
    if step < 0 and end >= 2**31 - 1:
        raise Declined("a slice backwards to the end: nothing by the standard, everything by the runtime")
    start, end = (i + size if i < 0 else i for i in (start, end))
    if step > 0:
        return slice(min(max(start, 0), size), min(max(end, 0), size), step)
    start, end = min(max(start, 0), size - 1), min(max(end, -1), size - 1)
    return slice(start, None if end < 0 else end, step) if size else slice(0, 0)


def split(
    x: Array, sizes: Array | None = None, *, axis: int = 0, num_outputs: int | None = None
) -> list[Array]:
    axis = axis_of(axis, x.ndim)
    if sizes is not None:
        parts = ints(sizes)
    elif num_outputs:
        chunk = -(-x.shape[axis] // num_outputs)
        parts = [max(0, min(chunk, x.shape[axis] - i * chunk)) for i in range(num_outputs)]
    else:
        raise Declined("neither sizes nor num_outputs")
    if sum(parts) != x.shape[axis]:
        raise Undefined("the sizes do not add up")
    return np.split(x, np.cumsum(parts)[:-1], axis=axis)


def unsqueeze(x: Array, axes: Array) -> Array:
    rank = x.ndim + len(ints(axes))
    return np.expand_dims(x, tuple(axis_of(a, rank) for a in ints(axes)))


def squeeze(x: Array, axes: Array | None = None) -> Array:
    return np.squeeze(x, None if axes is None else tuple(axis_of(a, x.ndim) for a in ints(axes)))


def reshape(x: Array, target: Array, *, allowzero: int = 0) -> Array:
    wanted = ints(target)
    if not allowzero:
        wanted = [x.shape[i] if d == 0 else d for i, d in enumerate(wanted)]
    return np.reshape(x, wanted)


def flatten(x: Array, *, axis: int = 1) -> Array:
    axis = axis + x.ndim if axis < 0 else axis
    return np.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


def transpose(x: Array, *, perm: Sequence[int] | None = None) -> Array:
    return np.transpose(x, perm)


def expand(x: Array, target: Array) -> Array:
    return np.array(np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(ints(target)))))


def tile(x: Array, repeats: Array) -> Array:
    return np.tile(x, ints(repeats))


def constant_of_shape(target: Array, *, value: ir.TensorProtocol | None = None) -> Array:
    fill = np.zeros(1, np.float32) if value is None else value.numpy()
    return np.full(ints(target), fill.reshape(-1)[0], dtype=fill.dtype)


def range_(start: Array, limit: Array, delta: Array) -> Array:
    a, b, step = (x.reshape(()) for x in (start, limit, delta))
    count = range_length(a, b, step)
    if a.dtype.kind == "f":
        return (np.arange(count) * step.astype(np.float64) + a).astype(a.dtype)
    return (np.arange(count, dtype=a.dtype) * step + a).astype(a.dtype)


def range_length(start: Any, limit: Any, delta: Any) -> int:
    """How many elements Range gives."""
    if float(delta) == 0 or not np.isfinite([float(start), float(limit), float(delta)]).all():
        raise Undefined("a Range without end")
    if np.asarray(start).dtype.kind in "iu":
        return max(0, -(-(int(limit) - int(start)) // int(delta)))
    return max(0, math.ceil((float(limit) - float(start)) / float(delta)))


def scatter_nd(x: Array, indices: Array, updates: Array, *, reduction: str = "none") -> Array:
    if reduction != "none":
        raise Declined("a ScatterND that reduces")
    out = x.copy()
    depth = indices.shape[-1]
    flat, parts = indices.reshape(-1, depth), updates.reshape(-1, *x.shape[depth:])
    sizes = np.array(x.shape[:depth])
    if flat.size and ((flat < -sizes) | (flat >= sizes)).any():
        raise Undefined("an index is out of range")
    for where, part in zip(flat.tolist(), parts, strict=True):
        out[tuple(where)] = part
    return out


def gather_nd(x: Array, indices: Array, *, batch_dims: int = 0) -> Array:
    if batch_dims:
        raise Declined("GatherND over batches")
    sizes = np.array(x.shape[: indices.shape[-1]])
    if indices.size and ((indices < -sizes) | (indices >= sizes)).any():
        raise Undefined("an index is out of range")
    return np.asarray(x[tuple(np.moveaxis(indices, -1, 0))])


def where(condition: Array, x: Array, y: Array) -> Array:
    return np.where(condition.astype(bool), x, y)


def trilu(x: Array, k: Array | None = None, *, upper: int = 1) -> Array:
    diagonal = 0 if k is None else int(k.reshape(()))
    return np.triu(x, diagonal) if upper else np.tril(x, diagonal)


# --- numbers -----------------------------------------------------------------------------------------------


def cast(x: Array, *, to: int, saturate: int = 1, round_mode: str = "up") -> Array:
    dtype = ir.DataType(to)
    plain = "biuf"
    if x.dtype.kind not in plain or dtype == ir.DataType.STRING:
        raise Declined("a Cast from or to text, complex or a small float")
    target = dtype.numpy()
    if target.kind not in plain or (target.itemsize * 8 != dtype.bitwidth and dtype != ir.DataType.BOOL):
        raise Declined("a Cast to a small type")
    if x.dtype.kind == "f" and target.kind in "iu":
        limits = np.iinfo(target)
        if x.size and not ((x > float(limits.min) - 1) & (x < float(limits.max) + 1)).all():
            raise Declined("a number that the integer type does not hold")
    with np.errstate(all="ignore"):
        return x.astype(target)


def div(a: Array, b: Array) -> Array:
    if a.dtype.kind in "iu":
        if not b.all():
            raise Undefined("an integer division by 0")
        low = np.iinfo(a.dtype).min
        if low < 0 and ((a == low) & (b == -1)).any():
            raise Undefined("an integer division that overflows")
        quotient = a // b
        return np.asarray(quotient + ((quotient < 0) & (quotient * b != a)), dtype=a.dtype)
    with np.errstate(all="ignore"):
        return np.asarray(a / b)


def mod(a: Array, b: Array, *, fmod: int = 0) -> Array:
    if a.dtype.kind in "iu":
        if not b.all():
            raise Undefined("an integer remainder by 0")
    elif not fmod:
        raise Declined("Mod of floats without fmod")
    with np.errstate(all="ignore"):
        return np.asarray(np.fmod(a, b) if fmod else np.mod(a, b))


def _binary(function: Callable[..., Any]) -> Callable[..., Array]:
    def kernel(a: Array, b: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(function(a, b))

    return kernel


def _unary(function: Callable[..., Any]) -> Callable[..., Array]:
    def kernel(x: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(function(x), dtype=x.dtype)

    return kernel


def _variadic(function: Callable[..., Any]) -> Callable[..., Array]:
    def kernel(first: Array, *rest: Array) -> Array:
        result = first
        for x in rest:
            result = function(result, x)
        return np.asarray(result)

    return kernel


def _reduction(function: Callable[..., Any], exact: str) -> Callable[..., Array]:
    """A reduction for the dtype kinds in `exact`: sums of floats depend on the order, and are left to the
    runtime."""

    def kernel(
        x: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Array:
        if x.dtype.kind not in exact:
            raise Declined("a reduction that rounds")
        over: tuple[int, ...] | None = None
        if axes is not None and axes.size:
            over = tuple(axis_of(a, x.ndim) for a in ints(axes))
        elif noop_with_empty_axes:
            return x
        if x.size == 0 or (x.dtype.kind == "f" and np.isnan(x).any()):
            raise Declined("a reduction of nothing, or of NaN")
        return np.asarray(function(x, axis=over, keepdims=bool(keepdims)), dtype=x.dtype)

    return kernel


KERNELS: dict[str, Callable[..., Any]] = {
    "Shape": shape,
    "Size": lambda x: np.array(x.size, dtype=np.int64),
    "Identity": lambda x: x,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "ScatterND": scatter_nd,
    "Concat": concat,
    "Slice": slice_,
    "Split": split,
    "Unsqueeze": unsqueeze,
    "Squeeze": squeeze,
    "Reshape": reshape,
    "Flatten": flatten,
    "Transpose": transpose,
    "Expand": expand,
    "Tile": tile,
    "ConstantOfShape": constant_of_shape,
    "Range": range_,
    "Where": where,
    "Trilu": trilu,
    "Cast": cast,
    "Add": _binary(np.add),
    "Sub": _binary(np.subtract),
    "Mul": _binary(np.multiply),
    "Div": div,
    "Mod": mod,
    "Equal": _binary(np.equal),
    "Less": _binary(np.less),
    "LessOrEqual": _binary(np.less_equal),
    "Greater": _binary(np.greater),
    "GreaterOrEqual": _binary(np.greater_equal),
    "And": _binary(np.logical_and),
    "Or": _binary(np.logical_or),
    "Xor": _binary(np.logical_xor),
    "Not": lambda x: np.logical_not(x),
    "Neg": _unary(np.negative),
    "Abs": _unary(np.abs),
    "Floor": _unary(np.floor),
    "Ceil": _unary(np.ceil),
    "Round": _unary(np.rint),
    "Sqrt": _unary(np.sqrt),
    "Sign": _unary(np.sign),
    "Min": _variadic(np.minimum),
    "Max": _variadic(np.maximum),
    "ReduceProd": _reduction(np.prod, "iu"),
    "ReduceSum": _reduction(np.sum, "iu"),
    "ReduceMax": _reduction(np.max, "iuf"),
    "ReduceMin": _reduction(np.min, "iuf"),
}
