"""Gathering, scattering and selecting on TFLite, on both resolvers; negative and repeated indices."""

from __future__ import annotations

import numpy as np
import pytest

from tests.targets.tflite.road import agrees, legalized, refusals

RNG = np.random.default_rng(9)


def rand(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("kind", ["int32", "int64"])
@pytest.mark.parametrize("given", ["3,4,5", "N,M,5"])
def test_gather(axis: int, kind: str, given: str) -> None:
    x, size = rand(3, 4, 5), (3, 4, 5)[axis]
    i = RNG.integers(-size, size, (2, 3)).astype(kind)
    result = ["U", "V", "W", "X"]
    agrees(f"agraph (float[{given}] x, {kind}[2,3] i) "
           f"=> (float[{','.join(result)}] y) {{ y = Gather <axis = {axis}> (x, i) }}",
           inputs={"x": x, "i": i})  # fmt: skip


def test_gather_by_constants() -> None:
    agrees("agraph (float[3,4] x) => (float[3] y, float[3,2] z) <int64 i = {-1}, int64[2] j = {-4, 2}>"
           "{ y = Gather <axis = 1> (x, i) z = Gather <axis = 1> (x, j) }")  # fmt: skip


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("given", ["3,4,5", "N,M,5"])
def test_gather_nd(depth: int, given: str) -> None:
    x = rand(3, 4, 5)
    i = np.stack([RNG.integers(-s, s, 6) for s in x.shape[:depth]], -1)
    result = ",".join(["6", *"UVW"[: 3 - depth]])
    agrees(f"agraph (float[{given}] x, int64[6,{depth}] i) => (float[{result}] y) {{ y = GatherND (x, i) }}",
           inputs={"x": x, "i": i})  # fmt: skip


def test_gather_nd_in_batches() -> None:
    x, i = rand(2, 3, 4, 5), RNG.integers(-4, 4, (2, 3, 1))
    agrees("agraph (float[2,3,4,5] x, int64[2,3,1] i) "
           "=> (float[2,3,5] y) { y = GatherND <batch_dims = 2> (x, i) }",
           inputs={"x": x, "i": i})  # fmt: skip


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather_elements(axis: int) -> None:
    x, shape = rand(3, 4, 5), [2, 3, 4]
    i = RNG.integers(-x.shape[axis], x.shape[axis], shape)
    agrees(f"agraph (float[3,4,5] x, int64[2,3,4] i) "
           f"=> (float[2,3,4] y) {{ y = GatherElements <axis = {axis}> (x, i) }}",
           inputs={"x": x, "i": i})  # fmt: skip


@pytest.mark.parametrize("reduction", ["none", "add", "max", "min", "mul"])
@pytest.mark.parametrize("dtype", ["float", "int64"])
def test_scatter_elements(reduction: str, dtype: str) -> None:
    kind = {"float": np.float32, "int64": np.int64}[dtype]
    x, u = ((rand(4, 5) * 9).astype(kind), (rand(2, 5) * 9).astype(kind))
    i = np.array([[0, -1, 2, 3, -3], [1, 2, 0, -2, 2]])
    agrees(f'agraph ({dtype}[4,5] x, int64[2,5] i, {dtype}[2,5] u) '
           f'=> ({dtype}[4,5] y) {{ y = ScatterElements <reduction = "{reduction}"> (x, i, u) }}',
           inputs={"x": x, "i": i, "u": u})  # fmt: skip


@pytest.mark.parametrize("reduction", ["none", "add"])
@pytest.mark.parametrize("given", ["4,5", "N,5"])
def test_scatter_nd(reduction: str, given: str) -> None:
    i = np.array([[0], [-1], [2]]) if reduction == "none" else np.array([[0], [-1], [0]])
    agrees(f'agraph (float[{given}] x, int64[3,1] i, float[3,5] u) '
           f'=> (float[{given}] y) {{ y = ScatterND <reduction = "{reduction}"> (x, i, u) }}',
           inputs={"x": rand(4, 5), "i": i, "u": rand(3, 5)})  # fmt: skip


@pytest.mark.parametrize("reduction", ["max", "min", "mul"])
@pytest.mark.parametrize("depth", [1, 2])
def test_scatter_nd_of_many_updates_for_one_place(reduction: str, depth: int) -> None:
    x, u = rand(4, 5, 3), rand(6, *(4, 5, 3)[depth:])
    i = np.stack([RNG.integers(-2, 2, 6) for _ in range(depth)], -1)
    agrees(f'agraph (float[4,5,3] x, int64[6,{depth}] i, float[{",".join(map(str, u.shape))}] u) '
           f'=> (float[4,5,3] y) {{ y = ScatterND <reduction = "{reduction}"> (x, i, u) }}',
           inputs={"x": x, "i": i, "u": u})  # fmt: skip


def test_scatter_nd_of_too_many_updates_is_refused() -> None:
    model = legalized('agraph (float[4096] x, int64[4096,1] i, float[4096] u) => (float[4096] y)'
                      '{ y = ScatterND <reduction = "max"> (x, i, u) }')  # fmt: skip
    assert "reduction" in str(refusals(model)[0])


@pytest.mark.parametrize("mode", ["linear", "circular"])
def test_tensor_scatter(mode: str) -> None:
    start = np.array([1, 4 if mode == "circular" else 3])
    agrees('agraph (float[2,3,5,4] cache, float[2,3,2,4] u, int64[2] start) => (float[2,3,5,4] y)'
           f'{{ y = TensorScatter <mode = "{mode}"> (cache, u, start) }}',
           inputs={"cache": rand(2, 3, 5, 4), "u": rand(2, 3, 2, 4), "start": start})  # fmt: skip


@pytest.mark.parametrize("axis", [-1, 0, 1, -2])
def test_one_hot(axis: int) -> None:
    i = np.array([[0, -1, 7], [3, 2, -4]])
    agrees(f"agraph (int64[2,3] i, float[2] v) "
           f"=> (float[U,V,W] y) <int64 d = {{4}}> {{ y = OneHot <axis = {axis}> (i, d, v) }}",
           inputs={"i": i, "v": np.array([-1, 2.5], np.float32)})  # fmt: skip


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("largest", [0, 1])
def test_top_k_with_ties(axis: int, largest: int) -> None:
    x = RNG.integers(0, 4, (4, 5, 6)).astype(np.float32)
    call = f"TopK <axis = {axis}, largest = {largest}> (x, k)"
    agrees(f"agraph (float[4,5,6] x) "
           f"=> (float[U,V,W] y, int64[U,V,W] i) <int64[1] k = {{3}}> {{ y, i = {call} }}",
           inputs={"x": x})  # fmt: skip


def test_top_k_of_a_computed_number() -> None:
    agrees("agraph (float[4,6] x, int64[1] k) => (float[4,K] y, int64[4,K] i) { y, i = TopK (x, k) }",
           inputs={"x": rand(4, 6), "k": np.array([2])})  # fmt: skip


@pytest.mark.parametrize("dtype", ["float", "int64", "bool"])
def test_non_zero(dtype: str) -> None:
    kind = {"float": "float32"}.get(dtype, dtype)
    x = RNG.integers(0, 2, (3, 4, 2)).astype(kind)
    agrees(f"agraph ({dtype}[3,4,2] x) => (int64[3,K] y) {{ y = NonZero (x) }}", inputs={"x": x})


@pytest.mark.parametrize("axis", [None, 0, -1])
def test_compress(axis: int | None) -> None:
    attribute = "" if axis is None else f"<axis = {axis}>"
    result = "K" if axis is None else "U,V"
    c = np.array([True, False, True])
    agrees(f"agraph (float[4,5] x, bool[3] c) => (float[{result}] y) {{ y = Compress {attribute} (x, c) }}",
           inputs={"x": rand(4, 5), "c": c})  # fmt: skip


@pytest.mark.parametrize(("batch", "time"), [(0, 1), (1, 0)])
def test_reverse_sequence(batch: int, time: int) -> None:
    shape = (3, 5, 2) if batch == 0 else (5, 3, 2)
    text = f"agraph (float[{','.join(map(str, shape))}] x, int64[3] n) => (float[U,V,2] y)"
    agrees(f"{text} {{ y = ReverseSequence <batch_axis = {batch}, time_axis = {time}> (x, n) }}",
           inputs={"x": rand(*shape), "n": np.array([5, 1, 3])})  # fmt: skip


@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("k", [0, 1, -2])
@pytest.mark.parametrize("given", ["3,4,5", "3,N,M"])
def test_trilu(upper: int, k: int, given: str) -> None:
    agrees(f"agraph (float[{given}] x) "
           f"=> (float[{given}] y) <int64 k = {{{k}}}> {{ y = Trilu <upper = {upper}> (x, k) }}",
           inputs={"x": rand(3, 4, 5)})  # fmt: skip


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "int64"])
def test_the_smallest_of_integers(kind: str) -> None:
    limits = np.iinfo(kind)
    x = np.concatenate(
        [RNG.integers(limits.min, limits.max, (3, 4)), np.array([[limits.min, limits.max]] * 3)], 1
    )
    agrees(f"agraph ({kind}[3,6] x) => ({kind}[3,2] y, int64[3,2] i) <int64[1] k = {{2}}>"
           "{ y, i = TopK <largest = 0> (x, k) }", inputs={"x": x.astype(kind)})  # fmt: skip
