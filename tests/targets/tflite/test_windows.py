"""Convolutions and pools on TFLite: every padding, stride, dilation and group, on both resolvers."""

from __future__ import annotations

import numpy as np
import pytest

from tests.targets.tflite.road import agrees, legalized, refusals

RNG = np.random.default_rng(7)


def array(*shape: int) -> str:
    """Random float data of `shape` in ONNX's text syntax."""
    values = ", ".join(f"{v:.4f}" for v in RNG.standard_normal(int(np.prod(shape))))
    return f"float[{','.join(map(str, shape))}] {{name}} = {{{{{values}}}}}"


def initializer(name: str, *shape: int) -> str:
    return array(*shape).format(name=name)


def conv(attributes: str, x: str, weight: tuple[int, ...], bias: bool = True, op: str = "Conv") -> str:
    channels = weight[0] if op == "Conv" else weight[1] * (2 if "group = 2" in attributes else 1)
    data = [initializer("w", *weight)] + ([initializer("b", channels)] if bias else [])
    call = f"{op} {f'<{attributes}>' if attributes else ''} (x, w{', b' if bias else ''})"
    rank = len(weight)
    out = ",".join(f"D{i}" for i in range(rank))
    return f"agraph (float[{x}] x) => (float[{out}] y)\n<{', '.join(data)}>\n{{ y = {call} }}"


@pytest.mark.parametrize(
    ("attributes", "x", "weight"),
    [
        ("pads = [1, 1, 1, 1]", "2,3,7,8", (4, 3, 3, 3)),
        ("strides = [2, 2], pads = [1, 1, 1, 1]", "2,3,8,8", (4, 3, 3, 3)),
        ("strides = [2, 2], pads = [0, 0, 1, 1]", "2,3,8,8", (4, 3, 3, 3)),
        ("strides = [2, 1], pads = [2, 0, 1, 3]", "2,3,9,8", (4, 3, 3, 2)),
        ("dilations = [2, 3], pads = [2, 3, 2, 3]", "1,3,9,9", (4, 3, 3, 3)),
        ("strides = [2, 2], dilations = [2, 2]", "1,3,11,9", (4, 3, 3, 3)),
        ('auto_pad = "SAME_UPPER", strides = [2, 2]', "1,3,8,7", (4, 3, 3, 3)),
        ('auto_pad = "SAME_LOWER", strides = [2, 2]', "1,3,8,7", (4, 3, 3, 4)),
        ('auto_pad = "VALID"', "1,3,8,7", (4, 3, 3, 3)),
        ("group = 3, pads = [1, 1, 1, 1]", "2,3,7,8", (3, 1, 3, 3)),
        ("group = 3, pads = [1, 1, 1, 1], strides = [2, 1]", "2,3,7,8", (6, 1, 3, 3)),
        ("group = 3, dilations = [2, 2]", "2,3,7,8", (3, 1, 3, 3)),
        ("group = 2, pads = [1, 1, 1, 1]", "2,4,7,8", (6, 2, 3, 3)),
        ("group = 2, dilations = [1, 2]", "2,4,7,8", (6, 2, 3, 3)),
        ("pads = [2, 1]", "2,3,9", (4, 3, 4)),
        ("strides = [2], group = 3", "2,3,9", (3, 1, 4)),
        ("pads = [1, 0, 1, 1, 0, 1]", "1,2,5,6,7", (3, 2, 3, 2, 3)),
        ("strides = [2, 1, 2]", "1,2,5,6,7", (3, 2, 3, 2, 3)),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_conv(attributes: str, x: str, weight: tuple[int, ...], bias: bool) -> None:
    agrees(conv(attributes, x, weight, bias))


@pytest.mark.parametrize(
    ("attributes", "weight"),
    [
        ("pads = [1, 1, 1, 1]", (4, 3, 3, 3)),
        ("pads = [1, 1, 1, 1], strides = [2, 2]", (4, 3, 3, 3)),
        ('auto_pad = "SAME_UPPER", strides = [2, 2]', (4, 3, 3, 3)),
        ('auto_pad = "SAME_LOWER"', (4, 3, 2, 2)),
    ],
)
def test_conv_of_a_dynamic_size(attributes: str, weight: tuple[int, ...]) -> None:
    for size in ({"N": 1, "H": 8, "W": 8}, {"N": 3, "H": 7, "W": 10}):
        agrees(conv(attributes, "N,3,H,W", weight), bind=size)


def test_conv_with_a_computed_weight() -> None:
    agrees(
        "agraph (float[1,3,7,7] x, float[4,3,3,3] w, float[4] b) => (float[1,4,7,7] y)"
        "{ y = Conv <pads = [1, 1, 1, 1]> (x, w, b) }"
    )


@pytest.mark.parametrize(
    ("attributes", "x", "weight"),
    [
        ("", "2,3,5,6", (3, 4, 3, 3)),
        ("strides = [2, 2]", "2,3,5,6", (3, 4, 2, 2)),
        ("strides = [2, 2], pads = [1, 1, 1, 1]", "2,3,5,6", (3, 4, 4, 4)),
        ("strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]", "2,3,5,6", (3, 4, 3, 3)),
        ("strides = [3, 2], pads = [0, 1, 0, 1], output_padding = [2, 1]", "2,3,5,6", (3, 4, 3, 3)),
        ("strides = [3, 2], output_padding = [2, 1]", "2,3,5,6", (3, 4, 3, 3)),
        ("dilations = [2, 2], strides = [2, 1]", "2,3,5,6", (3, 4, 3, 3)),
        ("group = 2, strides = [2, 2], pads = [1, 1, 1, 1]", "2,4,5,6", (4, 3, 3, 3)),
        ("strides = [3, 3], pads = [0, 1, 2, 0]", "2,3,5,6", (3, 4, 2, 2)),
        ('auto_pad = "SAME_UPPER", strides = [2, 2]', "2,3,5,6", (3, 4, 3, 3)),
        ('auto_pad = "SAME_LOWER", strides = [2, 2]', "2,3,5,6", (3, 4, 3, 3)),
        ("output_shape = [10, 13], strides = [2, 2]", "2,3,5,6", (3, 4, 3, 3)),
        ("output_shape = [12, 14], strides = [2, 2]", "2,3,5,6", (3, 4, 3, 3)),
        ("strides = [2], pads = [1, 1], output_padding = [1]", "2,3,7", (3, 4, 3)),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_conv_transpose(attributes: str, x: str, weight: tuple[int, ...], bias: bool) -> None:
    agrees(conv(attributes, x, weight, bias, "ConvTranspose"))


def test_conv_transpose_of_a_dynamic_size() -> None:
    for attributes in ("strides = [2, 2]", "strides = [2, 2], pads = [1, 1, 1, 1]"):
        text = conv(attributes, "N,3,H,W", (3, 4, 3, 3), True, "ConvTranspose")
        for size in ({"N": 1, "H": 5, "W": 4}, {"N": 2, "H": 3, "W": 7}):
            agrees(text, bind=size)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    ("attributes", "x"),
    [
        ("kernel_shape = [2, 2], strides = [2, 2]", "2,3,8,8"),
        ("kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]", "2,3,8,8"),
        ("kernel_shape = [3, 3], pads = [1, 1, 1, 1]", "2,3,7,8"),
        ("kernel_shape = [3, 2], strides = [2, 3], pads = [1, 0, 0, 1]", "2,3,8,8"),
        ("kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1", "2,3,8,8"),
        ("kernel_shape = [2, 3], strides = [3, 2], ceil_mode = 1, pads = [1, 1, 1, 1]", "2,3,8,9"),
        ('kernel_shape = [3, 3], strides = [2, 2], auto_pad = "SAME_UPPER"', "2,3,8,7"),
        ('kernel_shape = [3, 2], strides = [2, 2], auto_pad = "SAME_LOWER"', "2,3,8,7"),
        ("kernel_shape = [3], strides = [2], pads = [1, 0]", "2,3,8"),
        ("kernel_shape = [2, 3, 2], strides = [1, 2, 2], pads = [0, 1, 0, 1, 0, 1]", "1,2,5,6,7"),
    ],
)
def test_pool(op: str, attributes: str, x: str) -> None:
    out = ",".join(f"D{i}" for i in range(x.count(",") + 1))
    agrees(f"agraph (float[{x}] x) => (float[{out}] y) {{ y = {op} <{attributes}> (x) }}")


@pytest.mark.parametrize(
    "attributes",
    [
        "kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1], count_include_pad = 1",
        "kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1], count_include_pad = 1, ceil_mode = 1",
        "kernel_shape = [3, 2], dilations = [2, 2], pads = [1, 1, 1, 1]",
        "kernel_shape = [3, 2], dilations = [2, 1], strides = [2, 1], pads = [2, 1, 1, 0], "
        "count_include_pad = 1",
    ],
)
def test_average_that_counts_padding(attributes: str) -> None:
    agrees(f"agraph (float[2,3,8,8] x) => (float[A,B,C,D] y) {{ y = AveragePool <{attributes}> (x) }}")


@pytest.mark.parametrize(
    "attributes",
    [
        "kernel_shape = [2, 2], dilations = [2, 2]",
        "kernel_shape = [3, 2], dilations = [1, 3], strides = [2, 1], pads = [1, 1, 0, 1]",
        "kernel_shape = [3, 3], dilations = [2, 2], strides = [2, 2], ceil_mode = 1",
        "kernel_shape = [4, 2], dilations = [2, 1]",
    ],
)
def test_maximum_of_a_dilated_window(attributes: str) -> None:
    agrees(f"agraph (float[2,3,8,9] x) => (float[A,B,C,D] y) {{ y = MaxPool <{attributes}> (x) }}")


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_maximum_of_small_integers(dtype: str) -> None:
    attributes = "kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]"
    agrees(f"agraph ({dtype}[2,3,8,8] x) => ({dtype}[2,3,4,4] y) {{ y = MaxPool <{attributes}> (x) }}")


@pytest.mark.parametrize("attributes", ["group = 2", "output_padding = [1, 0], strides = [2, 1]"])
def test_conv_transpose_with_a_computed_weight(attributes: str) -> None:
    agrees(
        "agraph (float[2,4,5,6] x, float[4,3,3,3] w, float[M] b) => (float[A,B,C,D] y)"
        f"{{ y = ConvTranspose <{attributes}> (x, w, b) }}",
        bind={"M": 6 if "group" in attributes else 3},
    )


def test_a_pool_of_what_is_not_negative_is_padded_with_zeros() -> None:
    made = agrees(
        "agraph (float[1,3,8,8] x) => (float[1,3,4,4] y)"
        "{ r = Relu (x) y = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (r) }"
    )
    assert "PADV2" not in made and "MAX_POOL_2D" in made


@pytest.mark.parametrize(
    ("call", "bounds"),
    [
        ("Relu (t)", ""),
        ("Clip (t, lo, hi)", ", float lo = {0}, float hi = {6}"),
        ("Clip (t, lo, hi)", ", float lo = {-1}, float hi = {1}"),
        ("Clip (t, lo)", ", float lo = {0}"),
    ],
)
def test_activations_are_fused_into_what_they_follow(call: str, bounds: str) -> None:
    data = f"{initializer('w', 4, 3, 3, 3)}, {initializer('v', 2, 4, 1, 1)}{bounds}"
    made = agrees(
        f"agraph (float[1,3,8,8] x) => (float[1,2,6,6] y)\n<{data}>\n"
        f"{{ t = Conv (x, w) r = {call} y = Conv (r, v) }}"
    )
    assert made == ["TRANSPOSE", "CONV_2D", "CONV_2D", "TRANSPOSE"]


def test_an_activation_behind_a_transpose_is_fused() -> None:
    made = agrees(
        f"agraph (float[1,3,8,8] x) => (float[1,4,6,6] y)\n<{initializer('w', 4, 3, 3, 3)}>\n"
        "{ t = Conv (x, w) y = Relu (t) }"
    )
    assert made == ["TRANSPOSE", "CONV_2D", "TRANSPOSE"]


def test_a_chain_along_one_axis_stays_wide() -> None:
    data = f"{initializer('w', 4, 3, 3)}, {initializer('v', 2, 4, 3)}"
    made = agrees(
        f"agraph (float[1,3,20] x) => (float[1,2,16] y)\n<{data}>\n"
        "{ t = Conv (x, w) r = Relu (t) u = Conv (r, v) y = Relu (u) }"
    )
    assert [m for m in made if m not in ("RESHAPE", "TRANSPOSE")] == ["CONV_2D", "CONV_2D"]
    assert made.index("CONV_2D") + 1 == len(made) - 1 - made[::-1].index("CONV_2D")


def test_an_activation_is_not_fused_where_its_input_is_read_elsewhere() -> None:
    w = initializer("w", 4, 3, 3, 3)
    made = agrees(
        f"agraph (float[1,3,8,8] x) => (float[1,4,6,6] t, float[1,4,6,6] y)\n"
        f"<{w}>\n{{ t = Conv (x, w) y = Relu (t) }}"
    )
    assert "RELU" in made


def test_what_is_refused_says_why() -> None:
    text = (
        "agraph (float[1,3,8,8] x) => (float[1,3,7,7] y, int64[1,3,7,7] i)"
        "{ y, i = MaxPool <kernel_shape = [2, 2]> (x) }"
    )
    (refusal,) = refusals(legalized(text))
    assert "MaxPool" in str(refusal)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("given", ["N,2,5,6,7", "N,2,D,H,W"])
def test_a_pool_over_three_axes_of_free_sizes(op: str, given: str) -> None:
    attributes = "kernel_shape = [2, 3, 2], strides = [1, 2, 2], pads = [0, 1, 0, 1, 0, 1]"
    text = f"agraph (float[{given}] x) => (float[N,2,P,Q,R] y) {{ y = {op} <{attributes}> (x) }}"
    for size in ({"N": 1, "D": 5, "H": 6, "W": 7}, {"N": 3, "D": 5, "H": 6, "W": 7}):
        agrees(text, bind=size)
