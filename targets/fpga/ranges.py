"""Interval arithmetic on codes: which values every accumulator and every channel can have, proven for all inputs."""

from __future__ import annotations

import math

import numpy as np

from tapeout.targets.fpga import dialect as d
from tapeout.targets.fpga.dialect import Array

Ends = tuple[Array, Array]  # the least and the largest value of each channel


def met(node: d.Node, x: d.Tensor) -> Ends:
    """The codes of each channel of x that a node meets, its padding included."""
    window = getattr(node, "window", None)
    if window is None or not any(window.pads):
        return x.low, x.high
    return np.minimum(x.low, window.fill), np.maximum(x.high, window.fill)


def of_sums(node: d.Folded, x: d.Tensor, taken: Array | None = None) -> Ends:
    """The sums of a node's outputs, without bias; `taken`: the channels of x that it reads, where not all."""
    low, high = met(node, x) if taken is None else (e[taken] for e in met(node, x))
    if isinstance(node, d.GlobalAverage):
        return low * x.pixels, high * x.pixels
    if isinstance(node, d.AveragePool):
        area = math.prod(node.window.kernel)
        return low * area, high * area
    assert isinstance(node, d.Conv | d.Dense | d.Depthwise)
    weights = node.weights.reshape(len(node.weights), -1).astype(np.int64)
    if isinstance(node, d.Depthwise):
        low, high = low[:, None], high[:, None]
    else:
        places = weights.shape[1] // len(low)
        low, high = np.tile(low, places), np.tile(high, places)
    products = weights * low, weights * high
    return np.minimum(*products).sum(axis=1), np.maximum(*products).sum(axis=1)


def bits(least: Array | int, most: Array | int) -> int:
    """The width of a signed number from `least` to `most`."""
    low, high = int(np.min(least)), int(np.max(most))
    return max((-low - 1).bit_length() if low < 0 else 0, high.bit_length() if high > 0 else 0) + 1
