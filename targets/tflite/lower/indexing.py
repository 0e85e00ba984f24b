"""Gathering, scattering, selecting by position.

TFLite refuses negative indices: constant ones are wrapped here, computed ones by SELECT_V2 at run time unless
they cannot be negative.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from ai_edge_litert import schema_py_generated as s

from tapeout.sdk import graph as g
from tapeout.targets.tflite.builder import TYPES, Builder, Lowering
from tapeout.targets.tflite.lower.shape import reshaped, shape_of

INT32, INT64, BOOL = ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL

# Makers of integers that are never below zero.
_COUNTS = ("Shape", "Size", "ArgMax", "ArgMin", "NonZero")
_MOVES = (
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Identity",
    "Slice",
    "Expand",
    "Gather",
    "Flatten",
    "Tile",
)


def never_negative(value: ir.Value) -> bool:
    """True where what makes an integer tensor shows that no element is below zero."""
    array = g.constant(value)
    if array is not None:
        return bool(np.all(array >= 0))
    node = value.producer()
    if node is None or node.domain != "":
        return False
    if node.op_type in _COUNTS or (node.op_type == "TopK" and value is node.outputs[1]):
        return True
    if node.op_type in _MOVES:
        return node.inputs[0] is not None and never_negative(node.inputs[0])
    if node.op_type == "Cast":
        source = node.inputs[0]
        return source is not None and (
            source.dtype in (ir.DataType.UINT8, ir.DataType.UINT16, BOOL)
            or (source.dtype in (INT32, INT64) and value.dtype == INT64 and never_negative(source))
        )
    if node.op_type in ("Concat", "Add", "Mul", "Max", "Where", "Min"):
        inputs = node.inputs[1:] if node.op_type == "Where" else node.inputs
        return all(v is not None and never_negative(v) for v in inputs)
    return False


def wrapped(
    b: Builder, indices: ir.Value, size: int | None, sizes: ir.Value | None, axis: int = 0
) -> ir.Value | int:
    """`indices` with `size` added to the negative ones; an unknown `size` is read from `sizes`."""
    array = g.constant(indices)
    if never_negative(indices):
        return indices
    assert indices.dtype is not None
    if array is not None and size is not None:
        return b.constant(
            np.where(array < 0, array + size, array).astype(array.dtype), indices.name or "indices"
        )
    if size is not None:
        limit: int = b.constant(np.asarray(size, indices.dtype.numpy()))
    else:
        assert sizes is not None
        limit = _dimension(b, sizes, axis, indices.dtype)
    return _wrap(b, indices, limit)


def _wrap(b: Builder, indices: ir.Value | int, limit: int) -> int:
    tensor = b.graph.tensors[indices if isinstance(indices, int) else b.index(indices)]
    dtype = next(d for d, t in TYPES.items() if t == tensor.type)
    dims = tensor.signature or tensor.shape
    zero = b.constant(np.asarray(0, dtype.numpy()))
    below, moved, made = (
        b.tensor("below", dims, BOOL),
        b.tensor("moved", dims, dtype),
        b.tensor("indices", dims, dtype),
    )
    b.operator("LESS", [indices, zero], [below], s.LessOptionsT())
    b.operator("ADD", [indices, limit], [moved], s.AddOptionsT())
    b.operator("SELECT_V2", [below, moved, indices], [made], s.SelectV2OptionsT())
    return made


def _dimension(b: Builder, value: ir.Value, axis: int, dtype: ir.DataType) -> int:
    """One dimension of a tensor as a scalar computed at run time."""
    rank = g.rank(value) or 0
    options = s.ShapeOptionsT()
    options.outType = TYPES[dtype]
    whole, made = b.tensor("shape", [rank], dtype), b.tensor("dimension", [], dtype)
    b.operator("SHAPE", [value], [whole], options)
    gather_options = s.GatherOptionsT()
    gather_options.axis, gather_options.batchDims = 0, 0
    b.operator("GATHER", [whole, b.constant(np.int32(axis))], [made], gather_options)
    return made


def gather(b: Builder, node: ir.Node, *, axis: int = 0) -> None:
    """Slices along an axis at indices of any rank."""
    x, indices = node.inputs
    assert x is not None and indices is not None
    dims = g.dims(x) or ()
    at = axis % len(dims)
    size = dims[at]
    options = s.GatherOptionsT()
    options.axis, options.batchDims = at, 0
    where = wrapped(b, indices, size if isinstance(size, int) else None, x, at)
    b.operator("GATHER", [x, where], node.outputs, options)


def embedding_lookup(b: Builder, node: ir.Node, *, axis: int = 0) -> None:
    """Rows of a table of codes as real numbers. The operator takes a vector of int32, at least 0."""
    table, indices = node.inputs
    assert table is not None and indices is not None
    size = (g.static_dims(table) or (0,))[0]
    where = wrapped(b, indices, size, table, 0)
    known = g.static_dims(indices)
    dims = g.dims(indices) or ()
    if b.graph.tensors[where if isinstance(where, int) else b.index(where)].type != TYPES[INT32]:
        made = b.tensor("indices", dims, INT32)
        b.operator("CAST", [where], [made], s.CastOptionsT())
        where = made
    if len(dims) == 1:
        b.operator("EMBEDDING_LOOKUP", [where, table], node.outputs)
        return
    count = "?" if known is None else int(np.prod(known))
    flat = b.tensor("indices", [count], INT32)
    reshaped(b, where, [-1], flat)
    width = (g.static_dims(table) or (0, 0))[1]
    rows = b.tensor("rows", [count, width], ir.DataType.FLOAT)
    b.operator("EMBEDDING_LOOKUP", [flat, table], [rows])
    free = [d if isinstance(d, int) else -1 for d in dims]
    if free.count(-1) <= 1:
        reshaped(b, rows, [*free, width], node.outputs[0])
        return
    shape = shape_of(b, indices, len(dims))
    whole = b.tensor("shape", [len(dims) + 1], INT32)
    options = s.ConcatenationOptionsT()
    options.axis = 0
    b.operator("CONCATENATION", [shape, b.ints([width])], [whole], options)
    reshaped(b, rows, whole, node.outputs[0])


def _wrapped_rows(b: Builder, indices: ir.Value, x: ir.Value) -> ir.Value | int:
    """Index tuples in the last axis, each wrapped by its own dimension of `x`."""
    if never_negative(indices):
        return indices
    depth = (g.dims(indices) or ())[-1]
    dims = g.dims(x) or ()
    assert isinstance(depth, int) and indices.dtype is not None
    leading = dims[:depth]
    if all(isinstance(d, int) for d in leading):
        sizes = np.array(leading, indices.dtype.numpy())
        array = g.constant(indices)
        if array is not None:
            return b.constant(np.where(array < 0, array + sizes, array).astype(array.dtype), "indices")
        return _wrap(b, indices, b.constant(sizes))
    options = s.ShapeOptionsT()
    options.outType = TYPES[indices.dtype]
    whole, part = b.tensor("shape", [len(dims)], indices.dtype), b.tensor("sizes", [depth], indices.dtype)
    b.operator("SHAPE", [x], [whole], options)
    b.operator("SLICE", [whole, b.ints([0]), b.ints([depth])], [part], s.SliceOptionsT())
    return _wrap(b, indices, part)


def gather_nd(b: Builder, node: ir.Node, *, batch_dims: int = 0) -> None:
    """Slices at index tuples."""
    x, indices = node.inputs
    assert x is not None and indices is not None
    b.operator("GATHER_ND", [x, _wrapped_rows(b, indices, x)], node.outputs, s.GatherNdOptionsT())


def scatter_nd(b: Builder, node: ir.Node, *, reduction: str = "none") -> None:
    """Slices replaced (or added) at index tuples. TFLite's SCATTER_ND adds into zeros; for a replacement a
    second one counts the updates, and where there is one it is taken."""
    x, indices, updates = node.inputs
    output = node.outputs[0]
    assert x is not None and indices is not None and updates is not None and x.dtype is not None
    rows = _wrapped_rows(b, indices, x)
    if g.constant(indices) is not None:
        tensor = b.graph.tensors[rows] if isinstance(rows, int) else None
        if tensor is None or tensor.type != TYPES[INT32]:
            array = g.constant(indices)
            assert array is not None
            sizes = np.array((g.static_dims(x) or (0,) * array.shape[-1])[: array.shape[-1]])
            rows = b.constant(np.where(array < 0, array + sizes, array).astype(np.int32), "indices")
    elif indices.dtype != INT32:
        made = b.tensor("indices", g.dims(indices), INT32)
        b.operator("CAST", [rows], [made], s.CastOptionsT())
        rows = made
    shape = g.static_dims(x)
    sizes_ = b.ints(shape) if shape is not None else shape_of(b, x, g.rank(x) or 0)
    placed = b.tensor("placed", g.dims(x), x.dtype)
    b.operator("SCATTER_ND", [rows, updates, sizes_], [placed], s.ScatterNdOptionsT())
    if reduction == "add":
        b.operator("ADD", [x, placed], [output], s.AddOptionsT())
        return
    dims = g.static_dims(updates)
    ones, count = b.tensor("ones", g.dims(updates), INT32), b.tensor("count", g.dims(x), INT32)
    there = b.tensor("there", g.dims(x), BOOL)
    shape_ = b.ints(dims) if dims is not None else shape_of(b, updates, g.rank(updates) or 0)
    b.operator("FILL", [shape_, b.constant(np.int32(1))], [ones], s.FillOptionsT())
    b.operator("SCATTER_ND", [rows, ones, sizes_], [count], s.ScatterNdOptionsT())
    b.operator("GREATER", [count, b.constant(np.int32(0))], [there], s.GreaterOptionsT())
    b.operator("SELECT_V2", [there, placed, x], [output], s.SelectV2OptionsT())


def one_hot(b: Builder, node: ir.Node, *, axis: int = -1) -> None:
    """On where the index counts from 0 (or back from the depth), off elsewhere."""
    indices, depth, values = node.inputs
    assert indices is not None and depth is not None and values is not None and values.dtype is not None
    number = g.scalar(depth)
    size = b.constant(np.int32(number)) if number is not None else scalar(b, b.as_int32(depth), depth, INT32)
    known = g.constant(values)
    pair: list[int] = []
    for i in range(2):
        if known is not None:
            pair.append(b.constant(known[i]))
        else:
            part, made = b.tensor("value", [1], values.dtype), b.tensor("value", [], values.dtype)
            b.operator("SLICE", [values, b.ints([i]), b.ints([1])], [part], s.SliceOptionsT())
            reshaped(b, part, [], made)
            pair.append(made)
    off, on = pair
    if never_negative(indices):
        places: int = b.as_int32(indices)
    else:
        places = _wrap(b, b.as_int32(indices), size)
    options = s.OneHotOptionsT()
    rank = g.rank(node.outputs[0]) or 1
    options.axis = axis % rank
    b.operator("ONE_HOT", [places, size, on, off], node.outputs, options)


def scalar(b: Builder, index: int, value: ir.Value, dtype: ir.DataType) -> int:
    if g.rank(value) == 0:
        return index
    made = b.tensor("scalar", [], dtype)
    reshaped(b, index, [], made)
    return made


def top_k(b: Builder, node: ir.Node, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> None:
    """The largest along the last axis, in falling order, and where they were."""
    x, k = node.inputs
    assert k is not None
    values, places = node.outputs
    number = g.scalar(k)
    count = b.constant(np.int32(number)) if number is not None else scalar(b, b.as_int32(k), k, INT32)
    narrow = b.tensor("places", g.dims(places), INT32)
    b.operator("TOPK_V2", [x, count], [values, narrow], s.TopKV2OptionsT())
    if places.uses() or places.is_graph_output():
        b.operator("CAST", [narrow], [places], s.CastOptionsT())


def non_zero(b: Builder, node: ir.Node) -> None:
    """Where elements differ from zero, one column per element."""
    x = node.inputs[0]
    output = node.outputs[0]
    dims = g.dims(output) or ("?", "?")
    rows = b.tensor("rows", (dims[1], dims[0]), INT64)
    b.operator("WHERE", [x], [rows], s.WhereOptionsT())
    b.operator("TRANSPOSE", [rows, b.ints([1, 0])], [output], s.TransposeOptionsT())


def reverse_sequence(b: Builder, node: ir.Node, *, batch_axis: int = 1, time_axis: int = 0) -> None:
    """The first `lengths[i]` steps of each sequence in reverse."""
    options = s.ReverseSequenceOptionsT()
    options.seqDim, options.batchDim = time_axis, batch_axis
    b.operator("REVERSE_SEQUENCE", node.inputs, node.outputs, options)


LOWERINGS: dict[str, Lowering] = {
    "GATHER": gather,
    "EMBEDDING_LOOKUP": embedding_lookup,
    "GATHER_ND": gather_nd,
    "SCATTER_ND": scatter_nd,
    "ONE_HOT": one_hot,
    "TOPK_V2": top_k,
    "NON_ZERO": non_zero,
    "REVERSE_SEQUENCE": reverse_sequence,
}
