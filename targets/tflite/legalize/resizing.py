"""Resize: what of it TFLite's kernels compute exactly, and nearest neighbours as Gather where they do not.

    Resize(x, mode=nearest) -> Gather(Gather(x, rows), columns)    where TFLite would choose other neighbours

The neighbours are computed as ONNX Runtime does, in float32, since ties decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.rewriting import Builder, NodeRule, Rewrite

Array = np.ndarray[Any, Any]
F = np.float32


@dataclass(frozen=True)
class Axis:
    """One resized axis: its number, sizes before and after, and the scale that coordinates go by."""

    number: int
    before: int
    after: int
    scale: float

    @property
    def exact(self) -> bool:
        """True where the scale is the ratio of the sizes, which is what TFLite goes by."""
        return bool(F(self.scale) == F(self.after / self.before)) or self.before * self.scale == self.after


def resized(node: ir.Node) -> tuple[Axis, ...] | str:
    """The axes whose size or coordinates a Resize changes, or the reason why they are not known."""
    x, _, scales, sizes = (*node.inputs, None, None, None)[:4]
    before, after = g.dims(x), g.dims(node.outputs[0])
    if before is None or after is None or len(before) != len(after):
        return "the rank is not known"
    if g.attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return "keep_aspect_ratio_policy is not 'stretch'"
    axes = g.attribute(node, "axes") or tuple(range(len(before)))
    axes = tuple(a % len(before) for a in axes)
    factors = g.constant(scales)
    found = []
    for i, number in enumerate(axes):
        n, m = before[number], after[number]
        factor = float(factors[i]) if factors is not None and factors.size == len(axes) else None
        if factor == 1.0 or (factor is None and n == m):
            continue
        if not isinstance(n, int) or not isinstance(m, int):
            return f"the size of axis {number} is not known"
        found.append(Axis(number, n, m, m / n if factor is None else factor))
    if factors is None and sizes is None:
        return "neither scales nor sizes are given"
    return tuple(found)


def neighbours(axis: Axis, coordinates: str, rounding: str) -> Array | str:
    """For each result along `axis` the source index that ONNX names."""
    scale, n, m = F(axis.scale), F(axis.before), axis.after
    x = np.arange(m, dtype=F)
    if coordinates == "half_pixel" or (coordinates == "pytorch_half_pixel" and m > 1):
        source = (x + F(0.5)) / scale - F(0.5)
    elif coordinates == "pytorch_half_pixel":
        source = np.zeros(m, F)
    elif coordinates == "half_pixel_symmetric":
        offset = n / F(2) * (F(1) - F(m) / (scale * n))
        source = offset + (x + F(0.5)) / scale - F(0.5)
        if np.any(np.abs(2 * source - np.round(2 * source)) < 1e-4):
            return "coordinates 'half_pixel_symmetric' that rounding decides"
    elif coordinates == "asymmetric":
        source = x / scale
    elif coordinates == "align_corners":
        source = x * (n - F(1)) / F(m - 1) if m > 1 else np.zeros(m, F)
    else:
        return f"coordinates '{coordinates}'"
    if rounding == "round_prefer_floor":
        index = np.ceil(source - F(0.5))
    elif rounding == "round_prefer_ceil":
        index = np.floor(source + F(0.5))
    else:
        index = np.floor(source) if rounding == "floor" else np.ceil(source)
    return np.clip(index, 0, axis.before - 1).astype(np.int64)


def chosen(axis: Axis, coordinates: str) -> Array:
    """For each result along `axis` the source index that TFLite's RESIZE_NEAREST_NEIGHBOR takes."""
    aligned, centred = coordinates == "align_corners", coordinates in ("half_pixel", "pytorch_half_pixel")
    if aligned and axis.after > 1:
        scale = F(axis.before - 1) / F(axis.after - 1)
    else:
        scale = F(axis.before) / F(axis.after)
    position = (np.arange(axis.after, dtype=F) + F(0.5 if centred else 0)) * scale
    index = np.floor(position + F(0.5)) if aligned else np.floor(position)
    return np.clip(index, 0, axis.before - 1).astype(np.int64)


def native(node: ir.Node) -> bool | None:
    """True where a RESIZE of TFLite gives what `node` gives once height and width are its only axes; None
    where sizes are not known."""
    axes = resized(node)
    if isinstance(axes, str):
        return None
    coordinates = g.attribute(node, "coordinate_transformation_mode", "half_pixel")
    mode = g.attribute(node, "mode", "nearest")
    if mode == "nearest":
        rounding = g.attribute(node, "nearest_mode", "round_prefer_floor")
        pairs = [(neighbours(a, coordinates, rounding), chosen(a, coordinates)) for a in axes]
        return all(not isinstance(n, str) and np.array_equal(n, c) for n, c in pairs)
    if mode != "linear" or not all(a.exact for a in axes):
        return False
    if g.attribute(node, "antialias", 0) and any(a.after < a.before for a in axes):
        return False
    if coordinates == "pytorch_half_pixel":
        return all(a.after > 1 or a.before == 1 for a in axes)
    return coordinates in ("half_pixel", "asymmetric", "align_corners")


def planar(node: ir.Node) -> bool | None:
    """True where only axes 1 and 2 of a tensor of rank 4 are resized."""
    axes = resized(node)
    if isinstance(axes, str):
        return None
    return g.rank(node.inputs[0]) == 4 and all(a.number in (1, 2) for a in axes)


class NearestByGather(NodeRule):
    """Resize(x, mode=nearest) -> Gather(Gather(x, rows), columns)"""

    ops: ClassVar = ("Resize",)

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | str | None:
        if g.attribute(node, "mode", "nearest") != "nearest":
            return None
        axes = resized(node)
        if isinstance(axes, str):
            return axes
        last = (g.rank(node.inputs[0]) or 0) - 1
        plane = g.rank(node.inputs[0]) == 4 and all(a.number in (2, 3) for a in axes)
        if native(node) and (plane or {a.number for a in axes} <= {1, 2}) and last == 3:
            return None
        coordinates = g.attribute(node, "coordinate_transformation_mode", "half_pixel")
        rounding = g.attribute(node, "nearest_mode", "round_prefer_floor")
        x = node.inputs[0]
        assert x is not None
        for axis in axes:
            index = neighbours(axis, coordinates, rounding)
            if isinstance(index, str):
                return index
            x = op.Gather(x, op.constant(index, hint="neighbours"), axis=axis.number)
        return x


Resizing = Rewrite("tflite-resize", (NearestByGather(),))
