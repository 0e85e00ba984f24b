"""Comparisons and logic on TFLite, on both resolvers."""

from __future__ import annotations

import numpy as np
import pytest

from tests.targets.tflite.road import agrees

RNG = np.random.default_rng(6)


@pytest.mark.parametrize("op", ["Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"])
@pytest.mark.parametrize("dtype", ["float", "int32", "int64"])
@pytest.mark.parametrize("shapes", [("4,1", "3", "4,3"), ("2,3", "2,3", "2,3"), ("N,3", "3", "N,3")], ids=str)
def test_comparison(op: str, dtype: str, shapes: tuple[str, str, str]) -> None:
    a, b, c = shapes
    text = f"agraph ({dtype}[{a}] x, {dtype}[{b}] z) => (bool[{c}] y) {{ y = {op} (x, z) }}"
    kind = {"float": "float32"}.get(dtype, dtype)
    size = [[int(d) if d.isdigit() else 2 for d in s.split(",")] for s in (a, b)]
    x, z = (RNG.integers(-1, 2, s).astype(kind) for s in size)
    agrees(text, inputs={"x": x, "z": z})


@pytest.mark.parametrize("op", ["Equal", "Less", "GreaterOrEqual"])
def test_nothing_compares_with_nan(op: str) -> None:
    x = np.array([np.nan, 1, np.inf, -np.inf, np.nan], np.float32)
    z = np.array([np.nan, np.nan, np.inf, 0, 1], np.float32)
    agrees(f"agraph (float[5] x, float[5] z) => (bool[5] y) {{ y = {op} (x, z) }}", inputs={"x": x, "z": z})


@pytest.mark.parametrize("op", ["And", "Or", "Xor"])
def test_logic(op: str) -> None:
    agrees(f"agraph (bool[2,1,5] x, bool[4,1] z) => (bool[2,4,5] y) {{ y = {op} (x, z) }}")


def test_not() -> None:
    agrees("agraph (bool[N,5] x) => (bool[N,5] y) { y = Not (x) }")


@pytest.mark.parametrize("call", [
    "IsNaN (x)", "IsInf (x)", "IsInf <detect_negative = 0> (x)", "IsInf <detect_positive = 0> (x)",
    "IsInf <detect_positive = 0, detect_negative = 0> (x)",
])  # fmt: skip
def test_special_numbers(call: str) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 3.4e38, 1], np.float32)
    agrees(f"agraph (float[7] x) => (bool[7] y) {{ y = {call} }}", inputs={"x": x})
