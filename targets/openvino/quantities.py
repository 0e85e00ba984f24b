"""Quantities that only OpenVINO's rows bound."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from tapeout.sdk import Call, Quantity, quantity, storage
from tapeout.sdk import graph as g


@quantity("resize.whole", "sizes that are the scales times the sizes before")
def resize_whole(call: Call) -> Any:
    """True where a Resize is told sizes, or scales that give whole ones: the front end aligns corners by sizes."""
    if call.value("sizes") is not None:
        return True
    scales, shape = g.constant(call.value("scales"), limit=64), g.dims(call.value("X"))
    if scales is None or shape is None:
        return None
    axes = call.attribute("axes") or range(len(shape))
    sized = [(shape[axis], float(scale)) for axis, scale in zip(axes, scales.reshape(-1), strict=True)]
    if any(not isinstance(size, int) and scale != 1 for size, scale in sized):
        return None
    return all(scale == 1 or (size * scale).is_integer() for size, scale in sized)


@quantity("resize.spatial", "leading axes that keep their sizes")
def resize_spatial(call: Call) -> Any:
    """True where a Resize leaves the first axis of four as it is and the first two of five, for the plugin's kernels
    resize three at most; cubic ones a matrix, or the last two axes of four."""
    before, after = g.dims(call.value("X")), g.dims(call.output(0))
    if before is None or after is None:
        return None
    if call.attribute("mode") == "cubic":
        return len(before) in (2, 4) and before[:-2] == after[:-2]
    kept = max(0, len(before) - 3)
    return before[:kept] == after[:kept]


@quantity("shape.forward", "axes in order")
def shape_forward(call: Call) -> Any:
    """True where a Shape tells at least one axis, or is asked for all."""
    rank = g.rank(call.input(0))
    start, end = call.attribute("start") or 0, call.attribute("end")
    if start == 0 and end is None:
        return True
    if rank is None:
        return None
    first, last = (max(0, min(rank, i + rank if i < 0 else i)) for i in (start, rank if end is None else end))
    return first < last


@quantity("slice.axes", "axes that are constant as starts, ends and steps are")
def slice_axes(call: Call) -> Any:
    """False where axes alone are computed: the plugin reads beyond its memory."""
    axes, *others = (call.value(port) for port in ("axes", "starts", "ends", "steps"))
    if axes is None or g.is_constant(axes):
        return True
    return not all(v is None or g.is_constant(v) for v in others)


def _dilated_same(call: Call) -> bool:
    same = call.attribute("auto_pad") in ("SAME_UPPER", "SAME_LOWER")
    return same and any(d != 1 for d in call.attribute("dilations") or ())


@quantity("pool.covered", "windows that begin on the data")
def pool_covered(call: Call) -> Any:
    """True where no window of a rounded-up pooling would begin behind the data, which ONNX then leaves out, and no
    padding is computed for dilated windows."""
    if _dilated_same(call):
        return False
    if not call.attribute("ceil_mode"):
        return True
    shape, kernel = g.dims(call.input(0)), call.attribute("kernel_shape")
    if shape is None or call.attribute("auto_pad") not in (None, "NOTSET"):
        return None
    count = len(kernel)
    strides = call.attribute("strides") or (1,) * count
    dilations = call.attribute("dilations") or (1,) * count
    pads = call.attribute("pads") or (0,) * (2 * count)
    for i, size in enumerate(shape[2:]):
        if not isinstance(size, int):
            return None
        span = (kernel[i] - 1) * dilations[i] + 1
        last = -(-(size + pads[i] + pads[i + count] - span) // strides[i])
        if last * strides[i] >= size + pads[i]:
            return False
    return True


@quantity("pool.counted", "windows that end on counted padding")
def pool_counted(call: Call) -> Any:
    """True where no window of a rounded-up average that counts padding reaches beyond that, which the plugin counts on,
    and no padding is computed for dilated windows."""
    if _dilated_same(call):
        return False
    if not call.attribute("ceil_mode") or not call.attribute("count_include_pad"):
        return True
    shape, kernel = g.static_dims(call.input(0)), call.attribute("kernel_shape")
    if shape is None or call.attribute("auto_pad") not in (None, "NOTSET"):
        return None
    count = len(kernel)
    strides = call.attribute("strides") or (1,) * count
    dilations = call.attribute("dilations") or (1,) * count
    pads = call.attribute("pads") or (0,) * (2 * count)
    rest = (
        (size + pads[i] + pads[i + count] - (kernel[i] - 1) * dilations[i] - 1) % strides[i]
        for i, size in enumerate(shape[2:])
    )
    return not any(rest)


PRODUCTS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "FullyConnected"})


def _of_product(value: ir.Value | None) -> bool:
    """Whether a product makes `value` for one reader."""
    made = None if value is None else value.producer()
    return made is not None and made.op_type in PRODUCTS and value is not None and len(value.uses()) == 1


@quantity("accumulates", "operand that a product makes for this sum alone")
def accumulates(call: Call) -> Any:
    """Which operand of a sum a product makes for it alone, and which the plugin so adds to in the accumulator: "first",
    "second" where only that, or "none"."""
    a, b = call.input(0), call.input(1)
    return "first" if _of_product(a) else "second" if _of_product(b) else "none"


@quantity("operands.computed", "operands that are both computed")
def operands_computed(call: Call) -> Any:
    """True where a product multiplies two tensors that are computed: a constant before the other, or a stack of them,
    the plugin multiplies in real numbers."""
    values = [v for v in (call.input(0), call.input(1)) if v is not None]
    return not any(g.is_constant(v) or g.is_constant(storage(v).value) for v in values)


QUANTITIES: list[Quantity] = [
    operands_computed,
    accumulates,
    resize_whole,
    resize_spatial,
    shape_forward,
    pool_covered,
    pool_counted,
    slice_axes,
]
