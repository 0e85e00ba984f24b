"""Resize: what of it TFLite's kernels compute exactly; the rest is written out by gathers and products.

Resize(x, nearest)        -> Gather per axis     where TFLite would choose other neighbours
Resize(x, linear, cubic)  -> MatMul per axis     where TFLite would weigh them differently
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.rewriting import Rewrite
from tapeout.passes.decompose.resizing import Axis, ResizeByMatMul, axes_of, nearest

F = np.float32


def chosen(axis: Axis, coordinates: str) -> np.ndarray[Any, Any]:
    """For each result along `axis` the source index that TFLite's RESIZE_NEAREST_NEIGHBOR takes."""
    aligned, centred = coordinates == "align_corners", coordinates in ("half_pixel", "pytorch_half_pixel")
    size, out = (axis.size - 1, axis.out - 1) if aligned and axis.out > 1 else (axis.size, axis.out)
    scale = F(size) / F(out)
    position = (np.arange(axis.out, dtype=F) + F(0.5 if centred else 0)) * scale
    index = np.floor(position + F(0.5)) if aligned else np.floor(position)
    clipped: np.ndarray[Any, Any] = np.clip(index, 0, axis.size - 1).astype(np.int64)
    return clipped


def native(node: ir.Node) -> bool | None:
    """True where a RESIZE of TFLite gives what `node` gives once height and width are its only axes; None
    where sizes are not known."""
    axes = axes_of(node)
    if isinstance(axes, str):
        return None
    coordinates = g.attribute(node, "coordinate_transformation_mode", "half_pixel")
    mode = g.attribute(node, "mode", "nearest")
    if coordinates not in ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"):
        return False
    if mode == "nearest":
        rounding = g.attribute(node, "nearest_mode", "round_prefer_floor")
        return all(np.array_equal(nearest(a, coordinates, rounding), chosen(a, coordinates)) for a in axes)
    # TFLite goes by the ratio of the sizes, whatever scale is stated.
    if mode != "linear" or not all(F(a.scale) == F(a.out) / F(a.size) for a in axes):
        return False
    if g.attribute(node, "antialias", 0) and any(a.out < a.size for a in axes):
        return False
    return coordinates != "pytorch_half_pixel" or all(a.out > 1 or a.size == 1 for a in axes)


def planar(node: ir.Node, axes: tuple[int, int] = (1, 2)) -> bool | None:
    """True where only `axes` of a tensor of rank 4 are resized."""
    found = axes_of(node)
    if isinstance(found, str):
        return None
    return g.rank(node.inputs[0]) == 4 and all(a.axis in axes for a in found)


def taken(node: ir.Node) -> bool:
    """True where `node`, on channels first or last, becomes a RESIZE of TFLite."""
    return bool(
        node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.FLOAT and native(node)
    ) and bool(planar(node) or planar(node, (2, 3)))


Resizing = Rewrite("tflite-resize", (ResizeByMatMul(unless=taken),))
