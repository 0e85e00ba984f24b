"""Matrix products on TFLite: by constants FULLY_CONNECTED, of computed tensors BATCH_MATMUL."""

from __future__ import annotations

import numpy as np
import pytest

from tests.targets.tflite.road import agrees
from tests.targets.tflite.test_windows import initializer


@pytest.mark.parametrize("x", ["5", "3,5", "2,3,5", "2,2,3,5", "2,1,2,3,5", "N,T,5"])
def test_product_by_a_constant(x: str) -> None:
    out = ",".join([*x.split(",")[:-1], "4"])
    made = agrees(
        f"agraph (float[{x}] x) => (float[{out}] y)\n<{initializer('w', 5, 4)}>\n{{ y = MatMul (x, w) }}"
    )
    assert "FULLY_CONNECTED" in made and "BATCH_MATMUL" not in made


@pytest.mark.parametrize("bias", [(4,), (1, 4), (1,), ()])
def test_a_bias_goes_into_the_product(bias: tuple[int, ...]) -> None:
    data = f"{initializer('w', 5, 4)}, {initializer('b', *bias) if bias else 'float b = {0.3}'}"
    for add in ("Add (t, b)", "Add (b, t)"):
        made = agrees(
            f"agraph (float[N,3,5] x) => (float[N,3,4] y)\n<{data}>\n"
            f"{{ t = MatMul (x, w) s = {add} y = Relu (s) }}"
        )
        assert made == ["FULLY_CONNECTED"]


@pytest.mark.parametrize("bias", [(3, 1), (3, 4), (2, 1, 1)])
def test_a_bias_that_is_not_along_the_columns_is_added(bias: tuple[int, ...]) -> None:
    data = f"{initializer('w', 5, 4)}, {initializer('b', *bias)}"
    out = "2,3,4" if len(bias) == 3 else "3,4"
    made = agrees(
        f"agraph (float[3,5] x) => (float[{out}] y)\n<{data}>\n{{ t = MatMul (x, w) y = Add (t, b) }}"
    )
    assert made[-1] == "ADD"


@pytest.mark.parametrize(
    "attributes",
    [
        "",
        "<alpha = 0.5, beta = 2.0>",
        "<transA = 1>",
        "<transB = 1>",
        "<alpha = 3.0, transA = 1, transB = 1>",
    ],
)
@pytest.mark.parametrize("c", [None, (4,), (1, 4), (3, 1), (3, 4)])
@pytest.mark.parametrize("constant", [True, False])
def test_gemm(attributes: str, c: tuple[int, ...] | None, constant: bool) -> None:
    x = "5,3" if "transA" in attributes else "3,5"
    shape = (4, 5) if "transB" in attributes else (5, 4)
    data = [initializer("w", *shape)] if constant else []
    data += [initializer("c", *c)] if c else []
    given = "" if constant else f", float[{shape[0]},{shape[1]}] w"
    inputs = "x, w, c" if c else "x, w"
    head = f"\n<{', '.join(data)}>\n" if data else "\n"
    agrees(f"agraph (float[{x}] x{given}) => (float[3,4] y){head}{{ y = Gemm {attributes} ({inputs}) }}")


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("3,5", "5,4"),
        ("2,3,5", "5,4"),
        ("3,5", "2,5,4"),
        ("2,1,3,5", "1,4,5,6"),
        ("2,2,1,3,5", "2,1,5,3"),
        ("5", "5"),
        ("5", "2,5,4"),
        ("2,3,5", "5"),
    ],
)
def test_product_of_computed_tensors(a: str, b: str) -> None:
    shape = np.matmul(
        np.zeros([int(d) for d in a.split(",")]), np.zeros([int(d) for d in b.split(",")])
    ).shape
    agrees(
        f"agraph (float[{a}] a, float[{b}] b) => (float[{','.join(map(str, shape))}] y)"
        "{ y = MatMul (a, b) }"
    )


@pytest.mark.parametrize("w", [(1, 5, 4), (2, 5, 4)])
def test_constants_of_higher_rank(w: tuple[int, ...]) -> None:
    agrees(f"agraph (float[2,3,5] x) => (float[2,3,4] y)\n<{initializer('w', *w)}>\n{{ y = MatMul (x, w) }}")
    agrees(
        f"agraph (float[3,5] x) => (float[{w[0]},3,4] y)\n<{initializer('w', *w)}>\n{{ y = MatMul (x, w) }}"
    )


def test_a_constant_on_the_left() -> None:
    agrees(
        f"agraph (float[2,5,4] x) => (float[2,3,4] y)\n<{initializer('w', 3, 5)}>\n{{ y = MatMul (w, x) }}"
    )


def test_float16_weights_stay_float16() -> None:
    values = np.random.default_rng(0).standard_normal(512 * 128).astype(np.float16)
    numbers = ", ".join(str(v) for v in values.view(np.uint16))  # the text syntax takes float16 as bits
    made = agrees(
        f"agraph (float[2,512] x) => (float[2,128] y)\n<float16[512,128] h = {{{numbers}}}>\n"
        "{ w = Cast <to = 1> (h) y = MatMul (x, w) }",
        tolerance=1e-4,
    )
    assert made == ["DEQUANTIZE", "FULLY_CONNECTED"]
