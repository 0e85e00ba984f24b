"""Pooling on channels-last tensors: AVERAGE_POOL_2D, MAX_POOL_2D; paddings are VALID or SAME by the rows."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from ai_edge_litert import schema_py_generated as s

from tapeout.targets.tflite.builder import Builder, Lowering
from tapeout.targets.tflite.lower.convolution import padding_of


def _pool(
    b: Builder, node: ir.Node, code: str, kernel_shape: Sequence[int], strides: Sequence[int], padding: int
) -> None:
    output, activation = b.fused(node)
    options = s.Pool2DOptionsT()
    options.padding = padding
    options.strideH, options.strideW = strides or (1, 1)
    options.filterHeight, options.filterWidth = kernel_shape
    options.fusedActivationFunction = activation
    b.operator(code, [node.inputs[0]], [output], options)


def average_pool_2d(
    b: Builder,
    node: ir.Node,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
) -> None:
    """X [N,H,W,C]; with SAME, TFLite averages over what lies inside: ONNX's count_include_pad=0."""
    _pool(b, node, "AVERAGE_POOL_2D", kernel_shape, strides, padding_of(pads, auto_pad))


def max_pool_2d(
    b: Builder,
    node: ir.Node,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    storage_order: int = 0,
) -> None:
    """X [N,H,W,C]."""
    _pool(b, node, "MAX_POOL_2D", kernel_shape, strides, padding_of(pads, auto_pad))


LOWERINGS: dict[str, Lowering] = {"AVERAGE_POOL_2D": average_pool_2d, "MAX_POOL_2D": max_pool_2d}
