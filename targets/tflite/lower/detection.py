"""Choosing boxes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from ai_edge_litert import schema_py_generated as s

from tapeout.sdk import graph as g
from tapeout.targets.tflite.builder import Builder, Lowering
from tapeout.targets.tflite.lower.indexing import scalar
from tapeout.targets.tflite.lower.shape import reshaped

INT32, INT64, FLOAT = ir.DataType.INT32, ir.DataType.INT64, ir.DataType.FLOAT
ALL = np.float32(1)


def non_max_suppression(b: Builder, node: ir.Node, *, center_point_box: int = 0) -> None:
    """The boxes [1,N,4] of one class that overlap none of a higher score. NON_MAX_SUPPRESSION_V4 gives as many
    places as there may be, and how many of them count."""
    boxes, scores, most, overlap, threshold = node.inputs
    assert boxes is not None and scores is not None and most is not None
    assert overlap is not None and threshold is not None
    count = (g.dims(boxes) or ("?", "?"))[1]
    flat, marks = b.tensor("boxes", [count, 4], FLOAT), b.tensor("scores", [count], FLOAT)
    reshaped(b, boxes, [-1, 4], flat)
    reshaped(b, scores, [-1], marks)
    number = g.scalar(most)
    limit = b.constant(np.int32(number)) if number is not None else scalar(b, b.as_int32(most), most, INT32)
    places = b.tensor("places", ["?" if number is None else int(number)], INT32)
    valid = b.tensor("valid", [], INT32)
    b.operator(
        "NON_MAX_SUPPRESSION_V4",
        [flat, marks, limit, _above(b, overlap), _plain(b, threshold)],
        [places, valid],
        s.NonMaxSuppressionV4OptionsT(),
    )
    size, kept = b.tensor("size", [1], INT32), b.tensor("kept", ["?"], INT32)
    reshaped(b, valid, [1], size)
    b.operator("SLICE", [places, b.ints([0]), size], [kept], s.SliceOptionsT())
    wide, column = b.tensor("kept", ["?"], INT64), b.tensor("kept", ["?", 1], INT64)
    b.operator("CAST", [kept], [wide], s.CastOptionsT())
    reshaped(b, wide, [-1, 1], column)
    b.operator(
        "PAD", [column, b.constant(np.array([[0, 0], [2, 0]], np.int32))], node.outputs, s.PadOptionsT()
    )


def _plain(b: Builder, value: ir.Value) -> int:
    number = g.scalar(value)
    return b.constant(np.float32(number)) if number is not None else scalar(b, b.index(value), value, FLOAT)


def _above(b: Builder, value: ir.Value) -> int:
    """The next float32 above a share of at least 0: TFLite drops a box at the share, ONNX above it. It takes none
    above 1 (boxes stand apart then, see passes/decompose/detection.py)."""
    number = g.scalar(value)
    if number is not None:
        return b.constant(np.minimum(np.nextafter(np.float32(number), np.float32(np.inf)), ALL))
    given = scalar(b, b.index(value), value, FLOAT)
    part, moved, bound, made = (b.tensor("share", [], FLOAT) for _ in range(4))
    # More than half of the last place, and less than one and a half.
    b.operator("MUL", [given, b.constant(np.float32(2**-24 * 1.0001))], [part], s.MulOptionsT())
    b.operator("ADD", [given, part], [moved], s.AddOptionsT())
    b.operator("MAXIMUM", [moved, b.constant(np.float32(1e-30))], [bound], s.MaximumMinimumOptionsT())
    b.operator("MINIMUM", [bound, b.constant(ALL)], [made], s.MaximumMinimumOptionsT())
    return made


LOWERINGS: dict[str, Lowering] = {"NON_MAX_SUPPRESSION_V4": non_max_suppression}
