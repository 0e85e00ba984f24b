"""What a node of the quantized graph says: its window, its weights and bias as integers, its scales."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tapeout import sdk
from tapeout.sdk import graph as g
from tapeout.targets.fpga.dialect import Array, Tensor, Window
from tapeout.targets.fpga.requantize import Clamp

LOW, HIGH = -128, 127
Scale = tuple[float, int]  # scale and zero point


@dataclass(frozen=True, eq=False)
class Step:
    """A node that computes: `made` is the value of codes that it ends in, `grid` its scale and zero point."""

    node: ir.Node
    made: ir.Value
    grid: Scale
    clamp: Clamp

    def codes(self, index: int = 0) -> ir.Value:
        """The codes behind an input."""
        value = self.node.inputs[index]
        assert value is not None
        return sdk.storage(value).value

    def weights(self) -> tuple[Array, Array]:
        """The weights' codes int8, output channels first, and the scale of each output channel in float32."""
        value = self.node.inputs[1]
        assert value is not None
        stored = sdk.storage(value)
        codes, scale = g.constant(stored.value), g.constant(stored.scale)
        assert codes is not None and scale is not None
        return codes.astype(np.int8), np.resize(scale.astype(np.float32), len(codes))

    def bias(self, scale: float, weight_scale: Array) -> Array:
        """The bias in units of the accumulator, int64; a real one is rounded to them."""
        value = (*self.node.inputs, None)[2]
        if value is None:
            return np.zeros(len(weight_scale), np.int64)
        stored = sdk.storage(value)
        numbers = g.constant(stored.value)
        assert numbers is not None
        if not stored.quantized:
            numbers = np.rint(numbers.astype(np.float64) / (scale * weight_scale.astype(np.float64)))
        return np.resize(numbers.astype(np.int64), len(weight_scale))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width, channels of what is made."""
        return hwc(self.made)

    @property
    def name(self) -> str:
        return self.node.name or self.made.name or ""


def hwc(value: ir.Value) -> tuple[int, int, int]:
    """The shape of a stream that holds a value of a batch of 1: two spatial axes at most, channels last."""
    dims = g.static_dims(value) or ()
    inner = dims[1:] if len(dims) > 1 else dims
    inner = (1, 1, 1, *inner)
    return math.prod(inner[:-2]), inner[-2], inner[-1]


def grid_of(node: ir.Node) -> Scale:
    """Scale and zero point of a QuantizeLinear or DequantizeLinear with one of each."""
    scale, zero = g.scalar(node.inputs[1]), g.scalar((*node.inputs, None)[2])
    return float(scale or 1.0), int(zero or 0)


def clamp_of(grid: Scale, activation: ir.Node | None) -> Clamp:
    """The codes that a fused activation leaves: rounding keeps the order, so codes are clipped as numbers are."""
    scale, zero = grid
    low, high = LOW, HIGH
    if activation is not None:
        bounds = (
            (0.0, None)
            if activation.op_type == "Relu"
            else tuple(map(g.scalar, (*activation.inputs, None)[1:3]))
        )
        ends = [None if b is None else round_even(float(b), scale) + zero for b in bounds]
        low = low if ends[0] is None else min(max(low, ends[0]), HIGH)
        high = high if ends[1] is None else max(min(high, ends[1]), LOW)
    return Clamp(zero, low, high)


def round_even(number: float, scale: float) -> int:
    """QuantizeLinear's rounding, in float32, without a zero point."""
    return int(np.rint(np.float32(number) / np.float32(scale)))


def window_of(node: ir.Node, tensor: Tensor, kernel: Sequence[int]) -> Window:
    """The window of a convolution or pool over a tensor; padding holds the code of 0."""
    rows, columns = (int(k) for k in kernel)
    strides, dilations = (tuple(g.attribute(node, k, (1, 1))) for k in ("strides", "dilations"))
    pads = tuple(g.attribute(node, "pads", (0, 0, 0, 0)))
    return Window((rows, columns), strides, pads, dilations, tensor.zero_point)


def without_groups(weights: Array, group: int) -> Array:
    """The weights [out, rows, columns, in / group] of a grouped convolution as those of a plain one: zeros between."""
    count, each = len(weights) // group, weights.shape[-1]
    wide = np.zeros((*weights.shape[:-1], each * group), weights.dtype)
    for i in range(group):
        wide[i * count : (i + 1) * count, :, :, i * each : (i + 1) * each] = weights[
            i * count : (i + 1) * count
        ]
    return wide
