"""Paddings and rounding of windows that TFLite lacks, made explicit.

Conv(x, W, pads=p)         -> Conv(Pad(x, p, 0), W)                where p is neither VALID nor SAME
MaxPool(x, pads=p, ceil)   -> MaxPool(Pad(x, p', -inf))            p' = p and what rounding up adds;
                                                                   0 stands for -inf where x >= 0
MaxPool(x, dilations)      -> Max over the taps of Slice(Pad(x, p', -inf)), for up to 32 taps
AveragePool(x, pads=p, count_include_pad=1) -> AveragePool(Pad(x, p, 0))
AveragePool(x, pads=p, ceil, dilations)     -> AveragePool(Pad(x, p', 0)) * (area / count)
                                               count: of what each window averages over, a constant
AveragePool(x, pads=p), free sizes -> AveragePool(Pad(x, p, 0)) / AveragePool(Pad(1, p, 0))
auto_pad                   -> pads, where sizes are known or strides are 1
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from tapeout.sdk import Builder, NodeRule, Rewrite
from tapeout.sdk import graph as g
from tapeout.targets.tflite.legalize.windows import Window, attributes, pad, results, window

_NOT_NEGATIVE = ("Relu", "Sigmoid", "Softmax", "Abs", "Exp", "HardSigmoid", "Sqrt")
_KEEPS_SIGN = ("MaxPool", "AveragePool", "Transpose", "Reshape", "Concat", "Pad", "GlobalAveragePool")


class ConvPadding(NodeRule):
    """Conv(x, W, pads=p) -> Conv(Pad(x, p, 0), W)"""

    ops: ClassVar = ("Conv",)

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | str | None:
        w = window(node)
        if isinstance(w, str):
            return w
        if w.native and (w.auto_pad == "NOTSET" or w.pads is None):
            return None
        if w.pads is None:
            return f"{w.auto_pad} of an unknown size with stride {max(w.strides)}"
        x, *rest = node.inputs
        assert x is not None
        pads: tuple[int, ...] | None = w.pads
        if not w.native:
            x, pads = pad(op, x, w.pads), None
        made = op.node("Conv", [x, *rest], attributes(node, pads=pads, auto_pad=None))
        return made[0]


class MaxPoolPadding(NodeRule):
    """MaxPool(x, pads=p, ceil) -> MaxPool(Pad(x, p', -inf))"""

    ops: ClassVar = ("MaxPool",)

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | str | None:
        w = window(node)
        if isinstance(w, str):
            return w
        if len(node.outputs) > 1 and node.outputs[1].name:
            return "the indices of the maxima are asked for"
        ceil = bool(g.attribute(node, "ceil_mode", 0)) and w.auto_pad == "NOTSET"
        dilated = max(w.dilations) > 1
        if not dilated and not ceil and w.native and (w.auto_pad == "NOTSET" or w.pads is None):
            return None
        pads = _exact(w, ceil)
        if isinstance(pads, str):
            return pads
        x = node.inputs[0]
        assert x is not None and x.dtype is not None
        exact = Window(w.kernel, w.strides, w.dilations, w.size, "NOTSET", pads)
        if dilated:
            return _taps(op, x, exact)
        kept: tuple[int, ...] | None = pads
        if not exact.native:
            x, kept = pad(op, x, pads, 0.0 if not_negative(x) else _lowest(x.dtype)), None
        (made,) = op.node("MaxPool", [x], attributes(node, pads=kept, auto_pad=None, ceil_mode=None))
        return made


class AveragePoolPadding(NodeRule):
    """AveragePool(x, pads=p) -> AveragePool(Pad(x, p', 0)) * (area / count)"""

    ops: ClassVar = ("AveragePool",)

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | str | None:
        w = window(node)
        if isinstance(w, str):
            return w
        x = node.inputs[0]
        assert x is not None and x.dtype is not None
        include = bool(g.attribute(node, "count_include_pad", 0))
        ceil = bool(g.attribute(node, "ceil_mode", 0)) and w.auto_pad == "NOTSET"
        dilated = max(w.dilations) > 1
        plain = not ceil and not dilated
        if plain and w.pads is None and w.native and not include:
            return None
        pads = _exact(w, ceil)
        if isinstance(pads, str):
            return pads
        exact = Window(w.kernel, w.strides, w.dilations, w.size, "NOTSET", pads)
        rounded_up = pads != w.pads
        counted = include and any(pads)
        kept = {"count_include_pad": None, "ceil_mode": None, "auto_pad": None, "dilations": None}
        if not dilated and exact.native and not counted:
            if plain and not include and w.auto_pad == "NOTSET":
                return None
            (made,) = op.node("AveragePool", [x], attributes(node, **{**kept, "pads": pads}))
            return made
        padded = pad(op, x, pads) if any(pads) else x
        if not dilated and counted and not rounded_up:
            (made,) = op.node("AveragePool", [padded], attributes(node, **{**kept, "pads": None}))
            return made
        factor = _factor(w, pads, include)
        if isinstance(factor, str):
            if plain and not include:
                return _over_inside(op, x, padded, pads, attributes(node, **{**kept, "pads": None}))
            return factor
        if dilated:
            shape = g.dims(x)
            channels = shape[1] if shape is not None else None
            if not isinstance(channels, int):
                return "the number of channels is not known"
            weight = op.constant(np.full((channels, 1, *w.kernel), 1 / math.prod(w.kernel), np.float32))
            averaged = op.Conv(padded, weight, strides=w.strides, dilations=w.dilations, group=channels)
        else:
            (averaged,) = op.node("AveragePool", [padded], attributes(node, **{**kept, "pads": None}))
        result: ir.Value = op.Mul(averaged, op.constant(factor.astype(np.float32), hint="area_by_count"))
        return result


def _taps(op: Builder, x: ir.Value, w: Window) -> ir.Value | str:
    """The maximum of a dilated window as the maximum of what lies under each of its elements."""
    counts = results(w, ceil=False)
    if counts is None:
        return "a dilated window over an unknown size"
    if math.prod(w.kernel) > 32:
        return f"a dilated window of {math.prod(w.kernel)} elements"
    assert w.pads is not None and x.dtype is not None
    padded = pad(op, x, w.pads, _lowest(x.dtype)) if any(w.pads) else x
    axes = np.arange(2, 2 + len(w.size))
    found: ir.Value | None = None
    for place in np.ndindex(*w.kernel):
        starts = np.array(place) * w.dilations
        ends = starts + (np.array(counts) - 1) * w.strides + 1
        numbers = (starts, ends, axes, np.array(w.strides))
        tap = op.Slice(padded, *(op.constant(v.astype(np.int64)) for v in numbers))
        found = tap if found is None else op.Max(found, tap)
    assert found is not None
    return found


def _exact(w: Window, ceil: bool) -> tuple[int, ...] | str:
    """The pads with which rounding down gives the results that `w` gives, rounding up where `ceil`."""
    if w.pads is None:
        return f"{w.auto_pad} of an unknown size with stride {max(w.strides)}"
    if not ceil or max(w.strides) == 1:
        return w.pads
    counts = results(w, ceil=True)
    if counts is None:
        return "ceil_mode of an unknown size"
    half = len(w.size)
    ends = []
    for i, count in enumerate(counts):
        n = w.size[i]
        assert isinstance(n, int)
        needed = (count - 1) * w.strides[i] + w.reach[i] - n - w.pads[i]
        ends.append(max(needed, w.pads[i + half]) if needed > 0 else w.pads[i + half])
    return (*w.pads[:half], *ends)


def _factor(
    w: Window, pads: tuple[int, ...], include: bool
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]] | str:
    """area / count of each result, of shape [1, 1, *results], where the window averages over what is inside
    the tensor, or with `include` inside the padding that the source states."""
    assert w.pads is not None
    half = len(w.size)
    axes = []
    for i, n in enumerate(w.size):
        if not isinstance(n, int):
            return "the number of elements that a window averages over depends on an unknown size"
        inside = np.zeros(pads[i] + n + pads[i + half])
        begin, end = (0, w.pads[i] + n + w.pads[i + half]) if include else (pads[i], pads[i] + n)
        inside[begin:end] = 1
        count = (len(inside) - w.reach[i]) // w.strides[i] + 1
        taps = np.arange(w.kernel[i]) * w.dilations[i]
        axes.append(inside[(np.arange(count) * w.strides[i])[:, None] + taps].sum(axis=1))
    total = axes[0]
    for axis in axes[1:]:
        total = np.multiply.outer(total, axis)
    factor: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = (math.prod(w.kernel) / total)[None, None]
    return factor


def _over_inside(
    op: Builder, x: ir.Value, padded: ir.Value, pads: tuple[int, ...], window_attributes: dict[str, Any]
) -> ir.Value:
    """The average over what lies inside of free sizes: that of x with zeros around over that of ones with
    zeros around."""
    one = np.ones(1, np.int64)
    sides = op.Concat(one, one, op.Shape(x, start=2), axis=0)
    ones = op.Expand(op.constant(np.ones((1,) * (2 + len(pads) // 2), np.float32)), sides)
    (sums,) = op.node("AveragePool", [padded], window_attributes)
    (share,) = op.node("AveragePool", [pad(op, ones, pads)], window_attributes)
    made: ir.Value = op.Div(sums, share)
    return made


def _lowest(dtype: ir.DataType) -> float:
    kind = dtype.numpy()
    return -math.inf if np.issubdtype(kind, np.floating) else int(np.iinfo(kind).min)


def not_negative(value: ir.Value | None, depth: int = 8) -> bool:
    """True where every element of `value` is known to be at least 0 (or NaN)."""
    node = None if value is None else value.producer()
    if node is None or node.domain != "" or depth == 0:
        return False
    if node.op_type in _NOT_NEGATIVE:
        return True
    if node.op_type == "Clip":
        low = g.scalar(node.inputs[1]) if len(node.inputs) > 1 else None
        return low is not None and low >= 0
    if node.op_type == "Pad":
        filler = node.inputs[2] if len(node.inputs) > 2 else None
        if filler is not None and not (g.scalar(filler) or 0) >= 0:
            return False
        return not_negative(node.inputs[0], depth - 1)
    if node.op_type in _KEEPS_SIGN:
        inputs = node.inputs if node.op_type == "Concat" else node.inputs[:1]
        return all(not_negative(v, depth - 1) for v in inputs)
    return False


Padding = Rewrite("tflite-padding", (ConvPadding(), MaxPoolPadding(), AveragePoolPadding()))
