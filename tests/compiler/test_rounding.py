"""Rounding to half precision: always a neighbour, errors of each slice cancel, the rest stays as near."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tapeout.compiler.rounding import LONG, steered

FLOATS = st.floats(-65504, 65504, width=32)


def is_neighbour(found: Any, exact: Any) -> Any:
    """Whether each float16 is the next one at or above, or at or below, the exact value."""
    with np.errstate(over="ignore"):
        below = np.nextafter(found, np.float16(-np.inf)).astype(np.float64)
        above = np.nextafter(found, np.float16(np.inf)).astype(np.float64)
    return (below < exact) & (exact < above) & np.isfinite(found)


@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 40)), elements=FLOATS))
def test_every_value_goes_to_a_neighbour_and_no_sum_grows(array: Any) -> None:
    found = steered(array, 0)
    assert found.dtype == np.float16 and found.shape == array.shape
    assert is_neighbour(found, array.astype(np.float64)).all()
    exact = array.astype(np.float64)
    sums = np.abs((found - exact).sum(1)), np.abs((array.astype(np.float16) - exact).sum(1))
    assert (sums[0] <= sums[1] * (1 + 1e-6) + 1e-12).all()


@pytest.mark.parametrize(("shape", "axis"), [((32, 3, 3, 16), 0), ((300, 24), -1), ((3, 5 * LONG), 0)])
def test_the_errors_of_an_output_cancel(shape: tuple[int, ...], axis: int) -> None:
    exact = np.random.default_rng(3).standard_normal(shape).astype(np.float32) * 0.1
    near, found = exact.astype(np.float16), steered(exact, axis)
    rest = tuple(i for i in range(len(shape)) if i != axis % len(shape))
    before = np.abs((near - exact.astype(np.float64)).sum(rest)).mean()
    after = np.abs((found - exact.astype(np.float64)).sum(rest)).mean()
    assert after < 0.25 * before
    noise = [float(((a - exact.astype(np.float64)) ** 2).sum()) for a in (near, found)]
    assert noise[1] < 1.1 * noise[0]


def test_a_layer_on_inputs_with_a_mean_is_nearer_to_the_exact_one() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 128)).astype(np.float32)
    inputs = np.maximum(rng.standard_normal((128, 500)) + 1, 0)
    exact = weight.astype(np.float64) @ inputs
    error = [float(np.std(w @ inputs - exact)) for w in (weight.astype(np.float16), steered(weight, 0))]
    assert error[1] < 0.75 * error[0]


def test_values_that_float16_holds_stay() -> None:
    held = np.arange(-8, 8, 0.25, dtype=np.float32).reshape(2, -1)
    np.testing.assert_array_equal(steered(held, 0), held)
    assert steered(np.zeros((3, 0), np.float32), 0).shape == (3, 0)
