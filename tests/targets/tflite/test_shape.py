"""Moving elements and shapes as data on TFLite, on both resolvers, with known and unknown dimensions."""

from __future__ import annotations

import numpy as np
import pytest

from tests.targets.tflite.road import agrees, legalized, refusals

RNG = np.random.default_rng(8)


def rand(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(name: str, *values: int) -> str:
    return f"int64[{len(values)}] {name} = {{{', '.join(map(str, values))}}}"


@pytest.mark.parametrize(("given", "shape", "result"), [
    ("2,3,4", (6, 4), "6,4"), ("2,3,4", (0, -1), "2,12"), ("2,3,4", (-1,), "24"), ("N,3,4", (0, 12), "N,12"),
    ("N,M,4", (0, 0, 2, 2), "N,M,2,2"), ("N,M,4", (0, -1), "N,K"), ("N,3", (-1,), "K"),
])  # fmt: skip
def test_reshape(given: str, shape: tuple[int, ...], result: str) -> None:
    agrees(f"agraph (float[{given}] x) => (float[{result}] y) <{ints('s', *shape)}> {{ y = Reshape (x, s) }}",
           bind={"N": 3, "M": 5})  # fmt: skip


@pytest.mark.parametrize("shape", [(4, 6), (0, 12), (2, 0, 4), (0, -1), (2, 3, 0)])
def test_reshape_to_a_computed_shape(shape: tuple[int, ...]) -> None:
    dims = ",".join("UVW"[: len(shape)])
    agrees(f"agraph (float[2,3,4] x, int64[{len(shape)}] s) => (float[{dims}] y) {{ y = Reshape (x, s) }}",
           inputs={"x": rand(2, 3, 4), "s": np.array(shape)})  # fmt: skip


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1])
@pytest.mark.parametrize("given", ["2,3,4", "N,M,4", "N,3,4"])
def test_flatten(axis: int, given: str) -> None:
    agrees(
        f"agraph (float[{given}] x) => (float[U,V] y) {{ y = Flatten <axis = {axis}> (x) }}", bind={"M": 5}
    )


def test_squeeze_and_unsqueeze() -> None:
    agrees(f"agraph (float[1,3,1] x) => (float[3] y) <{ints('a', 0, -1)}> {{ y = Squeeze (x, a) }}")
    agrees(
        f"agraph (float[N,1,M] x) => (float[N,M] y) <{ints('a', 1)}> {{ y = Squeeze (x, a) }}", bind={"M": 5}
    )
    agrees(f"agraph (float[N,M] x) => (float[1,N,1,M] y) <{ints('a', 0, 2)}> {{ y = Unsqueeze (x, a) }}",
           bind={"M": 5})  # fmt: skip


@pytest.mark.parametrize("perm", [(0, 2, 1), (2, 0, 1), (1, 2, 0), (5, 3, 1, 4, 2, 0)])
@pytest.mark.parametrize("dtype", ["float", "int64", "bool", "uint8"])
def test_transpose(perm: tuple[int, ...], dtype: str) -> None:
    shape = (2, 3, 4, 5, 2, 3)[: len(perm)]
    result = [shape[i] for i in perm]
    text = f"agraph ({dtype}[{','.join(map(str, shape))}] x) => ({dtype}[{','.join(map(str, result))}] y)"
    agrees(f"{text} {{ y = Transpose <perm = [{', '.join(map(str, perm))}]> (x) }}")


def test_expand() -> None:
    agrees(f"agraph (float[3,1] x) => (float[2,3,4] y) <{ints('s', 2, 1, 4)}> {{ y = Expand (x, s) }}")
    agrees(f"agraph (float[N,1] x) => (float[2,N,4] y) <{ints('s', 2, 1, 4)}> {{ y = Expand (x, s) }}")
    agrees("agraph (float[3,1] x, int64[3] s) => (float[U,V,W] y) { y = Expand (x, s) }",
           inputs={"x": rand(3, 1), "s": np.array([2, 1, 4])})  # fmt: skip


def test_tile_and_concat() -> None:
    agrees(f"agraph (float[N,3] x) => (float[U,6] y) <{ints('r', 2, 2)}> {{ y = Tile (x, r) }}")
    agrees("agraph (float[N,3] x, float[N,2] z) => (float[N,5] y) { y = Concat <axis = -1> (x, z) }")
    agrees("agraph (bool[2,3] x, bool[1,3] z) => (bool[3,3] y) { y = Concat <axis = 0> (x, z) }")


@pytest.mark.parametrize(("sizes", "call"), [
    ((2, 2, 2), "Split <axis = 1> (x, s)"), ((1, 3, 2), "Split <axis = 1> (x, s)"),
    (None, "Split <axis = 1, num_outputs = 3> (x)"),
    (None, "Split <axis = -1, num_outputs = 2> (x)"),
])  # fmt: skip
def test_split(sizes: tuple[int, ...] | None, call: str) -> None:
    names = "abc"[: 2 if "= 2" in call else 3]
    outputs = (
        ", ".join(f"float[U{n},V{n},5] {n}" for n in names)
        if "-1" not in call
        else "float[2,6,3] a, float[2,6,2] b"
    )
    agrees(
        f"agraph (float[2,6,5] x) "
        f"=> ({outputs}) <{ints('s', *(sizes or (0,)))}> {{ {', '.join(names)} = {call} }}"
    )


@pytest.mark.parametrize(("starts", "ends", "axes", "steps"), [
    ((1,), (3,), (0,), (1,)), ((0, 1), (5, -1), (0, 1), (2, 1)), ((-1,), (-100,), (1,), (-1,)),
    ((-2, 5), (-9, 0), (1, 0), (-2, -1)), ((0,), (2**63 - 1,), (-1,), (3,)), ((-100,), (100,), (1,), (1,)),
    ((4,), (-(2**63),), (0,), (-1,)), ((3,), (1,), (0,), (1,)),
])  # fmt: skip
@pytest.mark.parametrize("given", ["5,4,3", "N,4,M"])
def test_slice(starts: tuple, ends: tuple, axes: tuple, steps: tuple, given: str) -> None:
    constants = ", ".join(ints(n, *v) for n, v in (("b", starts), ("e", ends), ("a", axes), ("t", steps)))
    agrees(f"agraph (float[{given}] x) => (float[U,V,W] y) <{constants}> {{ y = Slice (x, b, e, a, t) }}",
           inputs={"x": rand(5, 4, 3)})  # fmt: skip


@pytest.mark.parametrize(
    ("starts", "ends", "axes"), [((1, 0), (3, -1), (0, 2)), ((-2, 1), (100, 3), (-1, 1))]
)
@pytest.mark.parametrize("kind", ["int64", "int32"])
def test_slice_by_computed_numbers(starts: tuple, ends: tuple, axes: tuple, kind: str) -> None:
    data = {"x": rand(4, 5, 6)} | {n: np.array(v, kind) for n, v in (("b", starts), ("e", ends), ("a", axes))}
    arguments = f"float[4,5,6] x, {kind}[2] b, {kind}[2] e, {kind}[2] a"
    agrees(f"agraph ({arguments}) => (float[U,V,W] y) {{ y = Slice (x, b, e, a) }}", inputs=data)


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
@pytest.mark.parametrize("pads", [(0, 1, 2, 0), (1, 0, 0, 3), (2, 2, 2, 2)])
@pytest.mark.parametrize("value", [None, 0.0, 1.5])
def test_pad(mode: str, pads: tuple[int, ...], value: float | None) -> None:
    if mode != "constant" and value is not None:
        return
    constants = ints("p", *pads) + ("" if value is None else f", float v = {{{value}}}")
    call = f'Pad <mode = "{mode}"> (x, p{"" if value is None else ", v"})'
    result = f"{3 + pads[0] + pads[2]},{4 + pads[1] + pads[3]}"
    agrees(f"agraph (float[3,4] x) => (float[{result}] y) <{constants}> {{ y = {call} }}")


def test_pad_that_crops() -> None:
    agrees(f"agraph (float[5,6] x) => (float[5,5] y) <{ints('p', -1, 2, 1, -3)}> {{ y = Pad (x, p) }}")


def test_pad_by_a_computed_amount() -> None:
    agrees("agraph (float[2,3] x, int64[4] p, float v) => (float[U,V] y) { y = Pad (x, p, v) }",
           inputs={"x": rand(2, 3), "p": np.array([1, 0, 2, 3]), "v": np.array(2.5, np.float32)})  # fmt: skip


def test_shapes_as_data() -> None:
    text = """agraph (float[N,3,M] x) => (int64[3] s, int64[2] t, int64 n, float[N,M] z, int64[K] r)
        <int64 zero = {0}, int64 one = {1}, int64 two = {2}> {
            s = Shape (x) t = Shape <start = -2> (x) n = Size (x)
            a = Gather (s, zero) b = Gather (s, two) dims = Concat <axis = 0> (au, bu)
            z = ConstantOfShape <value = float[1] {2.5}> (dims) r = Range (zero, b, two)
        }"""
    text = text.replace(
        "dims = Concat",
        "ax = Constant <value = int64[1] {0}> () au = Unsqueeze (a, ax) bu = Unsqueeze (b, ax) dims = Concat",
    )
    agrees(text, bind={"N": 4, "M": 5})


@pytest.mark.parametrize("ends", [(0, 9, 2), (5, -5, -3), (3, 3, 1)])
@pytest.mark.parametrize("dtype", ["int64", "int32", "float"])
def test_range(ends: tuple[int, int, int], dtype: str) -> None:
    kind = {"float": "float32"}.get(dtype, dtype)
    data = {n: np.array(v, kind) for n, v in zip("abc", ends, strict=True)}
    agrees(
        f"agraph ({dtype} a, {dtype} b, {dtype} c) => ({dtype}[N] y) {{ y = Range (a, b, c) }}", inputs=data
    )


def test_rank_beyond_the_kernels_is_refused() -> None:
    text = "agraph (float[1,2,1,2,1,2,1] x) => (float[1,2,1,2,1,2,1] y) { y = Add (x, x) }"
    assert "rank" in str(refusals(legalized(text))[0])
