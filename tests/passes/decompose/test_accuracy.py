"""Elementwise decompositions against float64, over wide ranges and edge values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tapeout.compiler import pipeline
from tapeout.passes.decompose import Decompose
from tests.passtext import _minimal, parse, run

Array = np.ndarray[Any, Any]

EDGES = [0.0, -0.0, 1e-30, -1e-30, 1e-6, -1e-6, 0.5, 1.0, -1.0, 50.0, -50.0, 1e4, -1e4]


def decomposed(op: str, x: Array) -> Array:
    """`op` of x in float32, decomposed, in ONNX Runtime."""
    shape = ",".join(map(str, x.shape))
    proto = parse(f"agraph (float[{shape}] x) => (float[{shape}] y) {{ y = {op} (x) }}")
    model = _minimal(proto)
    assert pipeline.run(model, (Decompose(),)).steps[0].count, f"{op} was not decomposed"
    after = ir.to_proto(model)
    return run(after, {"x": x.astype(np.float32)})["y"].astype(np.float64)


def _erf(x: Array) -> Array:
    return np.vectorize(math.erf)(x)


FUNCTIONS: dict[str, tuple[Callable[[Array], Array], float, float]] = {
    "Erf": (_erf, -10, 10),
    "Atan": (np.arctan, -30, 30),
    "Asin": (np.arcsin, -1, 1),
    "Acos": (np.arccos, -1, 1),
    "Softplus": (lambda x: np.logaddexp(x, 0), -30, 30),
    "Mish": (lambda x: x * np.tanh(np.logaddexp(x, 0)), -30, 30),
    "Swish": (lambda x: x / (1 + np.exp(-x)), -30, 30),
    "Gelu": (lambda x: x / 2 * (1 + _erf(x / math.sqrt(2))), -10, 10),
    'Gelu <approximate = "tanh">': (
        lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))), -10, 10,
    ),
    "Selu": (lambda x: 1.0507010 * np.where(x > 0, x, 1.6732632 * np.expm1(np.minimum(x, 0))), -30, 30),
    "Celu <alpha = 2.0>": (lambda x: np.maximum(x, 0) + np.minimum(0, 2 * np.expm1(np.minimum(x, 0) / 2)), -30, 30),
    "Elu <alpha = 0.3>": (lambda x: np.where(x > 0, x, 0.3 * np.expm1(np.minimum(x, 0))), -30, 30),
    "Softsign": (lambda x: x / (1 + np.abs(x)), -30, 30),
    "HardSwish": (lambda x: x * np.clip(x / 6 + 0.5, 0, 1), -10, 10),
}  # fmt: skip


@pytest.mark.parametrize("op", sorted(FUNCTIONS))
def test_within_two_millionths(op: str) -> None:
    function, low, high = FUNCTIONS[op]
    x = np.concatenate([np.linspace(low, high, 20001), [e for e in EDGES if low <= e <= high]])
    x = x.astype(np.float32).astype(np.float64)
    error = np.abs(decomposed(op, x) - function(x)) / np.maximum(np.abs(function(x)), 1.0)
    assert error.max() <= 2e-6, f"{error.max():.3g} at x = {x[error.argmax()]}"


@pytest.mark.parametrize("op", ["Erf", "Atan", "Softplus", "Asin", "Swish", "Mish"])
def test_not_a_number_stays(op: str) -> None:
    assert np.isnan(decomposed(op, np.array([np.nan, 0.0]))).tolist() == [True, False]


def test_limits() -> None:
    x = np.array([np.inf, -np.inf, 1e30, -1e30])
    assert decomposed("Erf", x).tolist() == [1, -1, 1, -1]
    np.testing.assert_allclose(decomposed("Atan", x), np.arctan(x), rtol=1e-6)
    assert decomposed("Softplus", x).tolist()[:2] == [np.inf, 0]
    assert np.isnan(decomposed("Asin", np.array([1.5, -1.5]))).all()


def test_softplus_keeps_small_numbers() -> None:
    x = np.linspace(-60, -10, 501).astype(np.float32).astype(np.float64)
    reference = np.log1p(np.exp(x))
    assert np.max(np.abs(decomposed("Softplus", x) - reference) / reference) < 5e-6
