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


@quantity("pool.covered", "windows that begin on the data")
def pool_covered(call: Call) -> Any:
    """True where no window of a rounded-up pooling would begin behind the data, which ONNX then leaves out, and no
    padding is computed for dilated windows."""
    same = call.attribute("auto_pad") in ("SAME_UPPER", "SAME_LOWER")
    if same and any(d != 1 for d in call.attribute("dilations") or ()):
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


QUANTITIES: list[Quantity] = [operands_computed, accumulates, resize_whole, shape_forward, pool_covered]
