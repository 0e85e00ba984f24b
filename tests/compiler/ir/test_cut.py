"""Fixed input shapes and other outputs: what they change, and how a wrong one is answered."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from tapeout.compiler.errors import UsageError
from tapeout.compiler.ir import check
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.cut import bind_shapes, cut_outputs
from tapeout.compiler.ir.load import from_text
from tapeout.compiler.ir.save import to_bytes

TEXT = """<ir_version: 10, opset_import: ["": 21]>
    g (float[N,3,H,W] image, float[N,K] side, float[4] other) => (float[N,M] y, float[N,K] z)
    <float[8,3,3,3] w, float[4] v> {
        [conv] c = Conv <pads = [1,1,1,1], strides = [2,2]> (image, k)
        [pool] p = GlobalAveragePool (c)
        [flat] f = Flatten (p)
        [cat] y = Concat <axis = 1> (f, side)
        [neg] z = Neg (side)
        [dead] d = Abs (other)
        [add] e = Add (d, other)
    }""".replace("<float[8,3,3,3] w, float[4] v>", "<float[1,3,1,1] k = {1, 2, 3}>")


@pytest.fixture
def model() -> ir.Model:
    return from_text(TEXT)


def test_a_shape_reaches_everything_it_decides(model: ir.Model) -> None:
    bind_shapes(model, {"image": (2, 3, 9, 16)})
    shapes = {v.name: g.dims(v) for n in model.graph for v in n.outputs}
    assert shapes["c"] == (2, 1, 6, 9) and shapes["z"] == (2, "K")
    assert g.dims(model.graph.inputs[1]) == (2, "K")
    bind_shapes(model, {"side": (2, 5)})
    assert [g.dims(v) for v in model.graph.outputs] == [(2, 6), (2, 5)]
    assert check.faults(model) == []


@pytest.mark.parametrize(("shapes", "words"), [
    ({"imag": (1, 3, 8, 8)}, ["'imag'", "did you mean 'image'", "'side'"]),
    ({"image": (1, 3, 8)}, ["4 dimensions", "[1, 3, 8]"]),
    ({"image": (1, 4, 8, 8)}, ["'image'", "[1, 4, 8, 8]", "3"]),
    ({"image": (1, 3, 8, 8), "side": (2, 4)}, ["'N'", "1 by 'image'", "2 by 'side'"]),
    ({"side": (2, -4)}, ["negative"]),
])  # fmt: skip
def test_shapes_that_do_not_fit(
    model: ir.Model, shapes: dict[str, tuple[int, ...]], words: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        bind_shapes(model, shapes)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_name_keeps_a_dimension_free(model: ir.Model) -> None:
    bind_shapes(model, {"image": ("B", 3, "?", 8), "side": (-1, "B")})
    assert [g.dims(v) for v in model.graph.inputs] == [("B", 3, "H", 8), ("B", "B"), (4,)]
    assert [g.dims(v) for v in model.graph.outputs] == [("B", "B+1"), ("B", "B")]
    assert check.faults(model) == []
    session = ort.InferenceSession(to_bytes(model))
    x, s, o = (np.ones(d, np.float32) for d in ((2, 3, 5, 8), (2, 2), (4,)))
    assert session.run(None, {"image": x, "side": s, "other": o})[0].shape == (2, 3)


@pytest.mark.parametrize(("shapes", "words"), [
    ({"image": ("N", "C", 8, 8)}, ["[N, 3, H, W]", "size 3 is fixed", "'C'"]),
    ({"image": ("A", 3, 8, 8), "side": ("B", 4)}, ["'N'", "A by 'image'", "B by 'side'"]),
    ({"image": ("A", 3, 8, 8), "side": (2, 4)}, ["'N'", "A by 'image'", "2 by 'side'"]),
    ({"side": (2, "2*K")}, ["'2*K'", "a name such as N"]),
])  # fmt: skip
def test_names_that_do_not_fit(
    model: ir.Model, shapes: dict[str, tuple[int | str, ...]], words: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        bind_shapes(model, shapes)
    assert all(word in str(caught.value) + str(caught.value.hint) for word in words), str(caught.value)


def test_cutting_at_a_value_drops_what_served_others(model: ir.Model) -> None:
    cut_outputs(model, ["p", "c"])
    assert check.faults(model) == []
    assert [v.name for v in model.graph.outputs] == ["p", "c"]
    assert [n.op_type for n in model.graph] == ["Conv", "GlobalAveragePool"]
    assert [v.name for v in model.graph.inputs] == ["image"]
    x = np.random.default_rng(0).standard_normal((1, 3, 4, 4)).astype(np.float32)
    p, c = ort.InferenceSession(to_bytes(model)).run(None, {"image": x})
    np.testing.assert_allclose(p, c.mean((2, 3), keepdims=True), rtol=1e-5)


@pytest.mark.parametrize(("names", "words"), [
    (["pp"], ["'pp'", "no value", "'y'"]), (["image"], ["'image'", "is an input"]), (["y", "y"], ["twice"]),
])  # fmt: skip
def test_outputs_that_are_not_there(model: ir.Model, names: list[str], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        cut_outputs(model, names)
    assert all(word in str(caught.value) for word in words), str(caught.value)
