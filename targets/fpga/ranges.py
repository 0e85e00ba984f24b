"""Interval arithmetic on codes: which values every accumulator and every channel can have, proven for all inputs."""

from __future__ import annotations

import numpy as np

from tapeout.targets.fpga.dialect import Array, Tensor, Window


def of_window(tensor: Tensor, window: Window) -> tuple[Array, Array]:
    """The least and the largest code of each channel that a window meets, its padding included."""
    if not any(window.pads):
        return tensor.low, tensor.high
    return np.minimum(tensor.low, window.fill), np.maximum(tensor.high, window.fill)


def of_sum(weights: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """The least and the largest sum of weights [outputs, inputs] times codes from `low` to `high` [inputs]."""
    weights = weights.astype(np.int64)
    ends = weights * low, weights * high
    return np.minimum(*ends).sum(axis=1), np.maximum(*ends).sum(axis=1)


def bits(least: Array | int, most: Array | int) -> int:
    """The width of a signed number from `least` to `most`."""
    low, high = int(np.min(least)), int(np.max(most))
    return max((-low - 1).bit_length() if low < 0 else 0, high.bit_length() if high > 0 else 0) + 1
