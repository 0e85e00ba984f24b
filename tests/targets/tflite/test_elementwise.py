"""Arithmetic on TFLite, on both resolvers: types, broadcasting, ranks, and values where kernels go astray."""

from __future__ import annotations

import numpy as np
import pytest

from tapeout.compiler.ir.load import from_text
from tapeout.targets.tflite.run import RESOLVERS, LiteRT
from tests.targets.tflite.road import HEADER, agrees, emitted, legalized, operators, reference, refusals

SHAPES = [
    ("2,1,3", "4,1"),
    ("2,1,3,2", "4,1,2"),
    ("2,1,3,2,1,2", "4,1,2,3,1"),
    ("", "3"),
    ("N,3", "3"),
    ("2,3", "2,3"),
]
RNG = np.random.default_rng(5)


def out(first: str, second: str) -> str:
    a = [d for d in first.split(",") if d]
    b = [d for d in second.split(",") if d]
    n = max(len(a), len(b))
    a, b = ["1"] * (n - len(a)) + a, ["1"] * (n - len(b)) + b
    return ",".join(x if y == "1" else y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Max", "Min"])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_binary(op: str, shapes: tuple[str, str]) -> None:
    a, b = shapes
    first = f"float[{a}]" if a else "float"
    agrees(f"agraph ({first} x, float[{b}] z) => (float[{out(a, b)}] y) {{ y = {op} (x, z) }}")


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Max", "Min", "Div", "Mod"])
@pytest.mark.parametrize("dtype", ["int32", "uint32", "int64"])
def test_integers_wrap_and_truncate_as_in_onnx(op: str, dtype: str) -> None:
    if (op, dtype) in {("Div", "int64"), ("Div", "uint32")}:
        text = f"agraph ({dtype}[4] x, {dtype}[4] z) => ({dtype}[4] y) {{ y = {op} (x, z) }}"
        assert "int64" in str(refusals(legalized(text))[0])
        return
    kind = np.dtype(dtype)
    info = np.iinfo(kind)
    low = max(int(info.min), -(2**31))
    x = RNG.integers(low, min(int(info.max), 2**31), 60).astype(kind)
    z = RNG.integers(max(low, -100), 100, 60).astype(kind)
    z[z == 0] = 7
    agrees(
        f"agraph ({dtype}[60] x, {dtype}[60] z) => ({dtype}[60] y) {{ y = {op} (x, z) }}",
        inputs={"x": x, "z": z},
    )


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16"])
@pytest.mark.parametrize(("op", "function"), [("Add", np.add), ("Sub", np.subtract), ("Mul", np.multiply)])
def test_small_integers(op: str, function: np.ufunc, dtype: str) -> None:
    kind = np.dtype(dtype)
    info = np.iinfo(kind)
    x, z = (RNG.integers(info.min, info.max + 1, 50).astype(kind) for _ in range(2))
    text = f"agraph ({dtype}[50] x, {dtype}[50] z) => ({dtype}[50] y) {{ y = {op} (x, z) }}"
    for name, found in runs(text, {"x": x, "z": z}):
        np.testing.assert_array_equal(found["y"], function(x, z), err_msg=name)


def runs(text: str, inputs: dict[str, np.ndarray]) -> list[tuple[str, dict[str, np.ndarray]]]:
    model = legalized(text)
    assert [str(r) for r in refusals(model)] == []
    content = emitted(model)
    return [(name, LiteRT(content, name).run(inputs)) for name in RESOLVERS]


UNARY = "Neg Abs Exp Sqrt Sin Cos Floor Ceil Round Sign Reciprocal Tan Sinh Cosh Atan Asinh".split()  # noqa: SIM905


@pytest.mark.parametrize("op", UNARY)
@pytest.mark.parametrize("shape", ["7", "2,3,5", "N,3"])
def test_unary(op: str, shape: str) -> None:
    prepare = "a = Abs (x) " if op == "Sqrt" else "a = Identity (x) "
    agrees(f"agraph (float[{shape}] x) => (float[{shape}] y) {{ {prepare} y = {op} (a) }}", tolerance=2e-5)


@pytest.mark.parametrize(("op", "low", "high"), [("Asin", -1, 1), ("Acos", -1, 1), ("Atanh", -0.999, 0.999),
                                                 ("Acosh", 1, 50), ("Log", 1e-6, 100), ("Sinh", -1e-3, 1e-3),
                                                 ("Asinh", -1e-3, 1e-3), ("Atanh", -1e-3, 1e-3)])  # fmt: skip
def test_functions_element_by_element(op: str, low: float, high: float) -> None:
    x = RNG.uniform(low, high, 500).astype(np.float32)
    exact = {"Asin": np.arcsin, "Acos": np.arccos, "Atanh": np.arctanh, "Acosh": np.arccosh, "Log": np.log,
             "Sinh": np.sinh, "Asinh": np.arcsinh}[op](x.astype(np.float64))  # fmt: skip
    for name, found in runs(f"agraph (float[500] x) => (float[500] y) {{ y = {op} (x) }}", {"x": x}):
        np.testing.assert_allclose(found["y"], exact, rtol=1e-5, atol=1e-7, err_msg=name)


def test_round_is_half_to_even_and_sign_keeps_zero() -> None:
    x = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.49999997, 8388607.5, -0.0, 0.0], np.float32)
    agrees(
        "agraph (float[10] x) => (float[10] y, float[10] s) { y = Round (x) s = Sign (x) }", inputs={"x": x}
    )


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64"])
@pytest.mark.parametrize("fmod", [0, 1])
def test_remainder_of_integers(dtype: str, fmod: int) -> None:
    x = np.array([7, -7, 7, -7, 6, -6, 0, 100], dtype)
    z = np.array([3, 3, -3, -3, 3, -3, 5, -7], dtype)
    agrees(f"agraph ({dtype}[8] x, {dtype}[8] z) => ({dtype}[8] y) {{ y = Mod <fmod = {fmod}> (x, z) }}",
           inputs={"x": x, "z": z})  # fmt: skip


def test_remainder_of_floats_is_exact() -> None:
    x, z = (RNG.standard_normal(200).astype(np.float32) * s for s in (1e4, 3))
    agrees("agraph (float[200] x, float[200] z) => (float[200] y) { y = Mod <fmod = 1> (x, z) }",
           inputs={"x": x, "z": z}, tolerance=0)  # fmt: skip


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("op", ["Max", "Min", "Sum", "Mean"])
def test_variadic(op: str, n: int) -> None:
    names = [f"x{i}" for i in range(n)]
    arguments = ", ".join(f"float[{'2,3' if i else '3'}] {v}" for i, v in enumerate(names))
    shape = "2,3" if n > 1 else "3"
    agrees(f"agraph ({arguments}) => (float[{shape}] y) {{ y = {op} ({', '.join(names)}) }}")


def test_pow() -> None:
    x, z = np.abs(RNG.standard_normal(50)).astype(np.float32), RNG.standard_normal(50).astype(np.float32)
    agrees("agraph (float[50] x, float[50] z) => (float[50] y) { y = Pow (x, z) }", inputs={"x": x, "z": z})
    agrees("agraph (float[2,3] x) => (float[2,3] y) <int64 e = {3}> { y = Pow (x, e) }")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
def test_shifts(dtype: str, direction: str) -> None:
    bits = np.dtype(dtype).itemsize * 8
    x = RNG.integers(0, 2**bits, 40).astype(dtype)
    n = RNG.integers(0, bits, 40).astype(dtype)
    wanted = x << n if direction == "LEFT" else x >> n
    call = f'BitShift <direction = "{direction}"> (x, n)'
    text = f"agraph ({dtype}[40] x, {dtype}[40] n) => ({dtype}[40] y) {{ y = {call} }}"
    for name, found in runs(text, {"x": x, "n": n}):
        np.testing.assert_array_equal(found["y"], wanted, err_msg=name)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32"])
@pytest.mark.parametrize(
    ("op", "function"), [("And", np.bitwise_and), ("Or", np.bitwise_or), ("Xor", np.bitwise_xor)]
)
def test_bitwise(dtype: str, op: str, function: np.ufunc) -> None:
    info = np.iinfo(dtype)
    x = RNG.integers(info.min, info.max, (2, 1, 3)).astype(dtype)
    z = RNG.integers(info.min, info.max, (4, 1)).astype(dtype)
    agrees(f"agraph ({dtype}[2,1,3] x, {dtype}[4,1] z) => ({dtype}[2,4,3] y) {{ y = Bitwise{op} (x, z) }}",
           inputs={"x": x, "z": z})  # fmt: skip


@pytest.mark.parametrize("source", ["float", "int32", "int64", "uint8", "bool", "float16"])
@pytest.mark.parametrize("to", [1, 2, 3, 6, 7, 9, 10])
def test_cast(source: str, to: int) -> None:
    kinds = {1: "float", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16"}
    x = RNG.integers(0, 100, 30) + (0.7 if "float" in source else 0)
    kind = {"float": "float32"}.get(source, source)
    agrees(f"agraph ({source}[30] x) => ({kinds[to]}[30] y) {{ y = Cast <to = {to}> (x) }}",
           inputs={"x": x.astype(kind)})  # fmt: skip


def test_where() -> None:
    agrees("agraph (bool[2,1,3] c, float[4,1] x, float[3] z) => (float[2,4,3] y) { y = Where (c, x, z) }")
    agrees("agraph (bool[2,3] c, int64[2,3] x, int64 z) => (int64[2,3] y) { y = Where (c, x, z) }")


def test_infinite_masks_stay_infinite() -> None:
    """The builtin ADD would make -inf the lowest finite number, and a fully masked row of Softmax wrong."""
    c = RNG.random((3, 4)) > 0.5
    x = RNG.standard_normal((2, 3, 4)).astype(np.float32)
    body = "agraph (bool[3,4] c, float[2,3,4] x) => (float[2,3,4] y) <float zero = {0}, float one = {1}> " \
        "{ big = Div (one, zero) low = Neg (big) m = Where (c, zero, low) y = Add (x, m) }"  # fmt: skip
    for name, found in runs(body, {"c": c, "x": x}):
        np.testing.assert_array_equal(
            found["y"], x + np.where(c, 0, -np.inf).astype(np.float32), err_msg=name
        )


def test_activation_is_fused_into_arithmetic() -> None:
    found = agrees("agraph (float[2,3] x, float[3] z) => (float[2,3] y) { a = Add (x, z) y = Relu (a) }")
    assert found == ["ADD"]


def test_float64_is_refused_with_the_types_that_are_taken() -> None:
    text = "agraph (double[3] x, double[3] z) => (double[3] y) { y = Add (x, z) }"
    (refusal,) = refusals(legalized(text))
    assert "float64" in str(refusal) and "float32" in str(refusal)


@pytest.mark.parametrize("shape", ["2,3", "N,3"])
def test_half_precision_computes_in_single(shape: str) -> None:
    body = "a = Mul (x, z) b = Exp (a) y = Add (b, x)"
    text = f"agraph (float16[{shape}] x, float16[3] z) => (float16[{shape}] y) {{ {body} }}"
    agrees(text, tolerance=2e-3)
    model = legalized(text)
    assert operators(emitted(model)).count("CAST") == 3


def test_quantized_operators_as_arithmetic() -> None:
    text = """agraph (float[40] x) => (float[40] y, int8[40] q)
        <float s = {0.1}, int8 z = {3}> { q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z) }"""
    x = (RNG.standard_normal(40) * 20).astype(np.float32)
    agrees(text, inputs={"x": x}, tolerance=1e-6)
    assert reference(from_text(HEADER + text), {"x": x})["q"].min() == -128
