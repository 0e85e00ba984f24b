"""From the float arithmetic of requantization to integers that give the same code for every accumulator.

The reference (`code_of`) is what integer runtimes compute: a float32 product, rounded to nearest with ties to even,
shifted by the zero point and clipped. It never falls as the accumulator grows, so it is its *thresholds*: for each
code k above the lowest, the smallest accumulator t[k] whose code is at least k. A line meets them all where

    floor((a * M + C) / 2**s) >= k   exactly for   a >= t[k]
    <=>  k * 2**s - t[k] * M  <=  C  <=  k * 2**s - (t[k] - 1) * M - 1        for every k

so it passes above the points (t[k], k) and below the points (t[k] - 1, k): only their convex hulls matter, and two
points bound its slope. Doubling M, C and 2**s changes nothing: what holds at one shift holds at every larger one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from tapeout.sdk import InternalError
from tapeout.targets.fpga.dialect import Array, Requantize
from tapeout.targets.fpga.integer import requantize

# The widest multiplier that is looked for: twice 17 unsigned bits, what two DSP slices multiply.
MULTIPLIER_BITS = 34
# The widest shift: codes of 8 bits above it fit 63 bits.
SHIFT = 52

Point = tuple[int, int]


class Clamp(NamedTuple):
    """The zero point of the result, and the least and the largest code that a fused activation leaves."""

    zero: int
    low: int = -128
    high: int = 127


def code_of(sums: Array, scale: Array, clamp: Clamp) -> Array:
    """The reference: codes int64 of accumulators int64 by scales float32, which broadcast."""
    steps = np.rint(sums.astype(np.float32) * scale.astype(np.float32)).astype(np.float64)
    codes: Array = np.clip(steps + clamp.zero, clamp.low, clamp.high).astype(np.int64)
    return codes


def thresholds(scale: Array, clamp: Clamp, least: Array, most: Array) -> Array:
    """For each channel and each code above the lowest the smallest accumulator that reaches it, int64 [channels,
    high - low]; `most` + 1 where none does, `least` where all do."""
    codes = np.arange(clamp.low + 1, clamp.high + 1, dtype=np.int64)
    below = np.repeat(least[:, None] - 1, len(codes), axis=1)
    above = np.repeat(most[:, None] + 1, len(codes), axis=1)
    while np.any(above - below > 1):
        middle = (above + below) >> 1
        unknown = above - below > 1
        reached = code_of(middle, scale[:, None], clamp) >= codes
        above = np.where(unknown & reached, middle, above)
        below = np.where(unknown & ~reached, middle, below)
    return above


def exact(scale: Array, clamp: Clamp, least: Array, most: Array) -> Requantize:
    """The form that equals `code_of` for every accumulator from `least` to `most` (int64 [channels]).

    scale: float32 [channels], positive. The shift is the smallest at which every channel has an exact line, among
    multipliers of at most MULTIPLIER_BITS; a channel that has none gets a table.
    """
    steps = thresholds(scale, clamp, least, most)
    form = _powers(scale, clamp)
    if form is not None and _holds(form, steps, least, most):
        return form
    lines = [
        _Line(clamp, t.tolist(), int(a), int(b), float(s))
        for t, a, b, s in zip(steps, least, most, scale, strict=True)
    ]
    largest = float(max((s for s, line in zip(scale, lines, strict=True) if not line.constant), default=1.0))
    widest = min(MULTIPLIER_BITS - 1 - math.frexp(largest)[1], SHIFT)
    shifts = [line.shift(widest) for line in lines]
    shift = max((s for s in shifts if s is not None), default=0)
    if None in shifts:
        shift = max(shift, min(widest, 16 - math.frexp(largest)[1]))  # enough to guess within one code
    found = [line.at(shift) for line in lines]
    guesses = [pair or line.guess(shift) for pair, line in zip(found, lines, strict=True)]
    tables = {c: steps[c] for c, pair in enumerate(found) if pair is None}
    multiplier, offset = (np.array([g[i] for g in guesses], np.int64) for i in (0, 1))
    form = Requantize(multiplier, offset, shift, clamp.low, clamp.high, tables=tables, scale=scale)
    if not _holds(form, steps, least, most):
        raise InternalError("a requantization does not meet its thresholds")
    return form


def _powers(scale: Array, clamp: Clamp) -> Requantize | None:
    """Shifts with ties to even, where every scale is a power of two."""
    mantissas, exponents = np.frexp(scale)
    if np.any(mantissas != 0.5):
        return None
    shift = max(int(1 - exponents.min()), 1)
    multiplier = np.int64(1) << (exponents.astype(np.int64) - 1 + shift)
    offset = np.full(len(scale), (clamp.zero << shift) + (1 << (shift - 1)) - 1, np.int64)
    return Requantize(multiplier, offset, shift, clamp.low, clamp.high, ties_to_even=True, scale=scale)


def _holds(form: Requantize, steps: Array, least: Array, most: Array) -> bool:
    """Whether a form meets the thresholds: it never falls, so the accumulators at them and before them decide."""
    codes = np.arange(form.low + 1, form.high + 1)
    for sums, reached in ((steps, True), (steps - 1, False)):
        inside = (sums >= least[:, None]) & (sums <= most[:, None])
        made = requantize(np.clip(sums, least[:, None], most[:, None]).T, form).T
        if np.any(inside & ((made >= codes) != reached)):
            return False
    for ends in (least, most):  # what is always or never reached
        made = requantize(ends, form)
        if np.any(made != form.low + (steps <= ends[:, None]).sum(axis=1)):
            return False
    return True


class _Line:
    """One channel's thresholds as points that a line keeps above or below."""

    def __init__(self, clamp: Clamp, steps: list[int], least: int, most: int, scale: float) -> None:
        points = [(t, clamp.low + 1 + i) for i, t in enumerate(steps)]
        self.scale = scale
        # A code that is always reached bounds the line from below only, one that never is from above only.
        self.constant = not any(least < t <= most for t in steps)
        self.reached = _hull([(t, k) for t, k in points if t <= most], 1)
        self.missed = _hull([(t - 1, k) for t, k in points if t > least], -1)

    def at(self, shift: int) -> tuple[int, int] | None:
        """The multiplier nearest to the scale and an offset that meet all thresholds at a shift; None where none do."""
        low, high, unit = 0, 0 if self.constant else 1 << 62, 1 << shift
        for t, k in self.reached:
            for u, j in self.missed:  # k * unit - t * M <= j * unit - u * M - 1
                rise, run = (k - j) * unit + 1, t - u
                if run > 0:
                    low = max(low, -(-rise // run))
                elif run < 0:
                    high = min(high, rise // run)
                elif rise > 0:
                    return None
        if low > high:
            return None
        multiplier = min(max(round(math.ldexp(self.scale, shift)), low), high)
        return multiplier, self._offset(multiplier, unit, 0)

    def guess(self, shift: int) -> tuple[int, int]:
        """A line that gives each accumulator its code or the one below."""
        multiplier = round(math.ldexp(self.scale, shift))
        return multiplier, self._offset(multiplier, 1 << shift, 1)

    def _offset(self, multiplier: int, unit: int, slack: int) -> int:
        least = [(k - slack) * unit - t * multiplier for t, k in self.reached]
        most = [k * unit - u * multiplier - 1 for u, k in self.missed]
        if not least or not most:
            return max(least) if least else min(most, default=0)
        return (max(least) + min(most)) >> 1

    def shift(self, widest: int) -> int | None:
        """The smallest shift up to `widest` with a line, which is there at every larger one; None without any."""
        if widest < 0 or self.at(widest) is None:
            return None
        low, high = -1, widest
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.at(middle) is not None else (middle, high)
        return high


def _hull(points: list[Point], side: int) -> list[Point]:
    """The upper (1) or lower (-1) convex hull of points that ascend."""
    hull: list[Point] = []
    for x, y in points:
        while len(hull) > 1:
            (x0, y0), (x1, y1) = hull[-2:]
            if side * ((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)) < 0:
                break
            hull.pop()
        if hull and hull[-1][0] == x:  # of one accumulator's codes only the extreme one matters
            if side < 0:
                continue
            hull.pop()
        hull.append((x, y))
    return hull
