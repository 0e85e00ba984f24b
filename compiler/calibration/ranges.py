"""The range of a tensor by a method: all values, a percentile of them, the least error, the least divergence.

Every method answers (lo, hi) with lo <= 0 <= hi and lo < hi, so that zero is a code of every scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tapeout.compiler.calibration.histogram import BINS, Histogram

Floats = NDArray[np.float64]
Range = tuple[float, float]

METHODS = ("minmax", "percentile", "mse", "entropy", "moving")
PERCENTILE = 99.99
# Ranges that a search tries, as shares of the whole one, widest first; and around the best of them.
GRID = 2.0 ** (-np.arange(49) / 8.0)
FINE = 2.0 ** (np.arange(8, -9, -1) / 64.0)


def with_zero(lo: float, hi: float, symmetric: bool) -> Range:
    """The range with zero inside; symmetric where asked; [0, 1] where there is nothing but zero."""
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    if symmetric:
        hi = max(-lo, hi)
        lo = -hi
    if lo == hi:
        return (-1.0, 1.0) if symmetric else (0.0, 1.0)
    return lo, hi


def percentile(histogram: Histogram, lo: float, hi: float, percent: float = PERCENTILE) -> Range:
    """The range that leaves out (100 - percent) / 2 percent of the values on each side, linear in a bin.

    A side on which fewer values lie stays whole: nothing is cut from [0, hi] at 0.
    """
    counts = histogram.counts
    cumulated = np.concatenate([[0], np.cumsum(counts)]).astype(np.float64)
    tail = cumulated[-1] * (100.0 - percent) / 200.0
    edges = histogram.edges()
    low = float(np.interp(tail, cumulated, edges)) if lo < 0 else lo
    high = float(np.interp(cumulated[-1] - tail, cumulated, edges)) if hi > 0 else hi
    return max(lo, low), min(hi, high)


def rounding(edges: Floats, step: Floats) -> Floats:
    """The integral of (x - round(x))^2 from 0 to each edge, for codes at multiples of `step`."""
    t = edges / step
    whole = np.rint(t)
    rest = t - whole
    return np.asarray((whole / 12.0 + rest * rest * rest / 3.0) * (step * step * step))


def squared_errors(histogram: Histogram, lo: Floats, hi: Floats, levels: int) -> Floats:
    """For each range the mean squared error of its codes on values spread evenly in each bin; exact for those.

    `levels` is the number of steps between lo and hi: 255 for int8. Zero is a code.
    """
    edges, counts = _used(histogram)
    lo, hi = lo[:, None], hi[:, None]
    integral = np.diff(rounding(np.clip(edges, lo, hi), (hi - lo) / levels), axis=1)
    # What lies outside is moved to the border: the integral of (x - border)^2.
    if (hi < edges[-1]).any():
        integral += np.diff(np.maximum(edges - hi, 0.0) ** 3, axis=1) / 3.0
    if (lo > edges[0]).any():
        integral += np.diff(np.minimum(edges - lo, 0.0) ** 3, axis=1) / 3.0
    # A sum of products in a fixed order: the same on every processor.
    return np.asarray((integral * (counts / np.diff(edges))).sum(axis=1) / histogram.total)


# Bins that a search looks at: two in each step of a code of 8 bits.
SEARCHED = 512


def _used(histogram: Histogram) -> tuple[Floats, Floats]:
    """Edges and counts of the bins that hold anything; neighbours together where they are more than SEARCHED."""
    used = np.flatnonzero(histogram.counts)
    first, last = int(used[0]), int(used[-1]) + 1
    join = -(-(last - first) // SEARCHED)
    starts = np.arange(first, last, join)
    counts = np.add.reduceat(without_zeros(histogram.counts)[:last], starts).astype(np.float64)
    return histogram.edges()[np.append(starts, last)], counts


def without_zeros(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """`counts` with no more in bin 0, which is two bins wide, than its neighbours let expect: the rest are
    zeros, which every range keeps without an error."""
    counts = counts.copy()
    counts[BINS] = min(counts[BINS], 2 * max(counts[BINS - 1], counts[BINS + 1], 1))
    return counts


Errors = Callable[[Floats, Floats], Floats]


def least(lo: float, hi: float, symmetric: bool, errors: Errors) -> Range:
    """The range inside [lo, hi] with the least error: both sides shrink together, by a grid and then by a finer
    one around its best; then each side alone, where both hold something. The widest of equals is taken.
    """
    wide = with_zero(lo, hi, symmetric)
    low, high = wide

    def best(lows: Floats, highs: Floats) -> Range:
        index = int(np.argmin(errors(lows, highs)))
        return float(lows[index]), float(highs[index])

    low, high = best(wide[0] * GRID, wide[1] * GRID)
    low, high = best(*(np.clip(side * FINE, *wide) for side in (low, high)))
    if symmetric or not wide[0] < 0 < wide[1]:
        return low, high
    for _ in range(2):
        shares = np.concatenate([[low / wide[0]], GRID[GRID > 0.1], np.minimum(low / wide[0] * FINE, 1.0)])
        low, high = best(wide[0] * shares, np.full(len(shares), high))
        shares = np.concatenate([[high / wide[1]], GRID[GRID > 0.1], np.minimum(high / wide[1] * FINE, 1.0)])
        low, high = best(np.full(len(shares), low), wide[1] * shares)
    return low, high


def mse(histogram: Histogram, lo: float, hi: float, bits: int, symmetric: bool) -> Range:
    """The range whose codes have the least mean squared error."""
    levels = (1 << bits) - (2 if symmetric else 1)
    return least(lo, hi, symmetric, lambda a, b: squared_errors(histogram, a, b, levels))


def entropy(histogram: Histogram, lo: float, hi: float, bits: int, symmetric: bool) -> Range:
    """The range whose codes keep most of the distribution: the least Kullback-Leibler divergence of the
    quantized histogram from the clipped one (Migacz, "8-bit inference with TensorRT", 2017).

    Values outside count in the outermost bin inside; zeros, which every range keeps, do not count. More than 8
    bits are treated as 8: there the histogram has no more to tell.
    """
    levels = (1 << min(bits, 8)) - (2 if symmetric else 1)
    counts = without_zeros(histogram.counts).astype(np.float64)

    def errors(lows: Floats, highs: Floats) -> Floats:
        return np.array(
            [divergence(counts, histogram.width, a, b, levels) for a, b in zip(lows, highs, strict=True)]
        )

    return least(lo, hi, symmetric, errors)


def divergence(counts: Floats, width: float, lo: float, hi: float, levels: int) -> float:
    """KL(P || Q): P the bins inside [lo, hi] with all else gathered at its borders, Q what `levels` groups of
    these bins can tell apart, spread evenly over the bins of a group that hold anything."""
    first = max(0, BINS + math.floor(lo / width))
    last = min(2 * BINS, BINS + math.ceil(hi / width))
    inside = counts[first : last + 1]
    p = inside.copy()
    p[0] += counts[:first].sum()
    p[-1] += counts[last + 1 :].sum()
    total, held_inside = p.sum(), inside.sum()
    if not held_inside:
        return math.inf
    groups = np.arange(len(p)) * (levels + 1) // len(p)
    held = np.bincount(groups, weights=inside, minlength=levels + 1)
    members = np.bincount(groups, weights=p > 0, minlength=levels + 1)
    q = np.divide(held, members, out=np.zeros_like(held), where=members > 0)[groups]
    used = p > 0
    # A little of everything, so that what Q lacks costs much but not all.
    p, q = p[used] / total, np.maximum(q[used] / held_inside, 1e-10)
    return float((p * np.log(p / q)).sum())
