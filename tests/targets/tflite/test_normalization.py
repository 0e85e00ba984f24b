"""Normalization across channels, resizing, depth and space on TFLite."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import pytest

from tapeout.passes.decompose.resizing import Axis, nearest
from tests.targets.tflite.road import agrees, legalized, refusals
from tests.targets.tflite.test_windows import initializer

COORDINATES = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners", "half_pixel_symmetric")
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


@pytest.mark.parametrize("size", [1, 3, 5])
def test_local_response_normalization(size: int) -> None:
    agrees(
        "agraph (float[2,7,4,5] x) => (float[2,7,4,5] y)"
        f"{{ y = LRN <size = {size}, alpha = 0.3, beta = 0.6, bias = 1.5> (x) }}"
    )


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode: str) -> None:
    call = f'DepthToSpace <blocksize = 2, mode = "{mode}">'
    agrees(f"agraph (float[2,12,3,4] x) => (float[2,3,6,8] y) {{ y = {call} (x) }}")
    data = f"{initializer('w', 12, 3, 1, 1)}, {initializer('b', 12)}"
    made = agrees(
        f"agraph (float[2,3,3,4] x) => (float[2,3,6,8] y)\n<{data}>\n{{ t = Conv (x, w, b) y = {call} (t) }}"
    )
    assert made == ["TRANSPOSE", "CONV_2D", "DEPTH_TO_SPACE", "TRANSPOSE"]


def test_space_to_depth() -> None:
    agrees("agraph (float[2,3,4,6] x) => (float[2,12,2,3] y) { y = SpaceToDepth <blocksize = 2> (x) }")


def resize(before: tuple[int, int], after: tuple[int, int], attributes: str) -> str:
    (h, w), (m, n) = before, after
    return (
        f"agraph (float[2,3,{h},{w}] x) => (float[2,3,{m},{n}] y)\n<int64[4] s = {{2, 3, {m}, {n}}}>\n"
        f"{{ y = Resize <{attributes}> (x, , , s) }}"
    )


@pytest.mark.parametrize("coordinates", COORDINATES[:4])
@pytest.mark.parametrize(("before", "after"), [((3, 4), (6, 8)), ((6, 10), (3, 5)), ((5, 7), (7, 3))])
def test_bilinear(coordinates: str, before: tuple[int, int], after: tuple[int, int]) -> None:
    agrees(resize(before, after, f'mode = "linear", coordinate_transformation_mode = "{coordinates}"'))


@pytest.mark.parametrize(("coordinates", "rounding"), itertools.product(COORDINATES, ROUNDINGS))
@pytest.mark.parametrize(("before", "after"), [((3, 4), (6, 8)), ((6, 10), (3, 5)), ((5, 7), (7, 3))])
def test_nearest(coordinates: str, rounding: str, before: tuple[int, int], after: tuple[int, int]) -> None:
    attributes = f'coordinate_transformation_mode = "{coordinates}", nearest_mode = "{rounding}"'
    text = resize(before, after, attributes)
    if coordinates == "half_pixel_symmetric" and refusals(legalized(text)):
        return
    agrees(text, tolerance=0)


def test_nearest_by_scales() -> None:
    made = agrees(
        "agraph (float[2,3,4,5] x) => (float[2,3,8,10] y)\n<float[4] s = {1.0, 1.0, 2.0, 2.0}>\n"
        '{ y = Resize <coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"> (x, , s) }'
    )
    assert made == ["TRANSPOSE", "RESIZE_NEAREST_NEIGHBOR", "TRANSPOSE"]


@pytest.mark.parametrize(("coordinates", "rounding"), itertools.product(COORDINATES[:4], ROUNDINGS))
def test_neighbours_are_those_of_onnx_runtime(coordinates: str, rounding: str) -> None:
    import onnxruntime as ort

    for before, after, scaled in itertools.product((1, 2, 3, 5, 8), (1, 2, 3, 4, 7, 10, 16), (False, True)):
        scale = (after + 0.3) / before if scaled else after / before
        node = onnx.helper.make_node(
            "Resize", ["x", "", "s" if scaled else "", *([] if scaled else ["n"])], ["y"],
            coordinate_transformation_mode=coordinates, nearest_mode=rounding,
        )  # fmt: skip
        feeds: dict[str, Any] = {"x": np.arange(before, dtype=np.float32)}
        feeds |= {"s": np.array([scale], np.float32)} if scaled else {"n": np.array([after], np.int64)}
        kinds = {"x": 1, "s": 1, "n": 7}
        graph = onnx.helper.make_graph(
            [node], "g",
            [onnx.helper.make_tensor_value_info(k, kinds[k], v.shape) for k, v in feeds.items()],
            [onnx.helper.make_tensor_value_info("y", 1, [None])],
        )  # fmt: skip
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
        if scaled and int(before * np.float32(scale)) == before:
            continue  # ONNX Runtime copies where the size stays, whatever the scale says
        (expected,) = ort.InferenceSession(model.SerializeToString()).run(None, feeds)
        found = nearest(Axis(0, before, len(expected), scale), coordinates, rounding)
        np.testing.assert_array_equal(found, expected, err_msg=f"{before} -> {after}, scale {scale}")


@pytest.mark.parametrize(
    "attributes",
    [
        'mode = "cubic"',
        'mode = "cubic", coordinate_transformation_mode = "align_corners", exclude_outside = 1',
        'mode = "linear", antialias = 1',
        'mode = "linear", coordinate_transformation_mode = "half_pixel_symmetric"',
    ],
)
@pytest.mark.parametrize(("before", "after"), [((4, 5), (7, 9)), ((6, 9), (3, 4)), ((5, 5), (1, 1))])
def test_resizing_that_is_not_tflites(
    attributes: str, before: tuple[int, int], after: tuple[int, int]
) -> None:
    agrees(resize(before, after, attributes))


@pytest.mark.parametrize("dtype", ["int32", "uint8"])
def test_resizing_integers_to_the_nearest(dtype: str) -> None:
    agrees(
        f"agraph ({dtype}[2,3,4,5] x) => ({dtype}[2,3,8,10] y)\n<float[4] s = {{1.0, 1.0, 2.0, 2.0}}>\n"
        '{ y = Resize <coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"> (x, , s) }'
    )
