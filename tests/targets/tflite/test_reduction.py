"""Reductions, positions and running sums on TFLite, on both resolvers."""

from __future__ import annotations

import numpy as np
import pytest

from tests.targets.tflite.road import agrees, legalized, refusals

RNG = np.random.default_rng(7)
SHAPE = (2, 3, 4, 2, 3, 2)
FLOATS = ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
          "ReduceSumSquare", "ReduceLogSumExp"]  # fmt: skip


@pytest.mark.parametrize("op", FLOATS)
@pytest.mark.parametrize("rank", [1, 3, 4, 6])
@pytest.mark.parametrize("keep", [0, 1])
def test_reduction(op: str, rank: int, keep: int) -> None:
    shape = SHAPE[:rank]
    axes = sorted({0, rank - 1})
    x = RNG.standard_normal(shape).astype(np.float32)
    result = np.sum(x, tuple(axes), keepdims=bool(keep)).shape
    dims, out = ",".join(map(str, shape)), ",".join(map(str, result))
    text = f"""agraph (float[{dims}] x) => (float{f"[{out}]" if out else ""} y)
        <int64[{len(axes)}] a = {{{", ".join(map(str, axes))}}}> {{ y = {op} <keepdims = {keep}> (x, a) }}"""
    agrees(text, inputs={"x": x})


@pytest.mark.parametrize("axes", [(-1,), (1, -1), None])
@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMax", "ReduceMean"])
def test_axes(op: str, axes: tuple[int, ...] | None) -> None:
    given = "" if axes is None else f"<int64[{len(axes)}] a = {{{', '.join(map(str, axes))}}}>"
    call = f"{op} (x, a)" if axes else f"{op} (x)"
    result = np.zeros((2, 3, 4)).sum(axes if axes else None, keepdims=True).shape
    agrees(f"agraph (float[2,3,4] x) => (float[{','.join(map(str, result))}] y) {given} {{ y = {call} }}")


def test_computed_axes() -> None:
    text = "agraph (float[2,3,4] x, int64[2] a) => (float[U,V,W] y) { y = ReduceSum (x, a) }"
    agrees(text, inputs={"x": RNG.standard_normal((2, 3, 4)).astype(np.float32), "a": np.array([0, -1])})


def test_empty_axes() -> None:
    x = RNG.standard_normal((2, 3)).astype(np.float32)
    for noop, shape in ((0, "1,1"), (1, "2,3")):
        call = f"ReduceSum <noop_with_empty_axes = {noop}> (x, a)"
        text = f"agraph (float[2,3] x, int64[0] a) => (float[{shape}] y) {{ y = {call} }}"
        agrees(text, inputs={"x": x, "a": np.zeros(0, np.int64)})


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd"])
@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_integers(op: str, dtype: str) -> None:
    x = RNG.integers(-9, 9, (3, 5)).astype(dtype)
    agrees(
        f"agraph ({dtype}[3,5] x) => ({dtype}[3,1] y) <int64[1] a = {{1}}> {{ y = {op} (x, a) }}",
        inputs={"x": x},
    )


def test_booleans() -> None:
    body = "y = ReduceMax (x, a) z = ReduceMin (x, a)"
    text = f"agraph (bool[4,6] x) => (bool[4,1] y, bool[4,1] z) <int64[1] a = {{1}}> {{ {body} }}"
    model = legalized(text)
    assert refusals(model) == []


def test_extreme_of_nothing_is_refused() -> None:
    text = "agraph (float[2,0] x) => (float[2,1] y) <int64[1] a = {1}> { y = ReduceMax (x, a) }"
    assert "number of elements" in str(refusals(legalized(text))[0])


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("keep", [0, 1])
def test_positions_with_ties(op: str, axis: int, last: int, keep: int) -> None:
    x = RNG.integers(0, 3, (3, 4, 5)).astype(np.float32)
    shape = list(x.shape)
    shape[axis] = 1
    if not keep:
        del shape[axis % 3]
    attributes = f"axis = {axis}, keepdims = {keep}, select_last_index = {last}"
    text = (
        f"agraph (float[3,4,5] x) => (int64[{','.join(map(str, shape))}] y) {{ y = {op} <{attributes}> (x) }}"
    )
    agrees(text, inputs={"x": x})


@pytest.mark.parametrize("dtype", ["float", "int32", "int64"])
@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_cumsum(dtype: str, axis: int, exclusive: int, reverse: int) -> None:
    call = f"CumSum <exclusive = {exclusive}, reverse = {reverse}> (x, a)"
    agrees(f"agraph ({dtype}[4,5] x) => ({dtype}[4,5] y) <int64 a = {{{axis}}}> {{ y = {call} }}")


def test_log_of_sums_far_out() -> None:
    x = np.array([[1000, 1001, 999], [-1000, -1001, -999], [-np.inf, -np.inf, 3], [5, 5, 5]], np.float32)
    agrees("agraph (float[4,3] x) "
           "=> (float[4] y) <int64[1] a = {1}> { y = ReduceLogSumExp <keepdims = 0> (x, a) }",
           inputs={"x": x})  # fmt: skip
