"""Every integer kernel on random integers, on both resolvers, within the bound that its row states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tapeout.compiler.ir import graph as g
from tapeout.targets.tflite import TARGET
from tests.targets.tflite.integers import Array, Cluster, holds, rows_of, run

RNG = np.random.default_rng(11)
MAP = (2, 6, 9, 9)
ACTS = ("int8", "int16")


def weight(*shape: int, per_channel: bool = True) -> tuple[Array, Array]:
    codes = RNG.integers(-127, 128, shape).astype(np.int8)
    scale = RNG.uniform(0.002, 0.01, shape[0] if per_channel else ()).astype(np.float32)
    return codes, scale


def bias(channels: int) -> tuple[Array, Array]:
    return RNG.integers(-3000, 3000, channels).astype(np.int32), np.float32(0)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


CONVOLUTIONS: list[tuple[str, Sequence[int], tuple[int, ...], str]] = [
    ("y = Conv <pads = [1,1,1,1]> (a, w, b)", MAP, (8, 6, 3, 3), "CONV_2D"),
    ("t = Conv <strides = [2,2]> (a, w, b) y = Relu (t)", MAP, (8, 6, 3, 3), "CONV_2D"),
    ("y = Conv <group = 2> (a, w, b)", MAP, (8, 3, 3, 3), "CONV_2D"),
    ("y = Conv <dilations = [2,2]> (a, w, b)", MAP, (8, 6, 3, 3), "CONV_2D"),
    ("y = Conv <group = 6> (a, w, b)", MAP, (6, 1, 3, 3), "DEPTHWISE_CONV_2D"),
    ("y = Conv <group = 6, dilations = [2,2]> (a, w, b)", MAP, (12, 1, 3, 3), "DEPTHWISE_CONV_2D"),
    ("y = Gemm <transB = 1> (a, w, b)", (5, 16), (7, 16), "FULLY_CONNECTED"),
    ("t = Gemm <transB = 1> (a, w, b) y = Clip (t, lo, hi)", (5, 16), (7, 16), "FULLY_CONNECTED"),
]


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(("body", "shape", "kernel", "code"), CONVOLUTIONS)
def test_products(
    body: str, shape: Sequence[int], kernel: tuple[int, ...], code: str, per_channel: bool, act: str
) -> None:
    constants = {"lo": np.float32(0), "hi": np.float32(6)} if "Clip" in body else {}
    weights = {"w": weight(*kernel, per_channel=per_channel), "b": bias(kernel[0])}
    made = holds(Cluster(body, {"a": shape}, weights, constants, act))
    assert [c for c in made if c != "TRANSPOSE"] == [code]


NARROW: list[tuple[int, str, Sequence[int], tuple[int, ...], str]] = [
    (bits, body, shape, kernel, code)
    for bits in (4, 2)
    for body, shape, kernel, code in CONVOLUTIONS
    if bits == 4 or code == "FULLY_CONNECTED"
]


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize(("bits", "body", "shape", "kernel", "code"), NARROW)
def test_narrow_weights(
    bits: int, body: str, shape: Sequence[int], kernel: tuple[int, ...], code: str, act: str
) -> None:
    highest = 2 ** (bits - 1) - 1
    codes = RNG.integers(-highest, highest + 1, kernel).astype(getattr(ml_dtypes, f"int{bits}"))
    scales = RNG.uniform(0.02, 0.2, kernel[0]).astype(np.float32)
    constants = {"lo": np.float32(0), "hi": np.float32(6)} if "Clip" in body else {}
    cluster = Cluster(body, {"a": shape}, {"w": (codes, scales), "b": bias(kernel[0])}, constants, act)
    if (code, act, bits) == ("DEPTHWISE_CONV_2D", "int16", 4):
        code = "CONV_2D"  # the kernel for depthwise convolutions is wrong there, in silence
    assert [c for c in holds(cluster) if c != "TRANSPOSE"] == [code]


@pytest.mark.parametrize("act", ACTS)
def test_transposed_convolution(act: str) -> None:
    codes = RNG.integers(-127, 128, (6, 8, 4, 4)).astype(np.int8)
    weights = {"w": (codes, np.float32(0.005)), "b": bias(8)}
    body = "y = ConvTranspose <strides = [2,2], pads = [1,1,1,1]> (a, w, b)"
    assert "TRANSPOSE_CONV" in holds(Cluster(body, {"a": (1, 6, 5, 5)}, weights, act=act))


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul"])
@pytest.mark.parametrize("other", [MAP, (1, 6, 1, 1), (3, 2, 6, 9, 9), (2, 3, 2, 1, 9, 9)])
def test_arithmetic(op: str, other: tuple[int, ...], act: str) -> None:
    for body in (f"y = {op} (a, c)", f"t = {op} (a, c) y = Relu (t)"):
        assert holds(Cluster(body, {"a": MAP, "c": other}, act=act)) == [op.upper()]


@pytest.mark.parametrize("act", ACTS)
def test_products_of_computed_tensors(act: str) -> None:
    inputs = {"a": (2, 3, 5, 16), "c": (2, 3, 16, 7)}
    assert holds(Cluster("y = MatMul (a, c)", inputs, act=act)) == ["BATCH_MATMUL"]


FREE: list[tuple[str, str, tuple[str, ...]]] = [
    ("Relu (a)", "RELU", ACTS),
    ("LeakyRelu <alpha = 0.1> (a)", "LEAKY_RELU", ACTS),
    ("Elu (a)", "ELU", ("int8",)),
    ("Gelu (a)", "GELU", ACTS),
    ('Gelu <approximate = "tanh"> (a)', "GELU", ACTS),
    ("HardSwish (a)", "HARD_SWISH", ("int8",)),
    ("Abs (a)", "ABS", ACTS),
    ("Exp (a)", "EXP", ("int8",)),
    ("Neg (a)", "SUB", ("int8",)),
    ("GlobalAveragePool (a)", "MEAN", ACTS),
    ("ReduceMean <keepdims = 0> (a, one)", "MEAN", ACTS),
    ("ReduceSum (a, axes)", "SUM", ACTS),
]


@pytest.mark.parametrize(("body", "code", "act"), [(b, c, a) for b, c, acts in FREE for a in acts])
def test_kernels_with_a_scale_of_their_own(body: str, code: str, act: str) -> None:
    constants = {k: v for k, v in {"axes": ints(2, 3), "one": ints(1)}.items() if f" {k})" in body}
    assert holds(Cluster(f"y = {body}", {"a": MAP}, constants=constants, act=act)) == [code]


FIXED = [
    ("Sigmoid (a)", "LOGISTIC", (1 / 256, -128), (1 / 32768, 0)),
    ("Tanh (a)", "TANH", (1 / 128, 0), (1 / 32768, 0)),
    ("Softmax <axis = -1> (a)", "SOFTMAX", (1 / 256, -128), (1 / 32768, 0)),
    ("LogSoftmax <axis = -1> (a)", "LOG_SOFTMAX", (1 / 16, 127), None),
]


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize(("body", "code", "eight", "sixteen"), FIXED)
def test_kernels_with_a_fixed_scale(body: str, code: str, eight: Any, sixteen: Any, act: str) -> None:
    fixed = eight if act == "int8" else sixteen
    if fixed is not None:
        assert holds(Cluster(f"y = {body}", {"a": MAP}, act=act, fixed=fixed)) == [code]


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("body", ["Sigmoid (a)", "Softmax <axis = -1> (a)", "Tanh (a)"])
def test_another_scale_is_no_integer_kernel(body: str, act: str) -> None:
    """The runtime would take the fixed scale for granted: such a cluster is computed in real numbers."""
    fixed = (0.01, -100 if act == "int8" else 0)
    made, found, _ = _real(Cluster(f"y = {body}", {"a": MAP}, act=act, fixed=fixed))
    assert made[0] == "DEQUANTIZE" and made[-1] == "QUANTIZE"
    assert max(r.quanta for r in found.values()) <= 1


MOVES: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("MaxPool <kernel_shape = [3,3], strides = [2,2]> (a)", {}, ACTS),
    ("AveragePool <kernel_shape = [3,3]> (a)", {}, ACTS),
    ("AveragePool <kernel_shape = [3,3], pads = [1,1,1,1]> (a)", {}, ACTS),
    ("ReduceMax (a, axes)", {"axes": ints(2, 3)}, ACTS),
    ("ReduceMin (a, axes)", {"axes": ints(1)}, ACTS),
    ('Resize <mode = "linear"> (a, , scales)', {"scales": np.float32([1, 1, 2, 2])}, ("int8",)),
    (
        'Resize <mode = "linear", coordinate_transformation_mode = "align_corners"> (a, , scales)',
        {"scales": np.float32([1, 1, 2, 2])},
        ("int8",),
    ),
    (
        'Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">'
        " (a, , scales)",
        {"scales": np.float32([1, 1, 2, 2])},
        ACTS,
    ),
    ("Reshape (a, s)", {"s": ints(2, -1)}, ACTS),
    ("Unsqueeze (a, s)", {"s": ints(1)}, ACTS),
    ("Tile (a, s)", {"s": ints(1, 2, 1, 2)}, ACTS),
    ("Slice (a, b, e, s)", {"b": ints(1, 2), "e": ints(5, 8), "s": ints(1, 3)}, ACTS),
    ("Slice (a, b, e, s, p)", {"b": ints(-1), "e": ints(-9), "s": ints(3), "p": ints(-2)}, ACTS),
    ("Pad (a, p)", {"p": ints(0, 0, 1, 2, 0, 0, 1, 1)}, ACTS),
    ("Pad (a, p, v)", {"p": ints(0, 0, 1, 2, 0, 0, 1, 1), "v": np.float32(0.7)}, ACTS),
    ('Pad <mode = "reflect"> (a, p)', {"p": ints(0, 0, 1, 2, 0, 0, 1, 1)}, ACTS),
    ("Gather <axis = 1> (a, i)", {"i": ints(0, 3, 5, -1)}, ACTS),
]


@pytest.mark.parametrize(("body", "constants", "act"), [(b, c, a) for b, c, acts in MOVES for a in acts])
def test_kernels_that_keep_the_scale(body: str, constants: dict[str, Any], act: str) -> None:
    holds(Cluster(f"y = {body}", {"a": MAP}, constants=constants, act=act, same=True))


@pytest.mark.parametrize("body", [b for b, c, _ in MOVES if not c])
def test_other_scales_are_no_integer_kernel(body: str) -> None:
    made, found, _ = _real(Cluster(f"y = {body}", {"a": MAP}))
    assert "DEQUANTIZE" in made and "QUANTIZE" in made
    assert max(r.quanta for r in found.values()) <= 1


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("body", ["Max (a, c)", "Min (a, c)", "Concat <axis = 1> (a, c)"])
def test_two_operands_of_one_scale(body: str, act: str) -> None:
    holds(Cluster(f"y = {body}", {"a": MAP, "c": MAP}, act=act, same=True))


@pytest.mark.parametrize("op", ["DepthToSpace", "SpaceToDepth"])
def test_depth_and_space(op: str) -> None:
    holds(Cluster(f"y = {op} <blocksize = 2> (a)", {"a": (1, 12, 4, 4)}, same=True))


def test_slopes_are_integers_too() -> None:
    slopes = {"s": (RNG.integers(-127, 128, (6, 1, 1)).astype(np.int8), np.float32(0.005))}
    assert "PRELU" in holds(Cluster("y = PRelu (a, s)", {"a": MAP}, slopes))


def test_positions() -> None:
    assert "ARG_MAX" in holds(Cluster("y = ArgMax <axis = 1> (a)", {"a": MAP}, output="int64"))


def test_a_bias_of_64_bits_beside_int16() -> None:
    """A bias that 32 bits do not hold in units of the accumulator."""
    real = np.float32(RNG.uniform(-400, 400, 8))
    cluster = Cluster(
        "y = Conv (a, w, b)", {"a": MAP}, {"w": (weight(8, 6, 3, 3)[0], np.full(8, 1e-6, np.float32))},
        {"b": real}, "int16", scales={"a": (1e-4, 0)},
    )  # fmt: skip
    assert np.abs(real / (1e-6 * 1e-4)).max() > 2**31
    assert "CONV_2D" in holds(cluster)


def test_rows_that_move_demand_one_scale() -> None:
    """What the runtime computes wrongly in silence where scales differ is refused by a row's same_scale."""
    silent = {
        "RESHAPE", "GATHER", "TILE", "RESIZE_NEAREST_NEIGHBOR", "STRIDED_SLICE", "AVERAGE_POOL_2D", "MAXIMUM",
        "MINIMUM", "MAX_POOL_2D", "TRANSPOSE", "PAD", "SPACE_TO_DEPTH", "DEPTH_TO_SPACE", "CONCATENATION",
        "REDUCE_MAX", "REDUCE_MIN", "RESIZE_BILINEAR", "SPLIT", "SELECT_V2", "BROADCAST_TO", "SQUEEZE",
        "UNSQUEEZE", "NEG",
    }  # fmt: skip
    rows = [r for r in TARGET.declaration("cpu") if r.file.startswith("quantized/int")]
    assert {r.lower for r in rows if r.same_scale} == silent
    fixed = {"LOGISTIC", "TANH", "SOFTMAX", "LOG_SOFTMAX"}
    assert {
        r.lower for r in rows if any(p.scale and not isinstance(p.scale, str) for p in r.ports.values())
    } == fixed


def _real(cluster: Cluster) -> tuple[list[str], dict[str, Any], Any]:
    """The same as `run`, for a cluster that no row takes in integers."""
    model = cluster.legalized()
    taken = [r.where for n, r in rows_of(model) if n.op_type not in ("QuantizeLinear", "DequantizeLinear")]
    assert all("quantized" not in where for where in taken), taken
    assert all(not g.has_subgraph(n) for n in model.graph)
    return run(cluster, taken=False)
