"""What OpenVINO's reader or plugin gets wrong by itself comes out right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openvino", reason="the package 'openvino' is not installed")

from tapeout.compiler.errors import InvalidModelError, UnsupportedError
from tapeout.compiler.target import Request, write
from tapeout.targets.openvino import TARGET
from tapeout.targets.openvino.run import OpenVINO
from tests.targets.openvino.road import agrees, legalized, ran, refusals

RNG = np.random.default_rng(5)


def test_equal_elements_keep_their_order() -> None:
    x = RNG.integers(0, 3, (6, 17)).astype(np.float32)
    agrees(
        "g (float[6,17] x) => (float[6,5] v, int64[6,5] i) <int64[1] k = {5}> { v, i = TopK(x, k) }", {"x": x}
    )


def test_boxes_whose_overlap_is_the_threshold_stay() -> None:
    boxes = np.array([[[0, 0, 1, 1], [0, 0, 1, 0.5], [0, 0, 1, 0.75]]], np.float32)
    scores = np.array([[[0.9, 0.8, 0.7]]], np.float32)
    found = ran(
        "g (float[1,3,4] b, float[1,1,3] s) => (int64[n,3] y) <int64[1] most = {3}, float[1] iou = {0.5}>"
        " { y = NonMaxSuppression(b, s, most, iou) }",
        {"b": boxes, "s": scores},
    )
    np.testing.assert_array_equal(found["y"], [[0, 0, 0], [0, 0, 1]])


@pytest.mark.parametrize("kind", ["int8", "uint8"])
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul"])
def test_small_integers_wrap(op: str, kind: str) -> None:
    limits = np.iinfo(kind)
    a, b = (RNG.integers(limits.min, limits.max, (4, 9), endpoint=True).astype(kind) for _ in range(2))
    made = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}[op]
    found = ran(f"g ({kind}[4,9] a, {kind}[4,9] b) => ({kind}[4,9] y) {{ y = {op}(a, b) }}", {"a": a, "b": b})
    np.testing.assert_array_equal(found["y"], made(a, b))


def test_rows_that_a_mask_hides_are_found() -> None:
    x = RNG.standard_normal((4, 6)).astype(np.float32)
    x[1], x[2, :3] = -np.inf, -np.inf
    agrees(
        "g (float[4,6] x) => (bool[4,1] y) <int64[1] a = {1}, float ninf = {-inf}>"
        " { m = ReduceMax(x, a) y = Equal(m, ninf) }",
        {"x": x},
    )


def test_a_constant_without_elements_keeps_its_shape() -> None:
    x = RNG.standard_normal((2, 3)).astype(np.float32)
    found = agrees(
        "g (float[2,3] x) => (float[2,3] y, int64[0] e) { y = Neg(x) e = Shape<start=2, end=1>(x) }", {"x": x}
    )
    assert found["e"].shape == (0,)


@pytest.mark.parametrize(
    "how",
    [
        'mode="linear", antialias=1',
        'mode="cubic", coordinate_transformation_mode="half_pixel_symmetric"',
        'mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5',
    ],
)
def test_resizing_that_the_reader_does_not_know(how: str) -> None:
    agrees(
        f"g (float[1,2,7,9] x) => (float[1,2,h,w] y) <float[4] s = {{1.0, 1.0, 0.6, 0.7}}>"
        f" {{ y = Resize<{how}>(x, , s) }}",
        {"x": RNG.standard_normal((1, 2, 7, 9)).astype(np.float32)},
    )


def test_recurrent_operators_that_the_reader_does_not_know() -> None:
    x = RNG.standard_normal((3, 5, 4)).astype(np.float32)
    weights = {"w": (1, 8, 4), "r": (1, 8, 2), "p": (1, 6)}
    text = "g (float[3,5,4] x, " + ", ".join(f"float{list(s)} {n}" for n, s in weights.items())
    given = {n: RNG.standard_normal(s).astype(np.float32) for n, s in weights.items()}
    agrees(
        text + ") => (float[a,b,c,d] y) { y = LSTM<hidden_size=2>(x, w, r, , , , , p) }", {"x": x, **given}
    )


def test_attention_with_a_window_is_written_out() -> None:
    shape = "float[1,2,6,4]"
    agrees(
        f"g ({shape} q, {shape} k, {shape} v) => ({shape} y)"
        " { y = Attention<is_causal=1, left_window_size=2>(q, k, v) }",
        {n: RNG.standard_normal((1, 2, 6, 4)).astype(np.float32) for n in "qkv"},
    )


def test_what_stays_wrong_is_refused() -> None:
    assert "uint64" in refusals("g (uint64[3] x) => (uint64[3] y) { y = Add(x, x) }")[0]
    assert "float64" in refusals("g (double[3] x) => (double[3] y) { y = Exp(x) }")[0]
    assert (
        "constant repeats" in refusals("g (float[2,3] x, int64[2] r) => (float[a,b] y) { y = Tile(x, r) }")[0]
    )


@pytest.mark.parametrize("size", [7, 8])
def test_padding_is_counted_and_what_lies_beyond_is_not(size: int) -> None:
    x = RNG.standard_normal((1, 2, size, size)).astype(np.float32)
    agrees(
        f"g (float[1,2,{size},{size}] x) => (float[1,2,h,w] y) {{ y = AveragePool<kernel_shape=[4,3], strides=[2,2],"
        " pads=[2,2,1,1], ceil_mode=1, count_include_pad=1>(x) }",
        {"x": x},
    )


def test_statistics_in_float32_normalize_half_precision() -> None:
    x = RNG.standard_normal((2, 3, 4, 4)).astype(np.float16)
    parts = {n: RNG.uniform(0.5, 2, 3).astype(np.float32) for n in "sbmv"}
    found = ran(
        "g (float16[2,3,4,4] x, float[3] s, float[3] b, float[3] m, float[3] v) => (float16[2,3,4,4] y)"
        " { y = BatchNormalization(x, s, b, m, v) }",
        {"x": x, **parts},
    )["y"]
    s, b, m, v = (parts[n].astype(np.float64).reshape(1, 3, 1, 1) for n in "sbmv")
    expected = (x.astype(np.float64) - m) / np.sqrt(v + 1e-5) * s + b
    # float16 has 11 bits; the product and the sum round once each.
    np.testing.assert_allclose(found, expected, rtol=2**-10, atol=2**-10 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("mode", "scales"),
    [("nearest", "2, 1, 1, 3"), ("nearest", "1, 2, 2, 1"), ("linear", "1, 2, 2, 1"), ("cubic", "1, 1, 2, 3")],
)
def test_any_axes_are_resized(mode: str, scales: str) -> None:
    x = RNG.standard_normal((2, 3, 4, 5)).astype(np.float32)
    agrees(
        f"g (float[2,3,4,5] x) => (float[a,b,c,d] y) <float[0] roi = {{}}, float[4] s = {{{scales}}}>"
        f' {{ y = Resize<mode="{mode}">(x, roi, s) }}',
        {"x": x},
    )


def test_computed_axes_of_constant_slices() -> None:
    x = RNG.standard_normal((4, 5, 3)).astype(np.float32)
    agrees(
        "g (float[4,5,3] x, int64[2] axes) => (float[a,b,c] y) <int64[2] starts = {1, 2}, int64[2] ends = {3, 4}>"
        " { y = Slice(x, starts, ends, axes) }",
        {"x": x, "axes": np.array([1, 0], np.int64)},
    )


def test_what_no_row_takes_is_not_written(tmp_path: Path) -> None:
    request = Request()
    model = legalized("g (double[3] x) => (double[3] y) { y = Neg(x) }", request)
    with pytest.raises(UnsupportedError, match="type of X float64"):
        write(TARGET, model, tmp_path / "x.xml", request)


def test_a_name_that_is_no_text_is_one_clear_error(tmp_path: Path) -> None:
    request, path = Request(), tmp_path / "x.xml"
    write(TARGET, legalized("g (float[3] x) => (float[3] y) { y = Neg(x) }", request), path, request)
    path.write_bytes(path.read_bytes().replace(b'name="g"', b'name="\xb1"'))
    with pytest.raises(InvalidModelError, match="does not load"):
        OpenVINO(path)
