"""Moving elements: reshaping, transposing, joining, cutting, padding, repeating.

TFLite reads shapes, axes and indices as int32. Where the shape of a result is known it is written as a
constant, else it is computed beside the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from ai_edge_litert import schema_py_generated as s

from tapeout.sdk import graph as g
from tapeout.targets.tflite.builder import TYPES, Builder, Lowering
from tapeout.targets.tflite.clusters import recorded

INT32 = ir.DataType.INT32


def shape_of(b: Builder, value: ir.Value | int, rank: int) -> int:
    """The shape of a tensor as an int32 vector computed at run time."""
    made = b.tensor("shape", [rank], INT32)
    options = s.ShapeOptionsT()
    options.outType = TYPES[INT32]
    b.operator("SHAPE", [value], [made], options)
    return made


def concatenate(b: Builder, parts: Sequence[int], length: int) -> int:
    """int32 vectors, one behind the other."""
    if len(parts) == 1:
        return parts[0]
    made = b.tensor("concat", [length], INT32)
    options = s.ConcatenationOptionsT()
    options.axis = 0
    b.operator("CONCATENATION", parts, [made], options)
    return made


def cut(b: Builder, vector: int, start: int, size: int) -> int:
    """`size` elements of an int32 vector."""
    made = b.tensor("cut", [size], INT32)
    b.operator("SLICE", [vector, b.ints([start]), b.ints([size])], [made], s.SliceOptionsT())
    return made


def reshaped(b: Builder, x: ir.Value | int, shape: int | Sequence[int], output: ir.Value | int) -> None:
    """RESHAPE to a constant shape (one entry may be -1) or to an int32 vector."""
    options = s.ReshapeOptionsT()
    options.newShape = [] if isinstance(shape, int) else list(shape)
    b.operator("RESHAPE", [x, shape if isinstance(shape, int) else b.ints(shape)], [output], options)


def _one_free(value: ir.Value) -> list[int] | None:
    """The shape of `value` with -1 for its one unknown dimension; None where more are unknown."""
    dims = g.dims(value)
    if dims is None:
        return None
    known = [d if isinstance(d, int) else -1 for d in dims]
    # Beside a zero, -1 says nothing.
    return known if known.count(-1) == 0 or (known.count(-1) == 1 and 0 not in known) else None


def reshape(b: Builder, node: ir.Node, *, allowzero: int = 0) -> None:
    """To a new shape; a 0 in it keeps the input's dimension unless `allowzero`."""
    x, shape = node.inputs
    output = node.outputs[0]
    assert x is not None and shape is not None
    static = _one_free(output)
    if static is not None:
        reshaped(b, x, static, output)
        return
    known = g.constant(shape)
    if known is not None:
        wanted = [int(d) for d in known]
        if allowzero or 0 not in wanted:
            reshaped(b, x, wanted, output)
            return
        source = shape_of(b, x, g.rank(x) or 0)
        parts: list[int] = []
        for i, d in enumerate(wanted):
            parts.append(cut(b, source, i, 1) if d == 0 else b.ints([d]))
        reshaped(b, x, concatenate(b, parts, len(wanted)), output)
        return
    target = b.as_int32(shape)
    if not allowzero:
        target = _keep_zeros(b, x, target, (g.static_dims(shape) or (0,))[0])
    reshaped(b, x, target, output)


def _keep_zeros(b: Builder, x: ir.Value, target: int, length: int) -> int:
    """`target` with each 0 replaced by the dimension of `x` at its place."""
    rank = g.rank(x) or 0
    source = shape_of(b, x, rank)
    if length < rank:
        source = cut(b, source, 0, length)
    elif length > rank:
        source = concatenate(b, [source, b.ints([0] * (length - rank))], length)
    is_zero = b.tensor("is_zero", [length], ir.DataType.BOOL)
    b.operator("EQUAL", [target, b.constant(np.int32(0))], [is_zero], s.EqualOptionsT())
    made = b.tensor("shape", [length], INT32)
    b.operator("SELECT_V2", [is_zero, source, target], [made], s.SelectV2OptionsT())
    return made


def squeeze(b: Builder, node: ir.Node) -> None:
    """Without dimensions of size 1."""
    x, axes = (*node.inputs, None)[:2]
    output = node.outputs[0]
    assert x is not None
    static = _one_free(output)
    if static is not None:
        reshaped(b, x, static, output)
        return
    known, rank = g.constant(axes), g.rank(x) or 0
    options = s.SqueezeOptionsT()
    options.squeezeDims = [] if known is None else [int(a) % rank for a in known.reshape(-1)]
    b.operator("SQUEEZE", [x], [output], options)


def unsqueeze(b: Builder, node: ir.Node) -> None:
    """With new dimensions of size 1."""
    x, axes = node.inputs
    output = node.outputs[0]
    assert x is not None
    static = _one_free(output)
    if static is not None:
        reshaped(b, x, static, output)
        return
    dims, known = g.dims(x), g.constant(axes)
    assert dims is not None and known is not None and x.dtype is not None
    current: ir.Value | int = x
    places = sorted(int(a) % (len(dims) + known.size) for a in known.reshape(-1))
    for i, at in enumerate(places):
        dims = (*dims[:at], 1, *dims[at:])
        made: ir.Value | int = output if i == len(places) - 1 else b.like(x, "unsqueeze", dims)
        b.operator("EXPAND_DIMS", [current, b.constant(np.int32(at))], [made], s.ExpandDimsOptionsT())
        current = made


def transpose(b: Builder, node: ir.Node, *, perm: Sequence[int] | None = None) -> None:
    """Axes in another order, reversed where none is given."""
    order = range(g.rank(node.inputs[0]) or 0)[::-1] if perm is None else perm
    b.operator("TRANSPOSE", [node.inputs[0], b.ints(order)], node.outputs, s.TransposeOptionsT())


def expand(b: Builder, node: ir.Node) -> None:
    """Broadcast to a shape, which is itself broadcast with the input's."""
    x, shape = node.inputs
    output = node.outputs[0]
    assert x is not None and shape is not None
    static = g.static_dims(output)
    if static is not None:
        wanted = b.ints(static)
    else:
        length = (g.static_dims(shape) or (0,))[0]
        wanted = b.tensor("shape", [max(length, g.rank(x) or 0)], INT32)
        b.operator("BROADCAST_ARGS", [shape_of(b, x, g.rank(x) or 0), b.as_int32(shape)], [wanted])
    b.operator("BROADCAST_TO", [x, wanted], [output], s.BroadcastToOptionsT(), version=2)


def tile(b: Builder, node: ir.Node) -> None:
    """Repeated along each axis."""
    x, repeats = node.inputs
    assert repeats is not None
    b.operator("TILE", [x, b.as_int32(repeats)], node.outputs, s.TileOptionsT())


def concat(b: Builder, node: ir.Node, *, axis: int) -> None:
    """One behind the other along an axis."""
    options = s.ConcatenationOptionsT()
    options.axis = axis % (g.rank(node.outputs[0]) or 1)
    b.operator("CONCATENATION", node.inputs, node.outputs, options)


def split(b: Builder, node: ir.Node, *, axis: int = 0, num_outputs: int | None = None) -> None:
    """Into parts along an axis: SPLIT where they are equal, else SPLIT_V. Without sizes the last part is what
    is left."""
    x, sizes = (*node.inputs, None)[:2]
    assert x is not None
    axis %= g.rank(x) or 1
    at = b.constant(np.int32(axis))
    count = len(node.outputs)
    known = g.constant(sizes)
    parts: int | None = None
    if sizes is None:
        length = (g.dims(x) or ())[axis]
        lengths = {(g.dims(v) or ())[axis] for v in node.outputs}
        if isinstance(length, int):
            size = -(-length // count)
            known = np.array([size] * (count - 1) + [length - size * (count - 1)])
        elif len(lengths) != 1 or "?" in lengths:
            parts = _shares(b, cut(b, shape_of(b, x, g.rank(x) or 0), axis, 1), count)
    if (
        parts is None
        and (sizes is None or known is not None)
        and (known is None or len(set(known.tolist())) == 1)
    ):
        options = s.SplitOptionsT()
        options.numSplits = count
        b.operator("SPLIT", [at, x], node.outputs, options)
        return
    if parts is None:
        parts = b.ints(known.tolist()) if known is not None else b.as_int32(sizes)  # type: ignore[arg-type]
    options_v = s.SplitVOptionsT()
    options_v.numSplits = count
    b.operator("SPLIT_V", [x, parts, at], node.outputs, options_v)


def _shares(b: Builder, length: int, count: int) -> int:
    """`count` parts of an axis: ceil(length / count) each, the last what is left."""

    def made(code: str, left: int, right: int, options: Any) -> int:
        result = b.tensor("part", [1], INT32)
        b.operator(code, [left, right], [result], options)
        return result

    rounded = made("ADD", length, b.ints([count - 1]), s.AddOptionsT())
    each = made("DIV", rounded, b.ints([count]), s.DivOptionsT())
    others = made("MUL", each, b.ints([count - 1]), s.MulOptionsT())
    last = made("SUB", length, others, s.SubOptionsT())
    return concatenate(b, [each] * (count - 1) + [last], count)


def slice_(b: Builder, node: ir.Node) -> None:
    """A window with steps; axes and steps are constant, starts and ends may be computed."""
    x, starts, ends, axes, steps = (*node.inputs, None, None)[:5]
    assert x is not None and starts is not None and ends is not None
    rank = g.rank(x) or 0
    count = (g.static_dims(starts) or (0,))[0]
    known = g.constant(axes)
    at = list(range(count)) if known is None else [int(a) % rank for a in known]
    known = g.constant(steps)
    stride = dict(zip(at, [1] * count if known is None else [int(v) for v in known], strict=True))
    begin, end = _spread(b, starts, at, rank), _spread(b, ends, at, rank)
    free = sum(1 << axis for axis in range(rank) if axis not in stride)
    options = s.StridedSliceOptionsT()
    options.beginMask, options.endMask = free, free | _past_end(ends, at, stride)
    strides = b.ints(stride.get(axis, 1) for axis in range(rank))
    b.operator("STRIDED_SLICE", [x, begin, end, strides], node.outputs, options)


def _past_end(ends: ir.Value, at: Sequence[int], stride: dict[int, int]) -> int:
    """The axes, as bits, whose constant end lies so far out that it means the last element there is."""
    known = g.constant(ends)
    limit = np.iinfo(np.int32)
    if known is None:
        return 0
    return sum(
        1 << axis
        for axis, end in zip(at, known.tolist(), strict=True)
        if (end >= limit.max and stride[axis] > 0) or (end <= limit.min and stride[axis] < 0)
    )


def _spread(b: Builder, values: ir.Value, at: Sequence[int], rank: int) -> int:
    """A vector over all axes from one over some of them; 0 elsewhere."""
    known = g.constant(values)
    if known is not None:
        limits = np.iinfo(np.int32)
        full = [0] * rank
        for axis, value in zip(at, np.clip(known, limits.min, limits.max).tolist(), strict=True):
            full[axis] = value
        return b.ints(full)
    vector = b.as_int32(values)
    if list(at) == list(range(rank)):
        return vector
    parts = [cut(b, vector, at.index(axis), 1) if axis in at else b.ints([0]) for axis in range(rank)]
    return concatenate(b, parts, rank)


def pad(b: Builder, node: ir.Node, *, mode: str = "constant") -> None:
    """More elements on either side of each axis: a number, or mirrored without the edge."""
    x, pads, value, axes = (*node.inputs, None, None)[:4]
    assert x is not None and pads is not None and x.dtype is not None
    rank = g.rank(x) or 0
    known, chosen = g.constant(pads), g.constant(axes)
    at = list(range(rank)) if axes is None or chosen is None else [int(a) % rank for a in chosen]
    if known is not None:
        table = np.zeros((rank, 2), np.int32)
        table[at] = known.reshape(2, -1).T
        amounts = b.constant(table, "pads")
    else:
        amounts = _computed_pads(b, b.as_int32(pads), at, rank)
    if mode == "reflect":
        options = s.MirrorPadOptionsT()
        options.mode = s.MirrorPadMode.REFLECT
        b.operator("MIRROR_PAD", [x, amounts], node.outputs, options)
        return
    number = g.scalar(value)
    if value is None or number == 0:
        b.operator("PAD", [x, amounts], node.outputs, s.PadOptionsT())
        return
    if number is not None:
        filler: ir.Value | int = filled(b, x, number)
    elif g.rank(value) == 0:
        filler = value
    else:
        filler = b.tensor("value", [], x.dtype)
        reshaped(b, value, [], filler)
    b.operator("PADV2", [x, amounts, filler], node.outputs, s.PadV2OptionsT())


def _computed_pads(b: Builder, pads: int, at: Sequence[int], rank: int) -> int:
    """Amounts of the axes `at`, first all before them, then all behind, as TFLite's table [rank, 2]."""
    pairs, turned = b.tensor("pads", [2, len(at)], INT32), b.tensor("pads", [len(at), 2], INT32)
    reshaped(b, pads, [2, len(at)], pairs)
    b.operator("TRANSPOSE", [pairs, b.ints([1, 0])], [turned], s.TransposeOptionsT())
    if list(at) == list(range(rank)):
        return turned
    wide, table = turned, b.tensor("pads", [rank, 2], INT32)
    if len(at) < rank:
        wide = b.tensor("pads", [len(at) + 1, 2], INT32)
        options = s.ConcatenationOptionsT()
        options.axis = 0
        b.operator("CONCATENATION", [turned, b.constant(np.zeros((1, 2), np.int32))], [wide], options)
    rows = [at.index(axis) if axis in at else len(at) for axis in range(rank)]
    b.operator("GATHER", [wide, b.ints(rows)], [table], s.GatherOptionsT())
    return table


def filled(b: Builder, like: ir.Value, number: float) -> int:
    """A number as the node that is being lowered takes the tensor `like`."""
    stored = b.storage(like)
    assert stored.dtype is not None
    if not stored.quantized:
        return b.constant(np.asarray(number, stored.dtype.numpy()))
    scale, zero = g.scalar(stored.scale), g.scalar(stored.zero_point) or 0
    limits = np.iinfo(stored.dtype.numpy())
    code = np.clip(np.rint(number / (scale or 1.0)) + zero, limits.min, limits.max)
    made = b.constant(code.astype(stored.dtype.numpy()), "filler", fresh=True)
    b.graph.tensors[made].quantization = recorded(stored)
    return made


LOWERINGS: dict[str, Lowering] = {
    "RESHAPE": reshape,
    "SQUEEZE": squeeze,
    "UNSQUEEZE": unsqueeze,
    "TRANSPOSE": transpose,
    "BROADCAST_TO": expand,
    "TILE": tile,
    "CONCATENATION": concat,
    "SPLIT": split,
    "STRIDED_SLICE": slice_,
    "PAD": pad,
}
