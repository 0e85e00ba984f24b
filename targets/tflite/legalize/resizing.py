"""Resize: what of it TFLite's kernels compute exactly; the rest is written out by gathers and products.

Resize(x, nearest)        -> Gather per axis     where TFLite would choose other neighbours
Resize(x, linear, cubic)  -> MatMul per axis     where TFLite would weigh them differently
                          -> taps of Gather      the same, of a size that is known at run time only
Resize(x, linear, pytorch_half_pixel) -> Resize(Slice(x, 0, Where(out > 1, size, 1)), half_pixel)
                                                 where the result may turn out to be one element wide

Of free sizes TFLite chooses the same neighbours for every size only if the scale is a whole number s with
fl(s * fl(1/s)) = 1 in float32 (41 is the first without): then i * fl(1/s) is not below i/s at its multiples,
and everywhere else i/s is farther from a whole number than rounding reaches, up to results 2**21 long.
Interpolation is continuous: TFLite's positions i * fl(in/out) and the source's fl(i / fl(out/in)) differ by
rounding alone, by nothing where the ratio is a power of two. On noise 1000 elements wide, enlarged by 3, ONNX
Runtime is 3e-5 of the largest value away from the exact result, TFLite 6e-5; at 64 1.4e-6 and 2.8e-6.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from tapeout.passes.decompose.computed_resizing import Given, given
from tapeout.passes.decompose.resizing import UNKNOWN, Axis, ResizeByMatMul, axes_of, nearest
from tapeout.sdk import Builder, NodeRule, Rewrite
from tapeout.sdk import graph as g

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
        return _native_of_free_sizes(node) if axes in UNKNOWN else None
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


def _native_of_free_sizes(node: ir.Node) -> bool | None:
    """As `native`, for every size that the axes may have."""
    told = given(node)
    if isinstance(told, str):
        return None
    mode, coordinates = g.attribute(node, "mode", "nearest"), _coordinates(node)
    if told.scales is None and (told.sizes is None or mode == "nearest"):
        return False
    if told.scales is not None and not all(s >= 1 and s == int(s) for s in told.scales):
        return False
    if mode == "nearest":
        if coordinates in ("half_pixel", "pytorch_half_pixel"):  # never at the middle: (2i + 1) / 2s
            near = g.attribute(node, "nearest_mode", "round_prefer_floor").startswith("round")
        else:
            near = coordinates == "asymmetric" and g.attribute(node, "nearest_mode") == "floor"
        return near and all(F(s) * (F(1) / F(s)) == 1 for s in told.scales or ())
    if mode != "linear" or coordinates not in (
        "half_pixel",
        "pytorch_half_pixel",
        "asymmetric",
        "align_corners",
    ):
        return False
    if told.scales is None:
        if g.attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch" or g.attribute(
            node, "antialias", 0
        ):
            return False
        return coordinates != "pytorch_half_pixel" or not _single(node, told)
    return True


def _coordinates(node: ir.Node) -> str:
    found: str = g.attribute(node, "coordinate_transformation_mode", "half_pixel")
    return found


def _single(node: ir.Node, told: Given) -> list[int]:
    """The axes of which the result may be one element wide where the input is not."""
    x, y = g.dims(node.inputs[0]) or (), g.dims(node.outputs[0]) or ()
    return [a for a in told.axes if x[a] != 1 and (y[a] == 1 or not isinstance(y[a], int))]


class TorchHalfPixels(NodeRule):
    """Resize(x, linear, pytorch_half_pixel) -> Resize(Slice(x, 0, Where(out > 1, size, 1)), half_pixel)"""

    ops: ClassVar = ("Resize",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        told = given(node)
        if isinstance(told, str) or told.sizes is None or _coordinates(node) != "pytorch_half_pixel":
            return None
        if g.attribute(node, "mode", "nearest") != "linear" or g.attribute(node, "antialias", 0):
            return None
        x, axes = node.inputs[0], axes_of(node)
        narrow = _single(node, told)
        if (
            x is None
            or not isinstance(axes, str)
            or axes not in UNKNOWN
            or not (_within(node, (1, 2)) or _within(node, (2, 3)))
        ):
            return None
        if narrow:
            at = np.array([told.listed[told.axes.index(a)] for a in narrow], np.int64)
            index = np.array(narrow, np.int64)
            one = np.ones(1, np.int64)
            wide = op.Greater(op.Gather(told.sizes, at, axis=0), one)
            ends = op.Where(wide, op.Gather(op.Shape(x), index, axis=0), one)
            x = op.Slice(x, np.zeros(len(narrow), np.int64), ends, index)
        attributes = {k: a.value for k, a in node.attributes.items()}
        attributes["coordinate_transformation_mode"] = "half_pixel"
        return op.node("Resize", [x, *node.inputs[1:]], attributes)[0]


def _within(node: ir.Node, axes: tuple[int, int]) -> bool:
    """True where `axes` of a tensor of rank 4 are the only ones that may change."""
    told = given(node)
    return not isinstance(told, str) and g.rank(node.inputs[0]) == 4 and all(a in axes for a in told.axes)


def planar(node: ir.Node, axes: tuple[int, int] = (1, 2)) -> bool | None:
    """True where only `axes` of a tensor of rank 4 are resized."""
    found = axes_of(node)
    if isinstance(found, str):
        return _within(node, axes) if found in UNKNOWN else None
    return g.rank(node.inputs[0]) == 4 and all(a.axis in axes for a in found)


def taken(node: ir.Node) -> bool:
    """True where `node`, on channels first or last, becomes a RESIZE of TFLite."""
    return bool(
        node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.FLOAT and native(node)
    ) and bool(planar(node) or planar(node, (2, 3)))


Resizing = Rewrite("tflite-resize", (TorchHalfPixels(), ResizeByMatMul(unless=taken, computed=True)))
