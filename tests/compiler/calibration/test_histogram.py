"""Histograms merge exactly, and the ranges taken from them are those of the values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapeout.compiler.calibration import ranges
from tapeout.compiler.calibration.histogram import BINS, Histogram, count, exponent_of
from tapeout.compiler.calibration.measure import Total, measure
from tapeout.compiler.calibration.statistics import TensorStats
from tapeout.compiler.errors import UsageError

VALUES = st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=60)


def histogram(values: np.ndarray) -> Histogram:
    return count(values, float(np.abs(values).max(initial=0)))


@settings(max_examples=200, deadline=None)
@given(VALUES, VALUES)
def test_parts_add_up_to_the_whole(a: list[float], b: list[float]) -> None:
    x, y = np.array(a, np.float32), np.array(b, np.float32)
    whole, sums = (
        histogram(np.concatenate([x, y])),
        (histogram(x) + histogram(y), histogram(y) + histogram(x)),
    )
    for found in sums:
        assert found.exponent == whole.exponent
        assert np.array_equal(found.counts, whole.counts)
    assert whole.total == len(a) + len(b)


@given(st.floats(0, 3.4028234663852886e38, width=32))
def test_the_range_holds_the_largest_and_no_smaller_one_does(absmax: float) -> None:
    e = exponent_of(absmax)
    assert absmax <= math.ldexp(1.0, e)
    assert e == -100 or absmax > math.ldexp(1.0, e - 1)


def test_bins_are_where_they_say() -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(5000) * 3).astype(np.float32)
    found = histogram(x)
    edges = found.edges()
    inside = (x != 0) & ~np.isin(x, edges)
    # numpy's bins are [a, b), ours (a, b] below zero: equal where no value is an edge.
    expected, _ = np.histogram(x[inside].astype(np.float64), edges)
    assert np.array_equal(
        found.counts[: 2 * BINS + 1] - expected, histogram(x[~inside]).on(found.exponent).counts
    )


def stats(x: np.ndarray) -> TensorStats:
    total = Total()
    total.add(measure(np.asarray(x, np.float32), ()), x.ndim)
    return total.stats()


def quantized(x: np.ndarray, lo: float, hi: float, levels: int) -> np.ndarray:
    scale = (hi - lo) / levels
    zero = np.rint(-lo / scale)
    return (np.clip(np.rint(x / scale) + zero, 0, levels) - zero) * scale


DISTRIBUTIONS = {
    "normal": lambda r: r.standard_normal(20000),
    "relu": lambda r: np.maximum(r.standard_normal(20000), 0),
    "laplace": lambda r: r.laplace(size=20000),
    "outliers": lambda r: np.append(r.standard_normal(20000), [60, -20, 55]),
}


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_least_error_is_near_the_least_of_all(kind: str, bits: int, symmetric: bool) -> None:
    x = DISTRIBUTIONS[kind](np.random.default_rng(5)).astype(np.float32).astype(np.float64)
    found = stats(x)
    levels = 2**bits - (2 if symmetric else 1)

    def error(lo: float, hi: float) -> float:
        return float(((x - quantized(x, lo, hi, levels)) ** 2).mean())

    lo, hi = found.range("mse", bits, symmetric)
    wide = found.range("minmax", bits, symmetric)
    shares = np.linspace(0.02, 1, 120)
    best = min(error(wide[0] * s, wide[1] * s) for s in shares)
    assert error(lo, hi) <= 1.06 * best
    if bits == 4:
        assert error(lo, hi) < 0.7 * error(*wide)
    # And what the search believed is what happens.
    believed = ranges.squared_errors(found.histogram, np.array([lo]), np.array([hi]), levels)[0]  # type: ignore[arg-type]
    assert believed == pytest.approx(error(lo, hi), rel=0.1)


def test_percentile_leaves_out_what_it_says() -> None:
    x = np.random.default_rng(1).standard_normal(30000)
    for percent in (99.0, 99.9):
        lo, hi = stats(x).range("percentile", percent=percent)
        tail = (100 - percent) / 200
        for outside in ((x < lo).mean(), (x > hi).mean()):
            assert abs(outside - tail) <= 3 / len(x)
    positive = np.abs(x)
    assert stats(positive).range("percentile")[0] == 0


def test_entropy_cuts_outliers_and_keeps_what_is_even() -> None:
    rng = np.random.default_rng(2)
    lo, hi = stats(np.append(rng.standard_normal(30000), [80.0])).range("entropy")
    assert -8 < lo < -2 and 2 < hi < 12
    even = stats(rng.uniform(-1, 1, 30000)).range("entropy")
    assert even[0] < -0.9 and even[1] > 0.9


@settings(max_examples=60, deadline=None)
@given(VALUES, st.sampled_from(ranges.METHODS), st.booleans(), st.sampled_from([4, 8, 16]))
def test_every_range_holds_zero_and_is_inside(
    values: list[float], method: str, symmetric: bool, bits: int
) -> None:
    x = np.array(values, np.float32)
    lo, hi = stats(x).range(method, bits, symmetric)
    assert lo <= 0 <= hi and lo < hi and math.isfinite(lo) and math.isfinite(hi)
    if symmetric:
        assert lo == -hi
    if np.abs(x).max() > 0:
        largest = float(np.abs(x).max())
        assert hi <= max(largest, 0) * (1 + 1e-9) and lo >= -largest * (1 + 1e-9)


def test_moving_average_weighs_samples_in_their_order() -> None:
    total = Total()
    for high in (1.0, 2.0, 4.0):
        total.add(measure(np.array([0.0, high], np.float32), ()), 1)
    assert total.stats().range("moving") == pytest.approx((0.0, 0.9 * (0.9 * 1 + 0.1 * 2) + 0.1 * 4))


def test_ranges_that_are_none() -> None:
    empty = Total()
    empty.add(measure(np.zeros((2, 0), np.float32), ()), 2)
    with pytest.raises(UsageError, match=r"'t' has no element.*empty"):
        empty.stats().range(name="t")
    with pytest.raises(UsageError, match=r"'t' reaches from -inf to 2 .*no scale"):
        stats(np.array([-np.inf, 1, 2])).range(name="t")
    with pytest.raises(UsageError, match=r"no calibration method 'median'[\s\S]*percentile"):
        stats(np.array([1.0, 2])).range("median")
    assert stats(np.zeros(4)).range() == (0.0, 1.0)
    assert stats(np.zeros(4)).range(symmetric=True) == (-1.0, 1.0)
    assert stats(np.full(4, -3.0)).range() == (-3.0, 0.0)


def test_infinite_values_leave_the_rest_readable() -> None:
    found = stats(np.array([-np.inf, 1, 2, 3], np.float32))
    assert found.min == -np.inf and found.max == 3 and found.mean == 2 and not found.finite
    assert found.histogram is not None and found.histogram.total == 3
