"""What a circuit computes, in numpy: every node on integer codes, exact. Verilog and C++ must match it bit for bit.

Arrays have a batch in front: int64 [samples, height, width, channels]. Sums of products go through float64 matrix
products, which are exact here: all partial sums are integers below 2**53.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch

import numpy as np

from tapeout.targets.fpga.dialect import (
    Add,
    Array,
    AveragePool,
    Conv,
    Dense,
    Depthwise,
    GlobalAverage,
    Graph,
    Lookup,
    MaxPool,
    Node,
    Port,
    Requantize,
    Reshape,
    Tensor,
    Window,
)


def run(graph: Graph, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The codes of every tensor by name, int64 [samples, height, width, channels], for codes of the inputs."""
    values = {t.name: np.asarray(inputs[t.name], np.int64) for t in graph.inputs}
    for node in graph.nodes:
        values[node.output.name] = compute(node, *(values[s.tensor] for s in node.inputs))
    return values


@singledispatch
def compute(node: Node, *inputs: Array) -> Array:
    """What a node makes of its inputs' codes."""
    raise TypeError(f"no integer meaning for {type(node).__name__}")


@compute.register
def _(node: Conv, x: Array) -> Array:
    taken = windows(x, node.window)  # [samples, rows, columns, kernel rows, kernel columns, channels]
    sums = products(taken.reshape(*taken.shape[:3], -1), node.weights.reshape(len(node.weights), -1))
    return requantize(sums + node.bias, node.requantize)


@compute.register
def _(node: Depthwise, x: Array) -> Array:
    taken = windows(x, node.window)
    return requantize(
        np.einsum("nhwijc,cij->nhwc", taken, node.weights, dtype=np.int64) + node.bias, node.requantize
    )


@compute.register
def _(node: Dense, x: Array) -> Array:
    sums = products(x.reshape(len(x), -1), node.weights) + node.bias
    return requantize(sums[:, None, None, :], node.requantize)


@compute.register
def _(node: MaxPool, x: Array) -> Array:
    made: Array = windows(x, node.window).max(axis=(3, 4))
    return made


@compute.register
def _(node: AveragePool, x: Array) -> Array:
    return requantize(windows(x, node.window).sum(axis=(3, 4)) + node.bias, node.requantize)


@compute.register
def _(node: GlobalAverage, x: Array) -> Array:
    return requantize(x.sum(axis=(1, 2), keepdims=True) + node.bias, node.requantize)


@compute.register
def _(node: Add, a: Array, b: Array) -> Array:
    sums = a * node.multipliers[0] + b * node.multipliers[1]
    even = ((sums + node.start) >> node.shift) & 1 if node.ties_to_even else 0
    codes: Array = np.clip((sums + node.offset + even) >> node.shift, node.low, node.high)
    return codes


@compute.register
def _(node: Reshape, x: Array) -> Array:
    return x.reshape(len(x), *node.output.shape)


@compute.register
def _(node: Lookup, x: Array) -> Array:
    made: Array = node.table.astype(np.int64)[x + 128]
    return made


def requantize(sums: Array, form: Requantize) -> Array:
    """The codes of accumulators int64 [..., channels]."""
    scaled = sums * form.multiplier
    even = (scaled >> form.shift) & 1 if form.ties_to_even else 0
    total = scaled + form.offset + even
    codes: Array = np.clip(total >> form.shift, form.low, form.high)
    for channel, table in form.tables.items():
        guess = codes[..., channel]
        above = np.append(table, np.iinfo(np.int64).max)  # no code lies above `high`
        codes[..., channel] = guess + (sums[..., channel] >= above[guess - form.low])
    return codes


def windows(x: Array, window: Window) -> Array:
    """The elements under each place of a window, [samples, rows, columns, kernel rows, kernel columns, channels]."""
    top, left, bottom, right = window.pads
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=window.fill)
    reach = tuple((k - 1) * d + 1 for k, d in zip(window.kernel, window.dilations, strict=True))
    view = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(1, 2))
    (sh, sw), (dh, dw) = window.strides, window.dilations
    made: Array = np.moveaxis(view[:, ::sh, ::sw, :, ::dh, ::dw], 3, 5)
    return made


def products(x: Array, weights: Array) -> Array:
    """x [..., inputs] by weights [outputs, inputs], exact."""
    return (x.astype(np.float64) @ weights.T.astype(np.float64)).astype(np.int64)


def stream(port: Port, tensor: Tensor, array: Array) -> Array:
    """The codes [samples, height, width, channels] of a border's arrays [samples, ...], each of the port's shape."""
    codes = quantized(tensor, array) if port.real else np.asarray(array, np.int64)
    flat = codes.reshape(len(array), -1)
    if port.order is not None:
        turned = np.empty_like(flat)
        turned[:, port.order] = flat
        flat = turned
    return flat.reshape(len(array), *tensor.shape)


def unstream(port: Port, tensor: Tensor, codes: Array) -> Array:
    """The arrays [samples, ...] at a border for codes: the inverse of `stream`."""
    flat = codes.reshape(len(codes), -1)
    back = (flat if port.order is None else flat[:, port.order]).reshape(len(codes), *port.shape)
    if not port.real:
        return back.astype(np.int8)
    made: Array = (back - tensor.zero_point).astype(np.float32) * np.float32(tensor.scale)
    return made


def quantized(tensor: Tensor, real: Array) -> Array:
    """QuantizeLinear in float32: to nearest, ties to even, within the tensor's bits."""
    low = -(1 << (tensor.bits - 1)) if tensor.signed else 0
    steps = np.rint(np.asarray(real, np.float32) / np.float32(tensor.scale)).astype(np.float64)
    codes: Array = np.clip(steps + tensor.zero_point, low, low + (1 << tensor.bits) - 1).astype(np.int64)
    return codes
