"""Activations on TFLite, on both resolvers, from scalars to rank 6."""

from __future__ import annotations

import numpy as np
import pytest

from tests.targets.tflite.road import agrees

CALLS = [
    "Relu (x)", "LeakyRelu <alpha = 0.3> (x)", "Elu (x)", "Gelu (x)", 'Gelu <approximate = "tanh"> (x)',
    "HardSwish (x)", "Sigmoid (x)", "Tanh (x)",
]  # fmt: skip
SHAPES = ["5", "3,5", "2,2,3,5", "1,2,2,2,3,5", "N,5"]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("shape", SHAPES)
def test_activation(call: str, shape: str) -> None:
    agrees(f"agraph (float[{shape}] x) => (float[{shape}] y) {{ y = {call} }}")


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize(
    ("shape", "axis"), [("5", 0), ("3,5", -1), ("3,5", 0), ("2,3,4,5", 1), ("2,2,3,4,5", 2), ("N,5", 1)]
)
def test_softmax(op: str, shape: str, axis: int) -> None:
    agrees(f"agraph (float[{shape}] x) => (float[{shape}] y) {{ y = {op} <axis = {axis}> (x) }}")


@pytest.mark.parametrize("slope", ["5", "1", "4,1", "3,1,1", "2,3,4,5"])
def test_prelu(slope: str) -> None:
    agrees(f"agraph (float[2,3,4,5] x, float[{slope}] s) => (float[2,3,4,5] y) {{ y = PRelu (x, s) }}")


@pytest.mark.parametrize("dtype", ["float", "int8", "uint8", "int32", "int64"])
@pytest.mark.parametrize(("low", "high"), [(2, 7), (0, 6), (0, 1), (None, 4), (3, None), (0, None)])
def test_clip(dtype: str, low: int | None, high: int | None) -> None:
    data = [f"{dtype} {n} = {{{v}}}" for n, v in (("lo", low), ("hi", high)) if v is not None]
    inputs = ["x", "lo" if low is not None else "", *(["hi"] if high is not None else [])]
    text = (
        f"agraph ({dtype}[3,5] x) => ({dtype}[3,5] y)\n<{', '.join(data)}>\n"
        f"{{ y = Clip ({', '.join(inputs)}) }}"
    )
    agrees(text)


def test_clip_with_computed_bounds() -> None:
    given = {
        "x": np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32),
        "lo": np.array(-0.5, np.float32),
        "hi": np.array(0.7, np.float32),
    }
    agrees(
        "agraph (float[3,5] x, float lo, float hi) => (float[3,5] y) { y = Clip (x, lo, hi) }", inputs=given
    )
