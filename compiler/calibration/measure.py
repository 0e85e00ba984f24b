"""What one sample says about a tensor, and how samples are put together, in their order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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
# Tensors with fewer elements are gathered over samples, until they are so many, and measured together.
SMALL = 1 << 13
TOGETHER = 1 << 14
# Rows that are summed in float32 before the sums go on in float64.
ROWS = 256


def small(array: Array) -> Array | None:
    """`array` as it waits for others, where it is small and holds something."""
    return np.array(array, np.float32) if 0 < array.size < SMALL else None


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
    waiting: list[Array] = field(default_factory=list)

    def take(self, found: Part | Array, axes: tuple[int, ...], rank: int) -> bool:
        """The next sample, measured or small and whole; False where it holds NaN.

        Which small ones are measured together follows from their sizes and order alone.
        """
        if isinstance(found, Part):
            self.flush(axes)
            if not found.nan:
                self.add(found, rank)
            return not found.nan
        if self.waiting and self.waiting[0].shape != found.shape:
            self.flush(axes)
        self.waiting.append(found)
        if len(self.waiting) * found.size >= TOGETHER:
            self.flush(axes)
        return not np.isnan(found).any()

    def flush(self, axes: tuple[int, ...]) -> None:
        """Measure the small ones that wait."""
        if not self.waiting:
            return
        stack = np.stack(self.waiting)
        self.waiting = []
        part = measure(stack, tuple(a + 1 for a in axes))
        part = replace(part, channels={a - 1: s for a, s in part.channels.items()})
        rows = stack.reshape(len(stack), -1)
        self.add(part, stack.ndim - 1, np.stack([rows.min(axis=1), rows.max(axis=1)], axis=1).tolist())

    def add(self, part: Part, rank: int, extremes: Sequence[Sequence[float]] | None = None) -> None:
        """The next sample, or several with the `extremes` of each, in order: sums of floats and moving averages
        depend on it."""
        if not part.count:
            return
        self.rank = rank
        self.count += part.count
        self.finite += part.finite
        self.min, self.max = min(self.min, part.min), max(self.max, part.max)
        self.sum += part.sum
        for new_low, new_high in [(part.min, part.max)] if extremes is None else extremes:
            if self.moving is None:
                self.moving = (new_low, new_high)
                continue
            low, high = self.moving
            self.moving = (
                MOMENTUM * low + (1 - MOMENTUM) * new_low,
                MOMENTUM * high + (1 - MOMENTUM) * new_high,
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
