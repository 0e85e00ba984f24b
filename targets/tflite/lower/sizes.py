"""Shapes as data: sizes of tensors, and what is filled or counted by them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from ai_edge_litert import schema_py_generated as s

from tapeout.sdk import graph as g
from tapeout.targets.tflite.builder import TYPES, Builder, Lowering
from tapeout.targets.tflite.lower.shape import reshaped


def shape(b: Builder, node: ir.Node, *, start: int = 0, end: int | None = None) -> None:
    """The shape, or a part of it, as int64."""
    x, output = node.inputs[0], node.outputs[0]
    rank = g.rank(x) or 0
    first, last, _ = slice(start, end).indices(rank)
    options = s.ShapeOptionsT()
    options.outType = TYPES[ir.DataType.INT64]
    if (first, last) == (0, rank):
        b.operator("SHAPE", [x], [output], options)
        return
    whole = b.tensor("shape", [rank], ir.DataType.INT64)
    b.operator("SHAPE", [x], [whole], options)
    sizes = [b.ints([first]), b.ints([max(last - first, 0)])]
    b.operator("SLICE", [whole, *sizes], [output], s.SliceOptionsT())


def size(b: Builder, node: ir.Node) -> None:
    """The number of elements as int64."""
    x = node.inputs[0]
    whole = b.tensor("shape", [g.rank(x) or 0], ir.DataType.INT64)
    options = s.ShapeOptionsT()
    options.outType = TYPES[ir.DataType.INT64]
    b.operator("SHAPE", [x], [whole], options)
    reducer = s.ReducerOptionsT()
    reducer.keepDims = False
    b.operator("REDUCE_PROD", [whole, b.ints([0])], node.outputs, reducer)


def fill(b: Builder, node: ir.Node, *, value: Any = None) -> None:
    """A tensor of one number; float32 zeros where none is given."""
    dims = node.inputs[0]
    assert dims is not None
    number = np.float32(0) if value is None else np.asarray(value).reshape(())
    b.operator("FILL", [b.as_int32(dims), b.constant(number)], node.outputs, s.FillOptionsT())


def range_(b: Builder, node: ir.Node) -> None:
    """start, start + delta, ... before limit."""
    ends: list[ir.Value | int] = []
    for value in node.inputs:
        assert value is not None and value.dtype is not None
        number = g.scalar(value)
        if number is not None:
            ends.append(b.constant(np.asarray(number, value.dtype.numpy())))
        elif g.rank(value) == 0:
            ends.append(value)
        else:
            made = b.tensor("end", [], value.dtype)
            reshaped(b, value, [], made)
            ends.append(made)
    b.operator("RANGE", ends, node.outputs, s.RangeOptionsT())


LOWERINGS: dict[str, Lowering] = {
    "SHAPE": shape,
    "SIZE": size,
    "FILL": fill,
    "RANGE": range_,
}
