"""Networks of free batch, sequence and image sizes: one file, run at several sizes, on both resolvers."""

from __future__ import annotations

import numpy as np
import pytest

from tapeout.compiler import pipeline
from tapeout.compiler.ir.load import from_proto, from_text
from tapeout.compiler.target import Request
from tapeout.passes.decompose.resizing import Axis, nearest
from tapeout.targets.tflite import TARGET
from tapeout.targets.tflite.legalize.resizing import chosen
from tapeout.targets.tflite.run import RESOLVERS, LiteRT
from tests.targets.tflite.networks import CASES
from tests.targets.tflite.road import HEADER, Arrays, agrees, emitted, inputs_of, reference, refusals

pytestmark = pytest.mark.slow

# One of each kind in every run; the others where there is time.
QUICK = ("unet", "heads_torch", "multiples_edge", "grid", "encoder", "sound_up")


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)
def test_one_file_serves_every_size(name: str) -> None:
    case = CASES[name]
    proto = case.build()
    source = from_proto(proto)
    feeds: list[Arrays] = []
    for seed, sizes in enumerate(case.sizes):
        feed = inputs_of(source, sizes, seed)
        feeds.append({k: v % case.below if v.dtype.kind == "i" else v for k, v in feed.items()})
    expected = [reference(source, feed) for feed in feeds]
    model = from_proto(proto)
    pipeline.run(model, TARGET.passes(Request()))
    assert [str(r) for r in refusals(model)] == []
    content = emitted(model)
    for resolver in RESOLVERS:
        runner = LiteRT(content, resolver)
        for feed, wanted in zip(feeds, expected, strict=True):
            found = runner.run(feed)
            for key, right in wanted.items():
                assert found[key].shape == right.shape, f"{resolver} {key}"
                if right.dtype.kind == "f" and right.size:
                    error = np.abs(found[key].astype(np.float64) - right).max() / np.abs(right).max()
                    assert error <= 1e-5, f"{resolver} {key}: {error:.2g}"
                else:
                    np.testing.assert_array_equal(found[key], right, err_msg=f"{resolver} {key}")


def resize(scale: float, attributes: str) -> str:
    stated = f"<{attributes}>" if attributes else ""
    return (
        "agraph (float[N,C,H,W] x) => (float[N,C,D,E] y)\n"
        f"<float[4] s = {{1, 1, {scale}, {scale}}}>\n{{ y = Resize {stated} (x, , s) }}"
    )


@pytest.mark.parametrize(
    ("scale", "attributes", "kernel"),
    [
        (
            2,
            'coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"',
            "RESIZE_NEAREST_NEIGHBOR",
        ),
        (3, 'nearest_mode = "round_prefer_ceil"', "RESIZE_NEAREST_NEIGHBOR"),
        (41, 'coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"', "GATHER"),
        (2, 'coordinate_transformation_mode = "asymmetric", nearest_mode = "ceil"', "GATHER"),
        (1.7, 'coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"', "GATHER"),
        (0.4, "", "GATHER"),
        (2, 'mode = "linear"', "RESIZE_BILINEAR"),
        (2, 'mode = "linear", coordinate_transformation_mode = "align_corners"', "RESIZE_BILINEAR"),
        (3, 'mode = "linear", coordinate_transformation_mode = "half_pixel_symmetric"', "GATHER"),
        (1.3, 'mode = "linear"', "GATHER"),
        (2.5, 'mode = "cubic", exclude_outside = 1', "GATHER"),
    ],
)
def test_resize_of_free_sides(scale: float, attributes: str, kernel: str) -> None:
    for sides in ({"H": 5, "W": 9}, {"H": 31, "W": 12}):
        assert kernel in agrees(resize(scale, attributes), bind={"N": 2, "C": 3, **sides})


@pytest.mark.parametrize(
    "attributes",
    ['mode = "linear", antialias = 1', 'coordinate_transformation_mode = "align_corners"'],
)
def test_what_depends_on_the_size_in_other_ways_is_refused(attributes: str) -> None:
    model = from_text(HEADER + resize(0.7, attributes))
    pipeline.run(model, TARGET.passes(Request()))
    assert [r.op for r in refusals(model)] == ["Resize"]


def test_whole_scales_choose_the_same_neighbours_at_every_size() -> None:
    one, taken = np.float32(1), 0
    for s in range(1, 130):
        axis = Axis(2, 8192 // s, 8192 // s * s, float(s))
        if np.float32(s) * (one / np.float32(s)) != one:
            continue
        taken += 1
        for mode, rounding in (("asymmetric", "floor"), ("half_pixel", "round_prefer_floor")):
            np.testing.assert_array_equal(nearest(axis, mode, rounding), chosen(axis, mode), err_msg=str(s))
    assert taken > 100


def test_one_result_where_torch_takes_the_first_element() -> None:
    text = (
        "agraph (float[N,2,H,W] x, int64[2] side) => (float[N,2,P,Q] y)\n"
        "<int64[1] zero = {0}, int64[1] two = {2}>\n"
        "{ s = Shape (x)\n f = Slice (s, zero, two)\n z = Concat <axis = 0> (f, side)\n"
        ' y = Resize <mode = "linear", coordinate_transformation_mode = "pytorch_half_pixel"> (x, , , z) }'
    )
    rng = np.random.default_rng(2)
    for side in ((1, 7), (9, 1), (1, 1), (4, 3)):
        x = rng.standard_normal((2, 2, 5, 6)).astype(np.float32)
        found = agrees(text, inputs={"x": x, "side": np.array(side, np.int64)})
        assert "RESIZE_BILINEAR" in found


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_pad_by_computed_amounts(mode: str) -> None:
    text = (
        "agraph (float[N,C,H,W] x, int64[4] amounts) => (float[N,C,D,E] y)\n"
        "<int64[2] axes = {2, 3}>\n"
        f'{{ a = Relu (x)\n b = Pad <mode = "{mode}"> (a, amounts, , axes)\n y = Neg (b) }}'
    )
    rng = np.random.default_rng(3)
    for amounts in ((0, 2, 1, 3), (1, 0, 0, 0)):
        x = rng.standard_normal((2, 3, 5, 4)).astype(np.float32)
        agrees(text, inputs={"x": x, "amounts": np.array(amounts, np.int64)})


def test_split_into_parts_of_a_free_size() -> None:
    text = (
        "agraph (float[N,T] x) => (float[N,A] a, float[N,B] b, float[N,D] d)\n"
        "{ a, b, d = Split <axis = 1, num_outputs = 3> (x) }"
    )
    for steps in (6, 7, 8):
        agrees(text, bind={"T": steps})


def test_elements_gathered_from_free_sizes() -> None:
    text = (
        "agraph (float[N,M,D] x, int64[N,K,D] i) => (float[N,K,D] y, float[N,M,D] z)\n"
        "{ y = GatherElements <axis = 1> (x, i)\n u = Neg (y)\n z = ScatterElements <axis = 1> (x, i, u) }"
    )
    rng = np.random.default_rng(4)
    for n, m, d in ((2, 9, 3), (1, 4, 5)):
        x = rng.standard_normal((n, m, d)).astype(np.float32)
        i = np.argsort(rng.random((n, m, d)), axis=1)[:, :3]
        agrees(text, inputs={"x": x, "i": np.where(i % 2, i, i - m)})


@pytest.mark.parametrize("attributes", ["strides = [2, 2], pads = [1, 1, 1, 1]", "pads = [1, 0, 0, 1]"])
def test_average_over_what_is_inside_of_free_sides(attributes: str) -> None:
    text = (
        "agraph (float[N,3,H,W] x) => (float[N,3,P,Q] y)\n"
        f"{{ y = AveragePool <kernel_shape = [3, 3], {attributes}> (x) }}"
    )
    for sides in ({"H": 5, "W": 8}, {"H": 12, "W": 7}, {"H": 2, "W": 3}):
        agrees(text, bind=sides)
