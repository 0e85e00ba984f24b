"""Comparisons and logic."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from ai_edge_litert import schema_py_generated as s

from tapeout.sdk import graph as g
from tapeout.targets.tflite.builder import Builder, Lowering

_OPTIONS: dict[str, Any] = {
    "EQUAL": s.EqualOptionsT,
    "NOT_EQUAL": s.NotEqualOptionsT,
    "LESS": s.LessOptionsT,
    "LESS_EQUAL": s.LessEqualOptionsT,
    "GREATER": s.GreaterOptionsT,
    "GREATER_EQUAL": s.GreaterEqualOptionsT,
    "LOGICAL_AND": s.LogicalAndOptionsT,
    "LOGICAL_OR": s.LogicalOrOptionsT,
    "LOGICAL_NOT": s.LogicalNotOptionsT,
}


def logical(code: str) -> Lowering:
    """An operator with the node's own inputs and output."""

    def lower(b: Builder, node: ir.Node) -> None:
        b.operator(code, node.inputs, node.outputs, _OPTIONS[code]())

    return lower


def is_nan(b: Builder, node: ir.Node) -> None:
    """x != x."""
    x = node.inputs[0]
    b.operator("NOT_EQUAL", [x, x], node.outputs, s.NotEqualOptionsT())


def is_inf(b: Builder, node: ir.Node, *, detect_negative: int = 1, detect_positive: int = 1) -> None:
    """|x| == inf, x == inf or x == -inf, as asked; x != x and x == x where neither sign counts."""
    x = node.inputs[0]
    assert x is not None
    if detect_negative and detect_positive:
        size = b.tensor("abs", g.dims(x), ir.DataType.FLOAT)
        b.operator("ABS", [x], [size], s.AbsOptionsT())
        b.operator("EQUAL", [size, b.constant(np.float32(np.inf))], node.outputs, s.EqualOptionsT())
    elif detect_negative or detect_positive:
        limit = np.float32(np.inf if detect_positive else -np.inf)
        b.operator("EQUAL", [x, b.constant(limit)], node.outputs, s.EqualOptionsT())
    else:
        b.operator("LESS", [x, b.constant(np.float32(-np.inf))], node.outputs, s.LessOptionsT())


LOWERINGS: dict[str, Lowering] = {
    **{code: logical(code) for code in _OPTIONS},
    "IS_NAN": is_nan,
    "IS_INF": is_inf,
}
