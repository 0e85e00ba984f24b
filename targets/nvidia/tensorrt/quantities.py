"""Quantities of TensorRT's rows."""

from __future__ import annotations

from typing import Any

from tapeout.sdk import Call, Quantity, quantity
from tapeout.sdk import graph as g


@quantity("zero", "only zeros in PORT", port=True)
def zero(call: Call, port: str) -> Any:
    """True where the port is left out or a constant that holds nothing but zeros; not known where it is computed."""
    value = call.value(port)
    if value is None:
        return True
    array = g.constant(value)
    return None if array is None else not array.astype("float32").any()


@quantity("resize.whole", "whole output sizes")
def whole(call: Call) -> Any:
    """True where a Resize states its sizes, or its scales times the sizes of its input are whole numbers."""
    if call.value("sizes") is not None:
        return True
    scales, shape = g.constant(call.value("scales"), limit=16), g.static_dims(call.value("X"))
    if scales is None or shape is None:
        return None
    axes = call.attribute("axes") or range(len(shape))
    return all(float(scale * shape[axis]).is_integer() for axis, scale in zip(axes, scales, strict=True))


QUANTITIES: tuple[Quantity, ...] = (zero, whole)
