"""The sum of two tensors with scales of their own, as integers that round as float32 does.

The reference is DequantizeLinear, Add, QuantizeLinear in float32, a function of two codes: all their pairs are
looked at, at most 65,536. Integers meet it where for every pair of code k

    k * 2**s <= a * A + b * B + C < (k + 1) * 2**s          (one side only at the ends of a clip)
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np

from tapeout.targets.fpga.dialect import Array
from tapeout.targets.fpga.requantize import Clamp

SHIFT = 28  # the widest that is tried: float32 itself knows 24 bits of a scale


class Grid(NamedTuple):
    """real = scale * (code - zero), for codes from `low` to `high`."""

    scale: float
    zero: int
    low: int = -128
    high: int = 127


class Sum(NamedTuple):
    """clip((a * multipliers[0] + b * multipliers[1] + offset) >> shift); `differs` pairs get a neighbouring code."""

    multipliers: tuple[int, int]
    offset: int
    shift: int
    differs: int
    start: int = 0
    ties_to_even: bool = False


def code_of(a: Array, b: Array, first: Grid, second: Grid, scale: float, clamp: Clamp) -> Array:
    """The reference: codes int64 of the sums of two arrays of codes."""
    f = np.float32
    real = (a - first.zero).astype(f) * f(first.scale) + (b - second.zero).astype(f) * f(second.scale)
    steps = np.rint(real / f(scale)).astype(np.float64)
    codes: Array = np.clip(steps + clamp.zero, clamp.low, clamp.high).astype(np.int64)
    return codes


def exact(first: Grid, second: Grid, scale: float, clamp: Clamp) -> Sum:
    """The integers with the smallest shift that equal the reference for all pairs of codes; where none do, those
    that differ for the fewest."""
    a, b = np.arange(first.low, first.high + 1), np.arange(second.low, second.high + 1)
    a, b = (v.reshape(-1) for v in np.meshgrid(a, b, indexing="ij"))
    codes = code_of(a, b, first, second, scale, clamp)
    ratios = tuple(float(np.float32(g.scale)) / float(np.float32(scale)) for g in (first, second))
    zeros = first.zero, second.zero
    if all(math.frexp(r)[0] == 0.5 for r in ratios):
        return _powers(a, b, codes, ratios, zeros, clamp)
    best: Sum | None = None
    for shift in range(1, SHIFT + 1):
        near = [[math.floor(math.ldexp(r, shift)) + d for d in (0, 1)] for r in ratios]
        for left, right in itertools.product(*near):
            if left < 1 or right < 1:
                continue
            found = _offset(a * left + b * right, codes, shift, clamp)
            if best is None or found[1] < best.differs:
                best = Sum((left, right), found[0], shift, found[1])
            if best.differs == 0:
                return best
    assert best is not None
    return best


def _offset(sums: Array, codes: Array, shift: int, clamp: Clamp) -> tuple[int, int]:
    """An offset for the sums and the number of pairs that miss their codes with it."""
    least = (codes << shift) - sums  # the offset is at least this, for codes above the lowest
    most = ((codes + 1) << shift) - 1 - sums
    low, high = least[codes > clamp.low], most[codes < clamp.high]
    offset = (1 << (shift - 1)) if not len(low) or not len(high) else (int(low.max()) + int(high.min())) >> 1
    return offset, int(np.count_nonzero(low > offset) + np.count_nonzero(high < offset))


def _powers(
    a: Array, b: Array, codes: Array, ratios: tuple[float, ...], zeros: tuple[int, int], clamp: Clamp
) -> Sum:
    """Shifts, ties to even, for ratios that are powers of two."""
    shift = max(1, *(1 - math.frexp(r)[1] for r in ratios))
    left, right = (round(math.ldexp(r, shift)) for r in ratios)
    start = -left * zeros[0] - right * zeros[1]
    offset = start + (clamp.zero << shift) + (1 << (shift - 1)) - 1
    sums = a * left + b * right
    # The bit that ties look at is that of the quotient, without the zero point of the result.
    made = (sums + offset + (((sums + start) >> shift) & 1)) >> shift
    differs = int(np.count_nonzero(np.clip(made, clamp.low, clamp.high) != codes))
    return Sum((left, right), offset, shift, differs, start, ties_to_even=True)
