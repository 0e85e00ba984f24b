"""Quantities that only TFLite's rows bound."""

from __future__ import annotations

from typing import Any

from tapeout.compiler.ir import graph as g
from tapeout.compiler.operators import Call
from tapeout.compiler.quantities import Quantity, quantity
from tapeout.targets.tflite.legalize import resizing
from tapeout.targets.tflite.legalize.transposed import same_pads


@quantity("resize.native", "resizing as TFLite does")
def resize_native(call: Call) -> Any:
    """True where TFLite chooses the same neighbours and weights as this Resize."""
    return resizing.native(call.node)


@quantity("resize.planar", "resizing of height and width alone")
def resize_planar(call: Call) -> Any:
    """True where only axes 1 and 2 of a tensor of rank 4 are resized."""
    return resizing.planar(call.node)


@quantity("cropping.same_or_valid", "SAME or VALID cropping")
def cropping(call: Call) -> Any:
    """True where a transposed convolution crops nothing, or what TensorFlow's SAME crops."""
    node = call.node
    pads = g.attribute(node, "pads")
    if any(g.attribute(node, name) for name in ("output_shape", "output_padding")):
        return False
    if g.attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        return False
    if not pads or not any(pads):
        return True
    shape, weight = g.dims(call.input(0)), g.static_dims(call.input(1))
    if shape is None or weight is None:
        return None
    strides = g.attribute(node, "strides") or (1,) * (len(weight) - 2)
    return tuple(pads) == same_pads(shape[1:-1], tuple(strides), weight[1:-1])


QUANTITIES: tuple[Quantity, ...] = (resize_native, resize_planar, cropping)
