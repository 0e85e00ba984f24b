"""Choosing boxes on TFLite, on both resolvers: overlaps, thresholds, scores that are equal."""

from __future__ import annotations

import numpy as np
import pytest

from tests.targets.tflite.road import agrees, legalized, refusals

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(14)
RESULT = "=> (int64[K,3] y)"


def boxes(pictures: int, count: int, centers: bool = False) -> np.ndarray:
    """Boxes of about a third of a picture; by their corners, in any order."""
    middle, size = RNG.uniform(0, 1, (pictures, count, 2)), RNG.uniform(0.2, 0.5, (pictures, count, 2))
    if centers:
        return np.concatenate([middle, size], -1).astype(np.float32)
    found = np.concatenate([middle - size / 2, middle + size / 2], -1).astype(np.float32)
    found[:, ::3] = found[:, ::3, [2, 3, 0, 1]]
    return found


@pytest.mark.parametrize("centers", [False, True])
@pytest.mark.parametrize("threshold", [None, 0.3])
@pytest.mark.parametrize("free", [False, True])
def test_boxes_of_several_pictures_and_classes(centers: bool, threshold: float | None, free: bool) -> None:
    pictures, kinds, count = 2, 3, 40
    # Steps of a tenth: many scores are equal.
    scores = np.round(RNG.uniform(0, 1, (pictures, kinds, count)), 1).astype(np.float32)
    size, last = ("N" if free else count), "" if threshold is None else ", low"
    text = (
        f"agraph (float[{pictures},{size},4] x, float[{pictures},{kinds},{size}] s) {RESULT}"
        f"<int64[1] most = {{7}}, float[1] share = {{0.4}}, float[1] low = {{0.3}}>"
        f"{{ y = NonMaxSuppression <center_point_box = {int(centers)}> (x, s, most, share{last}) }}"
    )
    found = agrees(text, inputs={"x": boxes(pictures, count, centers), "s": scores})
    assert found.count("NON_MAX_SUPPRESSION_V4") == pictures * kinds


@pytest.mark.parametrize("share", [0.0, 0.25, 1 / 3, 0.5, 1.0])
@pytest.mark.parametrize("computed", [False, True])
def test_overlaps_that_are_just_the_share_stay(share: float, computed: bool) -> None:
    # Boxes of 1 by 1 that overlap by 0, 1/3, 1/2 and 1, side by side.
    left = np.array([0, 1, 2, 2.5, 5, 5.4, 8, 8 + 1 / 3, 10, 10], np.float32)
    x = np.stack([0 * left, left, 0 * left + 1, left + 1], -1)[None]
    s = np.linspace(1, 0.5, len(left), dtype=np.float32)[None, None]
    given = {"share": np.array([share], np.float32), "most": np.array([99])}
    taken = ", int64[1] most, float[1] share" if computed else ""
    constants = "" if computed else f"<int64[1] most = {{99}}, float[1] share = {{{share}}}>"
    agrees(
        f"agraph (float[1,10,4] x, float[1,1,10] s{taken}) {RESULT} {constants}"
        "{ y = NonMaxSuppression (x, s, most, share) }",
        inputs={"x": x, "s": s} | (given if computed else {}),
    )


def test_boxes_without_extent_overlap_nothing() -> None:
    x = boxes(1, 30)
    x[0, ::4, 2:] = x[0, ::4, :2]
    x[0, 1:20:6] = 0
    s = np.round(RNG.uniform(0, 1, (1, 1, 30)), 1).astype(np.float32)
    text = (
        f"agraph (float[1,30,4] x, float[1,1,30] s, float[1] share) {RESULT} <int64[1] most = {{30}}>"
        "{ y = NonMaxSuppression (x, s, most, share) }"
    )
    for share in (0.0, 0.3, 1.0):
        agrees(text, inputs={"x": x, "s": s, "share": np.array([share], np.float32)})


def test_an_unknown_number_of_classes_is_refused() -> None:
    text = (
        f"agraph (float[1,9,4] x, float[1,C,9] s) {RESULT} <int64[1] most = {{3}}, float[1] share = {{0.5}}>"
        "{ y = NonMaxSuppression (x, s, most, share) }"
    )
    assert "NonMaxSuppression" in str(refusals(legalized(text))[0])
