"""Reductions along axes, positions of extremes, running sums."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from ai_edge_litert import schema_py_generated as s

from tapeout.sdk import graph as g
from tapeout.targets.tflite.builder import TYPES, Builder, Lowering


def reduce(code: str) -> Lowering:
    """A reduction; without axes it goes over all of them."""

    def lower(b: Builder, node: ir.Node, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> None:
        x, axes = (*node.inputs, None)[:2]
        known = g.constant(axes)
        if axes is None or (known is not None and known.size == 0):
            over = b.ints(() if noop_with_empty_axes else range(g.rank(x) or 0), "axes")
        else:
            over = b.as_int32(axes)
        options = s.ReducerOptionsT()
        options.keepDims = bool(keepdims)
        b.operator(code, [x, over], node.outputs, options)

    return lower


def position(code: str) -> Lowering:
    """Where the extreme is along an axis, the first one of equals."""

    def lower(
        b: Builder, node: ir.Node, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
    ) -> None:
        x, output = node.inputs[0], node.outputs[0]
        rank = g.rank(x) or 0
        at = axis % rank
        dims = g.dims(output)
        made: ir.Value | int = output
        if keepdims:
            made = b.tensor(
                "position", None if dims is None else (*dims[:at], *dims[at + 1 :]), ir.DataType.INT64
            )
        options = s.ArgMaxOptionsT() if code == "ARG_MAX" else s.ArgMinOptionsT()
        options.outputType = TYPES[ir.DataType.INT64]
        b.operator(code, [x, b.constant(np.int32(at))], [made], options)
        if keepdims:
            b.operator("EXPAND_DIMS", [made, b.constant(np.int32(at))], [output], s.ExpandDimsOptionsT())

    return lower


def cumsum(b: Builder, node: ir.Node, *, exclusive: int = 0, reverse: int = 0) -> None:
    """Running sums along an axis."""
    x, axis = node.inputs
    assert axis is not None
    options = s.CumsumOptionsT()
    options.exclusive, options.reverse = bool(exclusive), bool(reverse)
    known = g.scalar(axis)
    at = b.constant(np.int32(known)) if known is not None else b.as_int32(axis)
    b.operator("CUMSUM", [x, at], node.outputs, options)


_REDUCTIONS = ("SUM", "MEAN", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "REDUCE_ANY", "REDUCE_ALL")

LOWERINGS: dict[str, Lowering] = {
    **{code: reduce(code) for code in _REDUCTIONS},
    "ARG_MAX": position("ARG_MAX"),
    "ARG_MIN": position("ARG_MIN"),
    "CUMSUM": cumsum,
}
