"""The option `state`: which pairs it names, and what does not fit together."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest

from tapeout.compiler.errors import UsageError
from tapeout.compiler.states import CheckStates, Feedback, growing, stateless, states, step_sizes, zeros
from tests.passtext import imported, parse

TEXT = """agraph (float[2] x, float[3] h, float[1,4] "c:0", float[N] free, int64[3] count)
        => (float[2] y, float[3] h2, float[1,4] "c2:0", float[N] free2, int64[3] count2) {
    y = Neg (x) h2 = Neg (h) "c2:0" = Neg ("c:0") free2 = Neg (free) count2 = Neg (count)
}"""
MODEL = imported(parse(TEXT))


@pytest.mark.parametrize(("text", "pairs"), [
    ("h:h2", {"h": "h2"}),
    ("c:0:c2:0", {"c:0": "c2:0"}),
    ("h:h2, count:count2", {"h": "h2", "count": "count2"}),
])  # fmt: skip
def test_pairs(text: str, pairs: dict[str, str]) -> None:
    assert states(MODEL, {"state": text}) == pairs
    assert states(MODEL, {}) == {}


@pytest.mark.parametrize(("text", "why"), [
    ("h", "expected state=IN:OUT"),
    ("", "expected state=IN:OUT"),
    ("g:h2", "no input 'g'; the model has x, h"),
    ("h:g", "no output 'g'; the model has y, h2"),
    ("h:y", r"the input has shape \[3\], the output \[2\]"),
    ("h:count2", "the input is FLOAT, the output INT64"),
    ("h:h2,h:h2", "names 'h' twice"),
    ("x:y,h:h2,c:0:c2:0,count:count2,free:free2", "leaves the model no output"),
])  # fmt: skip
def test_what_does_not_fit(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        states(MODEL, {"state": text})


def test_a_free_size_is_for_targets_whose_states_grow() -> None:
    assert states(MODEL, {"state": "free:free2"}) == {"free": "free2"}
    with pytest.raises(UsageError, match="is not fixed"):
        CheckStates({"state": "free:free2"})(MODEL)
    assert CheckStates({"state": "free:free2"}, grows=True)(MODEL).count == 0


CACHE = """agraph (float[1,S,4] x, float[1,P,4] k, int64[1,M] mask) => (float[1,T,4] k2, float[1,S,4] y) {
    k2 = Concat<axis=1> (k, x)
    y = Neg (x)
}"""


def test_a_cache_begins_with_nothing_and_grows() -> None:
    model = imported(parse(CACHE))
    model.graph.inputs[2].shape = ir.Shape([1, "P+S"])
    model.graph.outputs[0].shape = ir.Shape([1, "P+S", 4])
    assert growing(model, {"k": "k2"}) == {"P": "P+S"}
    assert zeros(model, {"k": "k2"})["k"].shape == (1, 0, 4)
    found = list(itertools.islice(step_sizes(model, {"k": "k2"}, {"S": 3, "P": 9}), 3))
    assert [f["P"] for f in found] == [0, 3, 6]
    assert [f["P+S"] for f in found] == [3, 6, 9]


def test_a_free_size_of_other_inputs_says_nothing_about_the_beginning() -> None:
    model = imported(
        parse(
            "agraph (float[N,2] x, float[N,3] h) => (float[N,2] y, float[N,3] h2) { y = Neg (x) h2 = Neg (h) }"
        )
    )
    with pytest.raises(UsageError, match="which other inputs have too"):
        growing(model, {"h": "h2"})


def test_a_model_needs_an_output_that_is_no_state() -> None:
    model = imported(parse("agraph (float[3] h) => (float[3] h2) { h2 = Neg (h) }"))
    with pytest.raises(UsageError, match="no output"):
        states(model, {"state": "h:h2"})


def test_the_source_gets_its_own_states_step_by_step() -> None:
    pairs = {"h": "h2"}
    first = zeros(MODEL, pairs)
    assert first["h"].shape == (3,) and not first["h"].any()
    assert [v.name for v in stateless(MODEL, pairs).graph.inputs] == ["x", "c:0", "free", "count"]
    given, last = np.ones(2, np.float32), np.full(3, 7, np.float32)
    feedback = Feedback({"x": (0,)}, pairs, first)
    assert not feedback.inputs({"x": given})["h"].any()
    assert set(feedback.outputs({"y": given, "h2": last})) == {"y"}
    np.testing.assert_array_equal(feedback.inputs({"x": given})["h"], last)
