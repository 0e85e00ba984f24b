"""One function for each name that rows lower to; each appends to the plan what its node becomes."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from tapeout.targets.nvidia.lower import attended, elementwise, moving, products, reductions, windows
from tapeout.targets.nvidia.lower.builder import Builder

LOWERINGS: dict[str, Callable[[Builder, ir.Node], None]] = {
    "map": elementwise.element_wise,
    "view": moving.view,
    "transpose": moving.transpose,
    "expand": moving.expand,
    "tile": moving.tile,
    "concat": moving.concat,
    "split": moving.split,
    "slice": moving.slice_,
    "pad": moving.pad,
    "depth_to_space": moving.depth_to_space,
    "space_to_depth": moving.space_to_depth,
    "gather": moving.gather,
    "gather_elements": moving.gather_elements,
    "gather_nd": moving.gather_nd,
    "sizes": moving.sizes,
    "fill": moving.filled,
    "reduce": reductions.reduce,
    "arg": reductions.arg,
    "softmax": reductions.softmax,
    "normalize": reductions.normalize,
    "matmul": products.matmul,
    "gemm": products.gemm,
    "attention": attended.attention,
    "conv": windows.convolution,
    "pool": windows.pool,
}
