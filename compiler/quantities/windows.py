"""Quantities of sliding windows: convolution and pooling, in ONNX's layout and channels last."""

from __future__ import annotations

import math
from typing import Any

from tapeout.compiler.ir import graph as g
from tapeout.compiler.operators import Call
from tapeout.compiler.quantities.registry import REGISTRY, own


def channels_last(call: Call) -> bool:
    """True for our NWC, NHWC and NDHWC functions, whose X is [N, spatial..., C] and whose W is [O,
    spatial..., I/group]."""
    return call.node.op_type.endswith(("NWC", "NHWC", "NDHWC"))


def spatial(call: Call) -> tuple[int | str, ...] | None:
    """The spatial dimensions of the first input, symbolic ones as text; None where the rank is unknown."""
    shape = g.dims(call.input(0))
    if shape is None or len(shape) < 2:
        return None
    return shape[1:-1] if channels_last(call) else shape[2:]


def kernel(call: Call) -> tuple[int, ...] | None:
    """The window: `kernel_shape`, else the spatial dimensions of W."""
    stated = call.attribute("kernel_shape")
    if stated:
        return tuple(stated)
    shape = g.static_dims(call.value("W"))
    if shape is None or len(shape) < 3:
        return None
    return shape[1:-1] if channels_last(call) else shape[2:]


def _window_rank(call: Call) -> int | None:
    window = kernel(call) or spatial(call)
    return None if window is None else len(window)


def _per_axis(call: Call, name: str, default: int, repeat: int = 1) -> tuple[int, ...] | None:
    stated = call.attribute(name)
    if stated:
        return tuple(stated)
    rank = _window_rank(call)
    return None if rank is None else (default,) * rank * repeat


def strides(call: Call) -> tuple[int, ...] | None:
    """Strides of a window, ones where they are not stated."""
    return _per_axis(call, "strides", 1)


def dilations(call: Call) -> tuple[int, ...] | None:
    """Dilations of a window, ones where they are not stated."""
    return _per_axis(call, "dilations", 1)


def pads(call: Call) -> tuple[int, ...] | None:
    """Begins then ends of the padding in numbers, with `auto_pad` worked out; None where dimensions are
    unknown."""
    mode = call.attribute("auto_pad") or "NOTSET"
    if mode == "NOTSET":
        return _per_axis(call, "pads", 0, 2)
    rank = _window_rank(call)
    if mode == "VALID":
        return None if rank is None else (0,) * rank * 2
    totals = _same_totals(call)
    if totals is None:
        return None
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return tuple(small + large if mode == "SAME_UPPER" else large + small)


def _same_totals(call: Call) -> list[int] | None:
    window, steps, holes, size = kernel(call), strides(call), dilations(call), spatial(call)
    if window is None or steps is None or holes is None:
        return None
    totals = []
    for axis, (k, s, d) in enumerate(zip(window, steps, holes, strict=True)):
        reach = (k - 1) * d + 1
        if s == 1:
            totals.append(reach - 1)
            continue
        n = size[axis] if size is not None else None
        if not isinstance(n, int):
            return None
        totals.append(max((-(-n // s) - 1) * s + reach - n, 0))
    return totals


def _at(values: tuple[int, ...] | None, axis: int) -> int | None:
    return None if values is None or len(values) < -axis else values[axis]


@own("stride.max", "stride")
def _(call: Call) -> Any:
    """The largest stride of a window."""
    return None if (v := strides(call)) is None else max(v, default=1)


@own("stride.h", "vertical stride")
def _(call: Call) -> Any:
    """The stride along the axis before the last spatial axis (height)."""
    return _at(strides(call), -2)


@own("stride.w", "horizontal stride")
def _(call: Call) -> Any:
    """The stride along the last spatial axis (width)."""
    return _at(strides(call), -1)


@own("dilation.max", "dilation")
def _(call: Call) -> Any:
    """The largest dilation of a window."""
    return None if (v := dilations(call)) is None else max(v, default=1)


@own("dilation.h", "vertical dilation")
def _(call: Call) -> Any:
    """The dilation along height."""
    return _at(dilations(call), -2)


@own("dilation.w", "horizontal dilation")
def _(call: Call) -> Any:
    """The dilation along width."""
    return _at(dilations(call), -1)


@own("kernel.max", "kernel size")
def _(call: Call) -> Any:
    """The longest side of a window, before dilation."""
    return None if (v := kernel(call)) is None else max(v, default=1)


@own("kernel.h", "kernel height")
def _(call: Call) -> Any:
    """The height of a window, before dilation."""
    return _at(kernel(call), -2)


@own("kernel.w", "kernel width")
def _(call: Call) -> Any:
    """The width of a window, before dilation."""
    return _at(kernel(call), -1)


@own("kernel.area", "kernel area")
def _(call: Call) -> Any:
    """Elements of the last two axes of a window."""
    return None if (v := kernel(call)) is None else math.prod(v[-2:])


@own("kernel.volume", "kernel volume")
def _(call: Call) -> Any:
    """Elements of a window over all of its axes."""
    return None if (v := kernel(call)) is None else math.prod(v)


@own("pads.max", "padding")
def _(call: Call) -> Any:
    """The largest padding on any side."""
    return None if (v := pads(call)) is None else max(v, default=0)


@own("pads.min", "padding")
def _(call: Call) -> Any:
    """The smallest padding on any side; negative where the window crops."""
    return None if (v := pads(call)) is None else min(v, default=0)


@own("pads.total", "padding")
def _(call: Call) -> Any:
    """The padding of all sides together; 0 is a valid window."""
    return None if (v := pads(call)) is None else sum(v)


@own("padding.kind", "padding")
def _(call: Call) -> Any:
    """ "valid" (none), "same" (TensorFlow's: the odd one at the end), else "explicit"; None where that needs
    an unknown dimension."""
    mode = call.attribute("auto_pad") or "NOTSET"
    if mode == "SAME_UPPER":
        return "same"
    stated = pads(call)
    if stated is None:
        return None
    if not any(stated):
        return "valid"
    totals = _same_totals(call)
    if totals is None:
        return None
    half = len(stated) // 2
    same = [t // 2 for t in totals] + [t - t // 2 for t in totals]
    return "same" if list(stated[:half]) + list(stated[half:]) == same else "explicit"


@own("padding.same_or_valid", "SAME or VALID padding")
def _(call: Call) -> Any:
    """True where the padding is none or TensorFlow's SAME."""
    kind = REGISTRY["padding.kind"].function(call)
    return None if kind is None else kind != "explicit"


@own("spatial.rank", "spatial axes")
def _(call: Call) -> Any:
    """How many axes a window slides along: 1, 2 or 3."""
    return _window_rank(call)


@own("group", "group")
def _(call: Call) -> Any:
    """The number of groups of a convolution."""
    return call.attribute("group") or 1


@own("channels.in", "input channels")
def _(call: Call) -> Any:
    """Channels of the first input: axis 1, or the last axis of an NHWC function."""
    shape = g.dims(call.input(0))
    size = None if shape is None or len(shape) < 2 else shape[-1 if channels_last(call) else 1]
    return size if isinstance(size, int) else None


@own("channels.out", "output channels")
def _(call: Call) -> Any:
    """Channels of the first output: axis 1, or the last axis of an NHWC function."""
    shape = g.dims(call.output(0))
    size = None if shape is None or len(shape) < 2 else shape[-1 if channels_last(call) else 1]
    return size if isinstance(size, int) else None


@own("depthwise.multiplier", "depthwise multiplier")
def _(call: Call) -> Any:
    """Outputs per input channel where every channel is a group of its own, 0 for any other convolution."""
    inner, outer = REGISTRY["channels.in"].function(call), REGISTRY["channels.out"].function(call)
    group = REGISTRY["group"].function(call)
    if inner is None or outer is None:
        weights = g.static_dims(call.value("W"))  # [O, ..., I/group]: knows both where X does not
        if weights is None:
            return None
        inner = weights[-1 if channels_last(call) else 1] * group
        outer = weights[0]
    return outer // inner if group == inner and group > 0 else 0
