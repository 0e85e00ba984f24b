"""The range of a tensor by a method: all values, a percentile of them, the least error, the least divergence.

Every method answers (lo, hi) with lo <= 0 <= hi and lo < hi, so that zero is a code of every scale.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tapeout.compiler.calibration.histogram import BINS, Histogram

Floats = NDArray[np.float64]
Range = tuple[float, float]

METHODS = ("minmax", "percentile", "mse", "entropy", "moving")
PERCENTILE = 99.99
# Ranges that a search tries, as shares of the whole one.
SHARES = np.concatenate([np.linspace(0.02, 0.5, 49), np.linspace(0.505, 1.0, 100)])


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


def rounding(edges: Floats, step: float, zero: float = 0.0) -> Floats:
    """The integral of (x - round(x))^2 from 0 to each edge, for codes at multiples of `step`."""
    t = edges / step - zero
    whole = np.rint(t)
    rest = t - whole
    return np.asarray((whole / 12.0 + rest**3 / 3.0) * step**3)


def squared_error(histogram: Histogram, lo: float, hi: float, levels: int) -> float:
    """The mean squared error of codes on [lo, hi] for values spread evenly in each bin; exact for those.

    `levels` is the number of steps between lo and hi: 255 for int8. Zero is a code.
    """
    edges, counts = histogram.edges(), histogram.counts
    used = np.flatnonzero(counts)
    first, last = int(used[0]), int(used[-1]) + 1
    edges, counts = edges[first : last + 1], counts[first:last]
    step = (hi - lo) / levels
    inside = np.clip(edges, lo, hi)
    integral = np.diff(rounding(inside, step))
    # What lies outside is moved to the border: the integral of (x - border)^2.
    over, under = np.maximum(edges - hi, 0.0), np.minimum(edges - lo, 0.0)
    integral += np.diff(over**3 / 3.0) + np.diff(under**3 / 3.0)
    return float((integral * counts / np.diff(edges)).sum() / counts.sum())


def least(
    lo: float, hi: float, symmetric: bool, error: Callable[[float, float], float], shares: Floats = SHARES
) -> Range:
    """The range among shares of [lo, hi] with the least error; each side by itself where both matter.

    Both sides shrink together first, then each alone from there; the widest of equals is taken.
    """
    wide = with_zero(lo, hi, symmetric)
    best, value = wide, error(*wide)

    def tried(low: float, high: float) -> None:
        nonlocal best, value
        if low < high:
            found = error(low, high)
            if found < value:
                best, value = (low, high), found

    for share in shares[::-1]:
        tried(wide[0] * float(share), wide[1] * float(share))
    if not symmetric and wide[0] < 0 < wide[1]:
        for share in shares[::-1]:
            tried(wide[0] * float(share), best[1])
        for share in shares[::-1]:
            tried(best[0], wide[1] * float(share))
    return best


def mse(histogram: Histogram, lo: float, hi: float, bits: int, symmetric: bool) -> Range:
    """The range whose codes have the least mean squared error."""
    levels = (1 << bits) - (2 if symmetric else 1)
    return least(lo, hi, symmetric, lambda a, b: squared_error(histogram, a, b, levels))


def entropy(histogram: Histogram, lo: float, hi: float, bits: int, symmetric: bool) -> Range:
    """The range whose codes keep most of the distribution: the least Kullback-Leibler divergence of the
    quantized histogram from the clipped one (Migacz, "8-bit inference with TensorRT", 2017).

    Values outside count in the outermost bin inside. More than 8 bits are treated as 8: there the histogram
    has no more to tell.
    """
    levels = (1 << min(bits, 8)) - (2 if symmetric else 1)
    return least(lo, hi, symmetric, lambda a, b: divergence(histogram, a, b, levels))


def divergence(histogram: Histogram, lo: float, hi: float, levels: int) -> float:
    """KL(P || Q): P the bins inside [lo, hi] with all else gathered at its borders, Q what `levels` groups of
    these bins can tell apart, spread evenly over the bins of a group that hold anything."""
    width = histogram.width
    first = max(0, BINS + int(np.floor(lo / width)))
    last = min(2 * BINS, BINS + int(np.ceil(hi / width)))
    inside = histogram.counts[first : last + 1].astype(np.float64)
    p = inside.copy()
    p[0] += histogram.counts[:first].sum()
    p[-1] += histogram.counts[last + 1 :].sum()
    total = p.sum()
    if total == 0:
        return float("inf")
    groups = np.minimum((np.arange(len(p)) * (levels + 1)) // len(p), levels)
    held = np.bincount(groups, weights=inside, minlength=levels + 1)
    members = np.bincount(groups, weights=p > 0, minlength=levels + 1)
    q = np.divide(held, members, out=np.zeros_like(held), where=members > 0)[groups] * (p > 0)
    if not q.sum():
        return float("inf")
    # A little of everything, so that what Q lacks costs much but not all.
    p, q = p / total, q / q.sum()
    used = p > 0
    return float((p[used] * np.log(p[used] / np.maximum(q[used], 1e-10))).sum())
