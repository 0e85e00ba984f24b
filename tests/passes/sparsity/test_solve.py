"""Masks and what is fitted on them, against float64 and against each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapeout.compiler.errors import UsageError
from tapeout.passes.sparsity.pattern import Pattern
from tapeout.passes.sparsity.solve import SOLVERS, damped, fitted

Array = np.ndarray[Any, Any]


def problem(seed: int = 0, outputs: int = 24, inputs: int = 48) -> tuple[Array, Array]:
    """A weight and the moments of correlated inputs, some far louder than others."""
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((600, 12)) @ draw.standard_normal((12, inputs))
    x = (x + 0.3 * draw.standard_normal(x.shape)) * np.exp(draw.standard_normal(inputs))
    return draw.standard_normal((outputs, inputs)), x.T @ x


def loss(weight: Array, sparse: Array, moments: Array) -> float:
    change = sparse - weight
    return float(np.sum((change @ moments) * change) / np.sum((weight @ moments) * weight))


@pytest.mark.parametrize("pattern", ["0.5", "2:4", "1:4", "1x4:0.5", "4x4:0.5"])
@pytest.mark.parametrize("method", SOLVERS)
def test_every_solver_keeps_to_the_pattern(method: str, pattern: str) -> None:
    weight, moments = problem()
    wanted = Pattern.parse(pattern)
    found = SOLVERS[method](weight, moments, wanted, wanted.ratio)
    assert np.mean(found == 0) == pytest.approx(wanted.ratio, abs=0.03)
    if wanted.of:
        assert (np.count_nonzero(found.reshape(-1, wanted.of), axis=1) <= wanted.keep).all()
    rows, columns = wanted.block
    blocks = found.reshape(24 // rows, rows, 48 // columns, columns) == 0
    assert np.isin(blocks.sum((1, 3)), (0, rows * columns)).all()


@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_each_method_is_better_than_the_one_before(pattern: str) -> None:
    wanted = Pattern.parse(pattern)
    losses = {}
    for method, solver in SOLVERS.items():
        losses[method] = np.mean([
            loss(w, solver(w, h, wanted, wanted.ratio), h) for w, h in map(problem, range(5))
        ])  # fmt: skip
    assert losses["magnitude"] > losses["wanda"] > losses["sparsegpt"] > losses["admm"]


def test_fitting_on_a_mask_is_the_least_squares_solution() -> None:
    weight, moments = problem()
    held = damped(moments)
    stay = np.random.default_rng(1).random(weight.shape) < 0.5
    found = fitted(weight, held, stay, weight, rounds=200)
    for row, mask, result in zip(weight, stay, found, strict=True):
        exact = np.linalg.solve(held[np.ix_(mask, mask)], held[mask] @ row)
        np.testing.assert_allclose(result[mask], exact, rtol=1e-6, atol=1e-9)
        assert not result[~mask].any()


@settings(max_examples=60, deadline=None)
@given(st.floats(0.01, 0.99), st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_a_ratio_is_met_to_one_block(ratio: float, rows: int, columns: int, seed: int) -> None:
    score = np.random.default_rng(seed).random((6 * rows, 6 * columns))
    mask = Pattern(ratio, block=(rows, columns)).mask(score)
    assert abs(np.sum(~mask) - ratio * mask.size) <= rows * columns


@pytest.mark.parametrize(
    ("text", "said"),
    [("0", "outside"), ("1", "outside"), ("-0.5", "outside"), ("1.5", "outside"), ("nan", "outside"),
     ("4:2", "keeps 4"), ("0:4", "keeps 0"), ("half", "no pattern"), ("1x4:2", "outside"), ("0x4:0.5", "outside")],
)  # fmt: skip
def test_what_is_no_pattern_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Pattern.parse(text)


def test_a_pattern_that_does_not_divide_says_why() -> None:
    assert Pattern.parse("2:4").misfit(8, 30) == "30 inputs are no multiple of 4"
    assert Pattern.parse("8x4:0.5").misfit(12, 32) == "12 outputs are no multiple of 8"
    assert Pattern.parse("0.5").misfit(7, 13) is None
