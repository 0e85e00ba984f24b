"""Indexing in terms of Gather, ScatterND, NonZero and TopK along the last axis.

GatherElements(x, i)      -> Gather(flat x, i * stride + offsets of the other axes)
GatherND(x, i, batch)     -> GatherND(x, i with the batch coordinates in front)
Compress(x, c)            -> Gather(x, NonZero(c))
TopK along another axis   -> transposed; of the smallest -> of -x, of integers -1 - x
ReverseSequence, time first -> transposed
Trilu(x, k)               -> Where(column - row against k, x, 0)
EyeLike(x)                -> a constant
Hardmax(x)                -> OneHot(ArgMax(x))
OneHot of floats          -> of integers
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.rewriting import Builder, NodeRule, Rule

INT64 = ir.DataType.INT64

Result = Any  # values, a reason, or None: see NodeRule.rewrite

# Constants made here are as large as the indices; beyond this they are refused rather than written.
LIMIT = 1 << 24


def vector(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


def linear(op: Builder, data: ir.Value, indices: ir.Value, axis: int) -> ir.Value | str:
    """Positions in flat `data` of what `indices` name along `axis`."""
    shape, extent = g.static_dims(data), g.static_dims(indices)
    if shape is None or extent is None:
        return _linear_of_free_sizes(op, data, indices, axis)
    if int(np.prod(extent)) > LIMIT:
        return f"more than {LIMIT} indices"
    axis %= len(shape)
    strides = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
    base = np.zeros(extent, np.int64)
    for i, length in enumerate(extent):
        if i != axis:
            line = np.arange(length, dtype=np.int64) * strides[i]
            base += line.reshape([-1 if j == i else 1 for j in range(len(extent))])
    along = from_start(op, indices, np.asarray(shape[axis], np.int64))
    return op.Add(op.Mul(along, np.asarray(strides[axis], np.int64)), base)  # type: ignore[no-any-return]


def from_start(op: Builder, indices: ir.Value, size: Any) -> Any:
    """Indices as int64, those from the end counted from the start."""
    wide = indices if indices.dtype == INT64 else op.Cast(indices, to=INT64)
    return op.Where(op.Less(wide, np.asarray(0, np.int64)), op.Add(wide, size), wide)


def _linear_of_free_sizes(op: Builder, data: ir.Value, indices: ir.Value, axis: int) -> ir.Value | str:
    """As `linear`, with strides and offsets computed beside the data."""
    rank = g.rank(data)
    if rank is None or g.rank(indices) != rank:
        return "the rank is not known"
    axis %= rank
    zero, one = np.array(0, np.int64), np.array(1, np.int64)
    have, named = op.Shape(data), op.Shape(indices)
    sizes = [op.Gather(have, np.array(i, np.int64), axis=0) for i in range(rank)]
    stride: Any = None
    places: Any = None
    for i in reversed(range(rank)):
        if i == axis:
            line = from_start(op, indices, sizes[i])
        else:
            steps = op.Range(zero, op.Gather(named, np.array(i, np.int64), axis=0), one)
            line = op.Reshape(steps, vector(*(-1 if j == i else 1 for j in range(rank))))
        offset = line if stride is None else op.Mul(line, stride)
        places = offset if places is None else op.Add(places, offset)
        stride = sizes[i] if stride is None else op.Mul(stride, sizes[i])
    return places  # type: ignore[no-any-return]


class Elements(NodeRule):
    """GatherElements(x, i) -> Gather(flat x, positions)"""

    ops = ("GatherElements",)

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        data, indices = node.inputs
        assert data is not None and indices is not None
        found = linear(op, data, indices, g.attribute(node, "axis", 0))
        if isinstance(found, str):
            return found
        return op.Gather(op.Reshape(data, vector(-1)), found, axis=0)


class BatchedGatherND(NodeRule):
    """GatherND(x, i, batch_dims=n) -> GatherND(x, Concat(batch coordinates, i))"""

    ops = ("GatherND",)

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        data, indices = node.inputs
        assert indices is not None
        batch = g.attribute(node, "batch_dims", 0)
        if not batch:
            return None
        extent = g.static_dims(indices)
        if extent is None:
            return "the shape of the indices is not known"
        if int(np.prod(extent)) > LIMIT:
            return f"more than {LIMIT} indices"
        grid = np.indices(extent[:-1], dtype=np.int64)[:batch]
        return op.GatherND(data, op.Concat(np.moveaxis(grid, 0, -1), indices, axis=-1))


class Compress(NodeRule):
    """Compress(x, c) -> Gather(x, NonZero(c))"""

    ops = ("Compress",)

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        x, condition = node.inputs
        axis = g.attribute(node, "axis")
        if axis is None:
            x, axis = op.Reshape(x, vector(-1)), 0
        return op.Gather(x, op.Reshape(op.NonZero(condition), vector(-1)), axis=axis)


def _opposite(op: Builder, x: ir.Value) -> ir.Value:
    """Numbers in the other order: -x, of integers -1 - x, since the lowest has no negative."""
    assert x.dtype is not None
    kind = x.dtype.numpy()
    made: ir.Value = op.Neg(x) if x.dtype.is_floating_point() else op.Sub(~np.zeros((), kind), x)
    return made


class TopKLast(NodeRule):
    """TopK(x, axis=a) -> Transpose(TopK(Transpose(x))); TopK(x, largest=0) -> -TopK(-x), of integers -1 - x"""

    ops = ("TopK",)

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        x, k = node.inputs
        rank = g.rank(x)
        assert x is not None
        if rank is None:
            return "the rank is not known"
        axis, largest = g.attribute(node, "axis", -1) % rank, g.attribute(node, "largest", 1)
        if axis == rank - 1 and largest:
            return None
        order = list(range(rank))
        order[axis], order[-1] = order[-1], order[axis]
        moved = x if axis == rank - 1 else op.Transpose(x, perm=order)
        signed = moved if largest else _opposite(op, moved)
        values, places = op.TopK(
            signed, k, axis=-1, largest=1, sorted=g.attribute(node, "sorted", 1), _outputs=2
        )
        if not largest:
            values = _opposite(op, values)
        if axis != rank - 1:
            values, places = op.Transpose(values, perm=order), op.Transpose(places, perm=order)
        return values, places


class TimeSecond(NodeRule):
    """ReverseSequence(x, batch_axis=1, time_axis=0) -> Transpose(ReverseSequence(Transpose(x)))"""

    ops = ("ReverseSequence",)

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        x, lengths = node.inputs
        rank = g.rank(x)
        if g.attribute(node, "time_axis", 0) == 1:
            return None
        if rank is None:
            return "the rank is not known"
        order = [1, 0, *range(2, rank)]
        turned = op.ReverseSequence(op.Transpose(x, perm=order), lengths, batch_axis=0, time_axis=1)
        return op.Transpose(turned, perm=order)


class Trilu(NodeRule):
    """Trilu(x, k) -> Where(column - row >= k, x, 0), <= k for the lower triangle"""

    ops = ("Trilu",)

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        x, k = (*node.inputs, None)[:2]
        dims = g.dims(x)
        assert x is not None and x.dtype is not None
        if dims is None:
            return "the rank is not known"
        upper = bool(g.attribute(node, "upper", 1))
        number = 0 if k is None else g.scalar(k)
        rows, columns = dims[-2:]
        zero = np.zeros((), x.dtype.numpy())
        if isinstance(rows, int) and isinstance(columns, int):
            if rows * columns > LIMIT:
                return f"a mask of more than {LIMIT} elements"
            apart = np.arange(columns, dtype=np.int64)[None, :] - np.arange(rows, dtype=np.int64)[:, None]
            if number is not None:
                return op.Where(apart >= number if upper else apart <= number, x, zero)
            difference: Any = op.constant(apart)
        else:
            start, step = np.asarray(0, np.int64), np.asarray(1, np.int64)
            ends = [op.Squeeze(op.Shape(x, start=a, end=b), vector(0)) for a, b in ((-2, -1), (-1, None))]
            row, column = (op.Range(start, end, step) for end in ends)
            difference = op.Sub(op.Unsqueeze(column, vector(0)), op.Unsqueeze(row, vector(1)))
        bound: Any = np.asarray(number, np.int64) if number is not None else op.Reshape(k, vector(1))
        mask = op.GreaterOrEqual(difference, bound) if upper else op.LessOrEqual(difference, bound)
        return op.Where(mask, x, zero)


class EyeLike(NodeRule):
    """EyeLike(x) -> a constant where the shape of x is known"""

    ops = ("EyeLike",)

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        x = node.inputs[0]
        shape = g.static_dims(x)
        dtype = node.outputs[0].dtype
        if shape is None or dtype is None:
            return "the shape is not known"
        if int(np.prod(shape)) > LIMIT:
            return f"more than {LIMIT} elements"
        return op.constant(np.eye(shape[0], shape[1], k=g.attribute(node, "k", 0)), dtype)


class Hardmax(NodeRule):
    """Hardmax(x) -> OneHot(ArgMax(x))"""

    ops = ("Hardmax",)

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        x = node.inputs[0]
        dims = g.dims(x)
        assert x is not None and x.dtype is not None
        if dims is None:
            return "the rank is not known"
        axis = g.attribute(node, "axis", -1) % len(dims)
        size = dims[axis]
        if not isinstance(size, int):
            return "the size of the axis is not known"
        place = op.ArgMax(x, axis=axis, keepdims=0)
        return op.OneHot(place, np.asarray(size, np.int64), np.array([0, 1], x.dtype.numpy()), axis=axis)


class IntegerOneHot(NodeRule):
    """OneHot(i, depth, values) -> OneHot(Cast(i), Cast(depth), values) where they are no integers"""

    ops = ("OneHot",)

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        wide = (ir.DataType.INT32, INT64)
        indices, depth, values = node.inputs
        assert indices is not None and depth is not None
        if indices.dtype in wide and depth.dtype in wide:
            return None
        places, count = (v if v.dtype in wide else op.Cast(v, to=INT64) for v in (indices, depth))
        return op.OneHot(places, count, values, axis=g.attribute(node, "axis", -1))


INDEXING: tuple[Rule, ...] = (
    Elements(),
    BatchedGatherND(),
    Compress(),
    TopKLast(),
    TimeSecond(),
    Trilu(),
    EyeLike(),
    Hardmax(),
    IntegerOneHot(),
)
