"""The numbers against their definitions in float64."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from tapeout.compiler.metrics import difference, is_inexact, relative


def test_against_the_definitions() -> None:
    rng = np.random.default_rng(1)
    a = rng.standard_normal((7, 10)).astype(np.float32)
    b = (a + 1e-3 * rng.standard_normal(a.shape)).astype(np.float32)
    d = difference(a, b)
    x, y = a.astype(np.float64), b.astype(np.float64)
    assert d.error == pytest.approx(np.abs(x - y).max())
    assert d.relative == pytest.approx(np.abs(x - y).max() / np.abs(x).max()) == relative(a, b)
    assert d.sqnr == pytest.approx(10 * np.log10((x**2).sum() / ((x - y) ** 2).sum()))
    assert d.cosine == pytest.approx((x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum()))
    assert d.argmax == (a.argmax(-1) == b.argmax(-1)).mean()
    assert d.pattern and not d.exact


def test_equal_arrays() -> None:
    a = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    d = difference(a, a.copy())
    assert (d.error, d.relative, d.sqnr, d.exact, d.pattern) == (0, 0, math.inf, True, True)
    assert difference(np.zeros(3), np.zeros(3)).cosine == 1.0


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([1.0, np.nan], [1.0, 2.0]),
        ([1.0, 2.0], [1.0, np.inf]),
        ([1.0, np.inf], [1.0, -np.inf]),
        ([np.nan, 1.0], [1.0, np.nan]),
    ],
)
def test_values_that_are_not_finite_must_agree(a: list[float], b: list[float]) -> None:
    x, y = np.array(a, np.float32), np.array(b, np.float32)
    assert relative(x, y) == math.inf and not difference(x, y).pattern
    assert relative(x, x.copy()) == 0 and difference(x, x.copy()).pattern


def test_shapes_and_types_must_agree() -> None:
    a = np.ones((2, 3), np.float32)
    assert relative(a, a.reshape(3, 2)) == math.inf
    assert difference(a, a.reshape(3, 2)).found_shape == (3, 2)
    assert not difference(a, a.astype(np.float64)).pattern


def test_integers_are_exact() -> None:
    a = np.array([1, 2, 3])
    assert relative(a, np.array([1, 2, 4])) == math.inf and relative(a, a.copy()) == 0
    assert difference(a, np.array([1, 2, 4])).error == 1
    assert difference(np.array([True]), np.array([False])).error == 1
    assert (
        not is_inexact(a)
        and is_inexact(np.ones(1, ml_dtypes.bfloat16))
        and is_inexact(np.ones(1, np.complex64))
    )


def test_empty_scalar_and_complex() -> None:
    assert difference(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)).exact
    assert relative(np.float32(2).reshape(()), np.float32(3).reshape(())) == 0.5
    a = np.array([1 + 2j, 3 - 4j], np.complex64)
    assert relative(a, a) == 0 and relative(a, a + 1j) == pytest.approx(0.25)
