"""What one sample says about a tensor, and how samples are put together, in their order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tapeout.compiler.calibration.histogram import Histogram, count
from tapeout.compiler.calibration.statistics import Channels, TensorStats

Array = NDArray[Any]

# At most so many elements of a tensor go into the histogram per sample, evenly spread; extremes see them all.
SPREAD = 1 << 15
# The weight of what was, in the moving averages of the extremes.
MOMENTUM = 0.9
# Rows that are summed in float32 before the sums go on in float64.
ROWS = 256


@dataclass(frozen=True)
class Sums:
    """Extremes and sum along one axis for one sample."""

    min: NDArray[np.float32]
    max: NDArray[np.float32]
    sum: NDArray[np.float64]
    count: int


@dataclass(frozen=True)
class Part:
    """One sample of one tensor."""

    count: int
    finite: int
    min: float
    max: float
    sum: float
    histogram: Histogram | None
    channels: dict[int, Sums]
    nan: bool = False


EMPTY = Part(0, 0, math.inf, -math.inf, 0.0, None, {})


def measure(array: Array, axes: tuple[int, ...]) -> Part:
    """The statistics of one array; `axes` are those that get statistics of their own."""
    if not array.size:
        return EMPTY
    x = np.ascontiguousarray(array, dtype=np.float32)
    channels = {axis: along(x, axis) for axis in axes}
    if channels:
        first = next(iter(channels.values()))
        lo, hi, total = float(first.min.min()), float(first.max.max()), float(first.sum.sum())
    else:
        lo, hi = float(x.min()), float(x.max())
        total = float(x.sum(dtype=np.float64))
    if math.isnan(lo) or math.isnan(hi):
        return Part(x.size, 0, lo, hi, 0.0, None, {}, nan=True)
    flat = x.reshape(-1)
    finite = flat.size
    if not (math.isfinite(lo) and math.isfinite(hi)):
        flat = flat[np.isfinite(flat)]
        finite = flat.size
        total = float(flat.sum(dtype=np.float64))
        channels = {}
    if flat.size > SPREAD:
        flat = flat[:: stride(flat.size)]
    absmax = max(abs(lo), abs(hi)) if finite == x.size else float(np.abs(flat).max(initial=0.0))
    return Part(x.size, finite, lo, hi, total, count(flat, absmax) if flat.size else None, channels)


def stride(size: int) -> int:
    """The least step that leaves at most SPREAD of `size` elements and shares no factor with `size`, so that
    it walks through every channel and every row."""
    step = -(-size // SPREAD)
    while math.gcd(step, size) != 1:
        step += 1
    return step


def along(x: NDArray[np.float32], axis: int) -> Sums:
    """Extremes and sums for each index of `axis`."""
    size = x.shape[axis]
    before, after = math.prod(x.shape[:axis]), math.prod(x.shape[axis + 1 :])
    cube = x.reshape(before, size, after)
    if after > 1:  # rows of an index lie together
        low, high = cube.min(axis=2), cube.max(axis=2)
        sums = cube.sum(axis=2).astype(np.float64)
        return Sums(low.min(axis=0), high.max(axis=0), sums.sum(axis=0), before * after)
    rows = cube.reshape(before, size)
    whole = before - before % ROWS
    sums = rows[:whole].reshape(-1, ROWS, size).sum(axis=1).sum(axis=0, dtype=np.float64)
    sums += rows[whole:].sum(axis=0, dtype=np.float64)
    return Sums(rows.min(axis=0), rows.max(axis=0), sums, before)


@dataclass
class Total:
    """A tensor over the samples so far."""

    rank: int = 0
    count: int = 0
    finite: int = 0
    min: float = math.inf
    max: float = -math.inf
    sum: float = 0.0
    moving: tuple[float, float] | None = None
    histogram: Histogram | None = None
    channels: dict[int, Sums] | None = None

    def add(self, part: Part, rank: int) -> None:
        """The next sample, in order: sums of floats and moving averages depend on it."""
        if not part.count:
            return
        self.rank = rank
        self.count += part.count
        self.finite += part.finite
        self.min, self.max = min(self.min, part.min), max(self.max, part.max)
        self.sum += part.sum
        if self.moving is None:
            self.moving = (part.min, part.max)
        else:
            low, high = self.moving
            self.moving = (
                MOMENTUM * low + (1 - MOMENTUM) * part.min,
                MOMENTUM * high + (1 - MOMENTUM) * part.max,
            )
        if part.histogram is not None:
            self.histogram = part.histogram if self.histogram is None else self.histogram + part.histogram
        if self.channels is None:
            self.channels = dict(part.channels)
            return
        for axis in list(self.channels):
            new, old = part.channels.get(axis), self.channels[axis]
            if (
                new is None or new.min.shape != old.min.shape
            ):  # an axis whose size differs, infinity somewhere
                del self.channels[axis]
                continue
            self.channels[axis] = Sums(
                np.minimum(old.min, new.min),
                np.maximum(old.max, new.max),
                old.sum + new.sum,
                old.count + new.count,
            )

    def stats(self) -> TensorStats:
        """What is kept of it."""
        channels = {
            axis: Channels(s.min, s.max, (s.sum / s.count).astype(np.float32))
            for axis, s in (self.channels or {}).items()
        }
        moving = self.moving or (0.0, 0.0)
        return TensorStats(
            count=self.count,
            min=self.min,
            max=self.max,
            mean=self.sum / self.finite if self.finite else 0.0,
            moving_min=moving[0],
            moving_max=moving[1],
            histogram=self.histogram,
            rank=self.rank,
            channels=channels,
        )
