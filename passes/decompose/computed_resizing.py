"""Resizing of axes whose sizes are known at run time only: where each result lies is computed beside the data.

    Resize(x, nearest)  -> Gather(x, i, axis)                            per axis that changes
    Resize(x, linear)   -> w0 * Gather(x, i) + w1 * Gather(x, i + 1)     cubic: four taps

The positions follow the same steps in float32 as the runtimes', so that ties fall alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.rewriting import Builder

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
MODES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")

F = np.float32


@dataclass(frozen=True)
class Given:
    """What a Resize is told: which axes change (`axes`, at place `listed` in its numbers), by constant
    `scales` or by sizes or scales that may be computed."""

    axes: tuple[int, ...]
    listed: tuple[int, ...]
    scales: tuple[float, ...] | None
    sizes: ir.Value | None


def given(node: ir.Node) -> Given | str:
    """The axes that `node` changes or may change, or why they are not known. Constant scales are those of the
    axes that change, in their order."""
    x, y = g.dims(node.inputs[0]), g.dims(node.outputs[0])
    if x is None or y is None or len(x) != len(y):
        return "the rank is not known"
    _, _, scales, sizes = (*node.inputs, None, None, None)[:4]
    if scales is not None and g.static_dims(scales) == (0,):
        scales = None
    stated = g.attribute(node, "axes") or tuple(range(len(x)))
    over = [a % len(x) for a in stated]
    if g.attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch" and scales is None:
        changed = list(range(len(over)))
        return Given(tuple(over), tuple(changed), None, sizes)
    known = None if scales is None else g.constant(scales, 64)
    if known is not None:
        changed = [i for i in range(len(over)) if known[i] != 1]
        numbers = tuple(float(known[i]) for i in changed)
        return Given(tuple(over[i] for i in changed), tuple(changed), numbers, None)
    changed = [i for i, a in enumerate(over) if x[a] != y[a] or x[a] == "?"]
    if scales is not None:  # a scale of 1.01 keeps a size of 9, and moves what is in it
        changed = list(range(len(over)))
    return Given(tuple(over[i] for i in changed), tuple(changed), None, None if scales is not None else sizes)


def rewrite(op: Builder, node: ir.Node) -> Any:
    """What takes the place of `node`, or the reason why nothing does."""
    x = node.inputs[0]
    told = given(node)
    if isinstance(told, str) or x is None or x.dtype is None:
        return told
    mode = g.attribute(node, "coordinate_transformation_mode", "half_pixel")
    kind = g.attribute(node, "mode", "nearest")
    larger = told.scales is not None and all(s >= 1 for s in told.scales)
    if mode not in MODES:
        return f"{mode} of a size that is computed"
    if kind != "nearest" and x.dtype != FLOAT:
        return f"{x.dtype.name.lower()} is interpolated"
    if kind != "nearest" and g.attribute(node, "antialias", 0) and not larger:
        return "antialiasing of a size that is computed"
    whole = told.scales is not None and all(s == int(s) for s in told.scales)
    if mode == "align_corners" and told.sizes is None and not whole:
        return "aligned corners at a scale that may give a fractional size: runtimes and standard disagree"
    y: Any = x
    for axis in _axes(op, node, told):
        place = _places(op, axis, mode)
        if kind == "nearest":
            rounded = _rounded(op, place, g.attribute(node, "nearest_mode", "round_prefer_floor"))
            y = op.Gather(y, _index(op, rounded, axis), axis=axis.axis)
            continue
        y = _interpolated(op, y, axis, place, kind, node)
    return op.Identity(y) if y is x else y


@dataclass(frozen=True)
class _Axis:
    """One axis: its place, the rank, and as float32 scalars its size, the size of the result and the scale;
    `count` is the size of the result as int64."""

    axis: int
    rank: int
    size: ir.Value
    out: ir.Value
    count: ir.Value
    scale: ir.Value


def _axes(op: Builder, node: ir.Node, told: Given) -> list[_Axis]:
    x, scales = node.inputs[0], (*node.inputs, None, None)[2]
    rank = g.rank(x) or 0
    whole = op.Shape(x)
    lengths = [op.Gather(whole, np.array(a, np.int64), axis=0) for a in told.axes]
    sizes = [op.Cast(n, to=FLOAT) for n in lengths]
    if told.sizes is not None:
        asked = told.sizes if told.sizes.dtype == INT64 else op.Cast(told.sizes, to=INT64)
        counts = [op.Gather(asked, np.array(i, np.int64), axis=0) for i in told.listed]
        outs = [op.Cast(c, to=FLOAT) for c in counts]
        ratios = [op.Div(o, s) for o, s in zip(outs, sizes, strict=True)]
        policy = g.attribute(node, "keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            common = ratios[0]
            for ratio in ratios[1:]:
                common = op.Min(common, ratio) if policy == "not_larger" else op.Max(common, ratio)
            ratios = [common] * len(ratios)
            outs = [op.Floor(op.Add(op.Mul(s, common), F(0.5))) for s in sizes]
            counts = [op.Cast(o, to=INT64) for o in outs]
    else:
        if told.scales is not None:
            ratios = [op.constant(np.asarray(s, F)) for s in told.scales]
        else:
            assert scales is not None
            ratios = [op.Gather(scales, np.array(i, np.int64), axis=0) for i in told.listed]
        outs = [op.Floor(op.Mul(s, r)) for s, r in zip(sizes, ratios, strict=True)]
        counts = [op.Cast(o, to=INT64) for o in outs]
        for i, s in enumerate(told.scales or ()):
            if s == int(s):
                counts[i] = op.Mul(lengths[i], int(s))
    return [
        _Axis(a, rank, s, o, c, r)
        for a, s, o, c, r in zip(told.axes, sizes, outs, counts, ratios, strict=True)
    ]


def _places(op: Builder, a: _Axis, mode: str) -> ir.Value:
    """Where each element of the result lies on the input axis: float32, of shape [out]."""
    start, step = np.array(0, np.int64), np.array(1, np.int64)
    at: ir.Value = op.Cast(op.Range(start, a.count, step), to=FLOAT)
    if mode == "asymmetric":
        return op.Div(at, a.scale)  # type: ignore[no-any-return]
    if mode == "align_corners":
        product = op.Mul(at, op.Sub(a.size, 1.0))
        return op.Div(product, op.Max(op.Sub(a.out, 1.0), 1.0))  # type: ignore[no-any-return]
    half: ir.Value = op.Sub(op.Div(op.Add(at, F(0.5)), a.scale), F(0.5))
    if mode == "pytorch_half_pixel":
        return op.Where(op.Greater(a.count, step), half, np.zeros(1, F))  # type: ignore[no-any-return]
    if mode == "half_pixel_symmetric":
        adjustment = op.Div(a.out, op.Mul(a.scale, a.size))
        half = op.Add(op.Mul(op.Mul(a.size, F(0.5)), op.Sub(1.0, adjustment)), half)
    return half


def _rounded(op: Builder, place: ir.Value, rounding: str) -> Any:
    if rounding == "floor":
        return op.Floor(place)
    if rounding == "ceil":
        return op.Ceil(place)
    if rounding == "round_prefer_floor":
        return op.Ceil(op.Sub(place, F(0.5)))
    return op.Floor(op.Add(place, F(0.5)))


def _index(op: Builder, at: ir.Value, a: _Axis) -> Any:
    """Whole places as indices, those outside moved to the border."""
    last = op.Sub(a.size, 1.0)
    return op.Cast(op.Max(op.Min(at, last), 0.0), to=INT64)


def _interpolated(op: Builder, x: ir.Value, a: _Axis, place: ir.Value, kind: str, node: ir.Node) -> Any:
    """The sum of the taps along one axis, each times its weight."""
    below = op.Floor(place)
    rest = op.Sub(place, below)
    if kind == "linear":
        taps = [(0.0, op.Sub(1.0, rest)), (1.0, rest)]
    else:
        c = float(g.attribute(node, "cubic_coeff_a", -0.75))
        taps = [(o, _cubic(op, rest, o, c)) for o in (-1.0, 0.0, 1.0, 2.0)]
    placed = [(op.Add(below, F(o)) if o else below, w) for o, w in taps]
    if g.attribute(node, "exclude_outside", 0):
        kept = []
        for at, w in placed:
            inside = op.And(op.GreaterOrEqual(at, 0.0), op.Less(at, a.size))
            kept.append((at, op.Where(inside, w, np.zeros(1, F))))
        total = kept[0][1]
        for _, w in kept[1:]:
            total = op.Add(total, w)
        placed = [(at, op.Div(w, total)) for at, w in kept]
    shape = np.array([-1] + [1] * (a.rank - 1 - a.axis), np.int64)
    result: Any = None
    for at, w in placed:
        part = op.Mul(op.Gather(x, _index(op, at, a), axis=a.axis), op.Reshape(w, shape))
        result = part if result is None else op.Add(result, part)
    return result


def _cubic(op: Builder, rest: ir.Value, offset: float, c: float) -> Any:
    """The weight of the tap at `offset`, whose distance is |offset - rest|, rest in [0, 1)."""
    t = op.Add(rest, 1.0) if offset == -1 else rest if offset == 0 else op.Sub(F(offset), rest)
    if offset in (0.0, 1.0):
        inner = op.Mul(op.Sub(op.Mul(t, F(c + 2)), F(c + 3)), op.Mul(t, t))
        return op.Add(inner, 1.0)
    inner = op.Sub(op.Mul(t, F(c)), F(5 * c))
    return op.Sub(op.Mul(op.Add(op.Mul(inner, t), F(8 * c)), t), F(4 * c))
