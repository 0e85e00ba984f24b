"""Resizing one axis at a time: a resize is a linear map of each axis. Here of axes whose sizes are numbers.

    Resize(x, nearest)         -> Gather(x, indices, axis)                 exactly
    Resize(x, linear, cubic)   -> MatMul(x, W) over the last axis, MatMul(W', x) over the one before; others
                                  are transposed to the end

Every coordinate transformation, nearest mode, antialiasing, exclusion of what lies outside, and crops with an
extrapolation value of 0 (ONNX operator Resize-19). Sizes known at run time only are computed_resizing's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.rewriting import Builder, NodeRule
from tapeout.passes.decompose import computed_resizing

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Axis:
    """One axis to resize: sizes, scale, and the part of it that is cropped (0 to 1 where it is not)."""

    axis: int
    size: int
    out: int
    scale: float
    start: float = 0.0
    end: float = 1.0


def coordinates(a: Axis, mode: str) -> Array:
    """Where each output element lies on the input axis; in float32, so that ties fall as in the runtimes."""
    f = np.float32
    x, scale = np.arange(a.out, dtype=f), f(a.scale)
    half = (x + f(0.5)) / scale - f(0.5)
    if mode == "half_pixel":
        return half
    if mode == "half_pixel_symmetric":
        adjustment = f(a.out) / (scale * f(a.size))
        return f(a.size) / f(2) * (f(1) - adjustment) + half
    if mode == "pytorch_half_pixel":
        return half if a.out > 1 else np.zeros(1, f)
    if mode == "align_corners":
        return x * f(a.size - 1) / f(a.out - 1) if a.out > 1 else np.zeros(1, f)
    if mode == "asymmetric":
        return x / scale
    if a.out > 1:
        return f(a.start) * f(a.size - 1) + x * f(a.end - a.start) * f(a.size - 1) / f(a.out - 1)
    return np.full(1, 0.5 * (a.start + a.end) * (a.size - 1), f)


def nearest(a: Axis, mode: str, rounding: str) -> Array:
    """The input index of each output element."""
    x = coordinates(a, mode)
    rounded: dict[str, Callable[[Array], Array]] = {
        "floor": np.floor,
        "ceil": np.ceil,
        "round_prefer_floor": lambda v: np.ceil(v - np.float32(0.5)),
        "round_prefer_ceil": lambda v: np.floor(v + np.float32(0.5)),
    }
    index: Array = np.clip(rounded[rounding](x), 0, a.size - 1).astype(np.int64)
    return index


def weights(a: Axis, mode: str, kind: str, cubic: float, antialias: bool, exclude: bool) -> Array:
    """W of shape [out, size] in float64, linear or cubic."""
    x = coordinates(a, mode).astype(np.float64)
    scale = min(a.scale, 1.0) if antialias else 1.0
    reach = 1.0 if kind == "linear" else 2.0

    def kernel(t: Array) -> Array:
        t = np.abs(t)
        if kind == "linear":
            return np.maximum(0.0, 1.0 - t)
        near = ((cubic + 2) * t - (cubic + 3)) * t * t + 1
        far = ((cubic * t - 5 * cubic) * t + 8 * cubic) * t - 4 * cubic
        return np.where(t <= 1, near, np.where(t < 2, far, 0.0))

    result = np.zeros((a.out, a.size))
    for row, centre in enumerate(x):
        lowest, highest = int(np.floor(centre - reach / scale)), int(np.ceil(centre + reach / scale))
        taps = np.arange(lowest, highest + 1)
        w = kernel((taps - centre) * scale)
        inside = (taps >= 0) & (taps < a.size)
        if exclude:
            w = np.where(inside, w, 0.0)
        if exclude or antialias:
            w = w / w.sum()
        np.add.at(result[row], np.clip(taps, 0, a.size - 1), w)
        if mode == "tf_crop_and_resize" and not 0 <= centre <= a.size - 1:
            result[row] = 0.0
    return result


# Why the axes that change are not known before running.
SHAPES = "the shapes are not known"
COMPUTED = "scales or sizes are computed"
SIZE = "the size of a resized axis is not a number"
UNKNOWN = (SHAPES, COMPUTED, SIZE)


def axes_of(node: ir.Node) -> list[Axis] | str:
    """The axes that a Resize changes, or why they are not known."""
    x, y = g.dims(node.inputs[0]), g.dims(node.outputs[0])
    roi, scales, sizes = (g.constant(v, 64) for v in (*node.inputs, None, None, None)[1:4])
    if x is None or y is None:
        return SHAPES
    if scales is None and sizes is None:
        return COMPUTED
    which = [a % len(x) for a in g.attribute(node, "axes", tuple(range(len(x))))]
    policy = g.attribute(node, "keep_aspect_ratio_policy", "stretch")
    mode = g.attribute(node, "coordinate_transformation_mode", "half_pixel")
    crop, aligned = mode == "tf_crop_and_resize", mode == "align_corners"
    if crop and roi is None:
        return "the region of interest is computed"
    found = []
    ratios = []
    if scales is None or scales.size == 0:
        assert sizes is not None
        for i, axis in enumerate(which):
            size = x[axis]
            if not isinstance(size, int):
                if y[axis] != size:
                    return SIZE
                ratios.append(1.0)
                continue
            ratios.append(float(np.float32(sizes[i]) / np.float32(size)))
        if policy != "stretch":
            common = min(ratios) if policy == "not_larger" else max(ratios)
            ratios = [common] * len(which)
    else:
        ratios = [float(s) for s in scales]
    for i, axis in enumerate(which):
        size, out = x[axis], y[axis]
        part = (float(roi[i]), float(roi[i + len(which)])) if crop and roi is not None else (0.0, 1.0)
        if (ratios[i] == 1.0 and size == out) and part == (0.0, 1.0):
            continue
        if not isinstance(size, int) or not isinstance(out, int):
            return SIZE
        if aligned and abs(ratios[i] * size - out) > 1e-3:
            return "aligned corners at a scale that gives a fractional size: runtimes and standard disagree"
        found.append(Axis(axis, size, out, ratios[i], *part))
    return found


@dataclass(frozen=True)
class ResizeByMatMul(NodeRule):
    """Resize(x) -> Gather (nearest) or MatMul (linear, cubic) per axis. `unless(node)` leaves a node alone,
    such as one that a target takes as it is. `computed`: sizes known at run time only are written out too."""

    unless: Callable[[ir.Node], bool] | None = None
    computed: bool = False
    ops = ("Resize",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        if self.unless is not None and self.unless(node):
            return None
        x = node.inputs[0]
        found = axes_of(node)
        if self.computed and isinstance(found, str) and found in UNKNOWN:
            return computed_resizing.rewrite(op, node)
        if isinstance(found, str) or x is None or x.dtype is None:
            return found
        mode = g.attribute(node, "coordinate_transformation_mode", "half_pixel")
        kind = g.attribute(node, "mode", "nearest")
        if mode == "tf_crop_and_resize" and (
            kind == "nearest" or g.attribute(node, "extrapolation_value", 0.0) != 0.0
        ):
            return "what lies outside of the image is filled in"
        if kind != "nearest" and not x.dtype.is_floating_point():
            return "integers are interpolated"
        y: Any = x
        rank = len(g.dims(x) or ())
        for a in found:
            if kind == "nearest":
                index = nearest(a, mode, g.attribute(node, "nearest_mode", "round_prefer_floor"))
                y = op.Gather(y, index, axis=a.axis)
                continue
            w = weights(
                a, mode, kind, g.attribute(node, "cubic_coeff_a", -0.75),
                bool(g.attribute(node, "antialias", 0)), bool(g.attribute(node, "exclude_outside", 0)),
            )  # fmt: skip
            y = _along(op, y, a.axis, rank, w, x.dtype)
        return op.Identity(y) if y is x else y


def _along(op: Builder, y: Any, axis: int, rank: int, w: Array, dtype: ir.DataType) -> Any:
    """W applied to `axis` of y."""
    if axis == rank - 1:
        return op.MatMul(y, op.constant(w.T, dtype, hint="interpolation"))
    if axis == rank - 2:
        return op.MatMul(op.constant(w, dtype, hint="interpolation"), y)
    perm = [i for i in range(rank) if i != axis] + [axis]
    turned = op.MatMul(op.Transpose(y, perm=perm), op.constant(w.T, dtype, hint="interpolation"))
    return op.Transpose(turned, perm=[perm.index(i) for i in range(rank)])
