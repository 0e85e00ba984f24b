"""Histograms that merge exactly: equal bins on a range that is a power of two and doubles when it must.

A value x falls into bin trunc(x / w), where w = 2^exponent / BINS. Doubling the range merges the bins i by
trunc(i / 2), and trunc(trunc(x / w) / 2) = trunc(x / 2w): counting and then doubling is the same as counting
on the doubled range. So the histogram of a set of values is a function of the set alone, whatever its order
and parts. Bin 0 is (-w, w), bin i > 0 is [iw, (i+1)w), bin i < 0 is ((i-1)w, iw].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Bins on each side of zero: at least 16 in each step of a symmetric int8 scale that covers all values.
BINS = 4096
# The smallest range is 2^LOWEST: what is smaller lies in bin 0, and the width stays a normal float32.
LOWEST = -100

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Histogram:
    """`counts[BINS + i]` values in bin i, -BINS <= i <= BINS; the range is [-2^exponent, 2^exponent]."""

    exponent: int
    counts: Counts

    @property
    def width(self) -> float:
        """The width of a bin."""
        return math.ldexp(1.0, self.exponent) / BINS

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    def edges(self) -> NDArray[np.float64]:
        """The 2 * BINS + 2 edges, ascending; the two halves of bin 0 count as one bin (-w, w)."""
        side = np.arange(1, BINS + 2, dtype=np.float64) * self.width
        return np.concatenate([-side[::-1], side])

    def on(self, exponent: int) -> Histogram:
        """The same values on the range 2^exponent, no smaller than its own."""
        doublings = exponent - self.exponent
        return self if not doublings else Histogram(exponent, _gathered(self.counts, doublings))

    def __add__(self, other: Histogram) -> Histogram:
        exponent = max(self.exponent, other.exponent)
        return Histogram(exponent, self.on(exponent).counts + other.on(exponent).counts)


def exponent_of(absmax: float) -> int:
    """The exponent of the range that holds values up to `absmax`: the least e with absmax <= 2^e."""
    if absmax <= math.ldexp(1.0, LOWEST):
        return LOWEST
    mantissa, exponent = math.frexp(absmax)
    return exponent - 1 if mantissa == 0.5 else exponent


def count(values: NDArray[np.float32], absmax: float) -> Histogram:
    """The histogram of finite float32 `values`, on the range that `absmax` (at least theirs) asks for."""
    exponent = exponent_of(absmax)
    # A product with a power of two is exact, and so is the cut to an integer.
    scaled = values * np.float32(math.ldexp(float(BINS), -exponent))
    index = scaled.astype(np.int64)
    index += BINS
    return Histogram(exponent, np.bincount(index, minlength=2 * BINS + 1))


def _gathered(counts: Counts, doublings: int) -> Counts:
    """The bins i gathered in trunc(i / 2^doublings)."""
    result = np.zeros_like(counts)
    step = 1 << min(doublings, BINS.bit_length())
    most = BINS // step
    for old, new in ((counts[BINS:], result[BINS:]), (counts[BINS::-1], result[BINS::-1])):
        if most:
            new[:most] += old[:BINS].reshape(-1, step).sum(axis=1)
        else:
            new[0] += old[:BINS].sum()
        new[most] += old[BINS]
    result[BINS] -= counts[BINS]  # bin 0 is in both sides
    return result
