"""What stands before an input inside the file: the words of the option, and what they compute."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tapeout
from tapeout.compiler.errors import AccuracyError, TapeoutError, UsageError
from tapeout.compiler.reference import Reference
from tests.passtext import parse as text

pytest.importorskip("openvino", reason="the package 'openvino' is not installed")

from tapeout.targets.openvino.preparation import TYPES, CheckPreparation, embed, parse, reference, without
from tapeout.targets.openvino.promises import prepares
from tapeout.targets.openvino.run import EXACT
from tapeout.targets.openvino.runtime import core


def value(shape: tuple[int | str, ...] = (1, 3, 8, 12), dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    return ir.Value(name="x", type=ir.TensorType(dtype), shape=ir.Shape(shape))


def scaled(shape: tuple[int, ...]) -> Any:
    """y = 1.5 x"""
    from openvino import Model
    from openvino import opset13 as op

    x = op.parameter(list(shape), np.float32, name="x")
    x.output(0).set_names({"x"})
    return Model([op.result(op.multiply(x, op.constant(np.float32(1.5))))], [x], "m")


@pytest.mark.parametrize(("words", "shape", "caller"), [
    ("u8 NHWC BGR resize mean=1,2,3 scale=4,5,6", (1, 3, 8, 12), (1, 17, 23, 3)),
    ("u8 NHWC BGR>RGB resize=cubic size=20x30 mean=1 scale=255", (1, 3, 8, 12), (1, 20, 30, 3)),
    ("u8 NHWC RGBX resize=nearest scale=255", (1, 3, 8, 12), (1, 5, 31, 4)),
    ("u8 NCHW BGR>GRAY resize", (1, 1, 8, 12), (1, 3, 16, 9)),
    ("BGR u8 resize mean=1,2,3", (1, 8, 12, 3), (1, 9, 14, 3)),
    ("u8 NCHW model=NHWC", (1, 8, 12, 3), (1, 3, 8, 12)),
    ("i16 scale=32768", (1, 64), (1, 64)),
    ("f32 NHWC RGB>BGR", (1, 3, 4, 4), (1, 4, 4, 3)),
])  # fmt: skip
def test_what_is_embedded_is_what_onnx_computes(
    words: str, shape: tuple[int, ...], caller: tuple[int, ...]
) -> None:
    made = parse(value(shape), words)
    model = embed(scaled(shape), [made])
    rng = np.random.default_rng(1)
    x = (rng.uniform(0, 200, caller)).astype(TYPES[made.type].numpy())
    with Reference(reference(made)) as program:
        y = program.run({"x": x})["y"]
    found = core().compile_model(model, "CPU", EXACT)([x])[0]
    np.testing.assert_allclose(found, 1.5 * y, rtol=0, atol=1e-5 * np.abs(y).max())
    prepares(model, {"x": words})
    plain = core().compile_model(without(model), "CPU", EXACT)
    np.testing.assert_allclose(plain([y])[0], 1.5 * y, rtol=0, atol=1e-5 * np.abs(y).max())


def test_preparation_that_computes_something_else_is_a_fault() -> None:
    words = "u8 NHWC BGR resize mean=1,2,3"
    model = embed(scaled((1, 3, 8, 12)), [parse(value(), words)])
    with pytest.raises(AccuracyError, match="is off by"):
        prepares(model, {"x": words.replace("1,2,3", "1,2,4")})


@pytest.mark.parametrize(("words", "why"), [
    ("u8 NHHC", "'NHHC' is no axis order"),
    ("u8 NHWC BGRR", "did you mean 'BGRX'|did you mean 'BGR'"),
    ("uint8", "did you mean 'u8'|known"),
    ("resize=linaer", "did you mean 'linear'"),
    ("resize size=480", "expected HEIGHTxWIDTH"),
    ("size=480x640", "size without resize"),
    ("mean=1,2", "mean has 2 numbers, expected 1 or 3"),
    ("scale=0", "other than 0"),
    ("mean=a", "expected numbers"),
    ("mean=nan", "finite"),
    ("BGR>GRAY", "gives 1 channels, the model takes 3"),
    ("GRAY>RGB", "GRAY can become GRAY"),
    ("u8 u8", "says the type again"),
    ("NCDHW", "4 axes"),
    ("model=NWHX", "is no axis order"),
    ("", "says nothing"),
])  # fmt: skip
def test_words_that_do_not_fit(words: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse(value(), words)


def test_inputs_that_cannot_be_prepared() -> None:
    with pytest.raises(UsageError, match="only inputs in floats"):
        parse(value(dtype=ir.DataType.INT64), "u8")
    with pytest.raises(UsageError, match="fixed height and width"):
        parse(value((1, 3, "H", "W")), "u8 resize")
    model = ir.Model(ir.Graph([value()], [], nodes=[]), ir_version=10)
    with pytest.raises(UsageError, match="no input 'y'; known: x"):
        CheckPreparation({"input.y": "u8"})(model)
    with pytest.raises(UsageError, match="an NPU takes fixed sizes"):
        CheckPreparation({"input.x": "u8 resize"}, "npu")(model)
    assert CheckPreparation({"input.x": "u8 resize size=48x64"}, "npu")(model).count == 0


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet=string.ascii_letters + string.digits + " =,.>x-", max_size=40))
def test_any_words_are_taken_or_refused(words: str) -> None:
    try:
        made = parse(value(), words)
    except TapeoutError:
        return
    assert len(made.given) == 4


def test_export_embeds_it_and_proves_the_rest(tmp_path: Path) -> None:
    model = text("agraph (float[1,3,8,8] x) => (float[1,3,8,8] y) { y = Relu (x) }")
    options = {"input.x": "u8 NHWC BGR resize mean=100 scale=50"}
    done = tapeout.export(model, "openvino", output=tmp_path / "m.xml", options=options)
    assert done.report["verification"]["holds"]
    (port,) = tapeout.inspect(tmp_path / "m.xml")["inputs"]
    assert (port["name"], port["type"], port["shape"]) == ("x", "u8", [1, "?", "?", 3])
    assert tapeout.verify(tmp_path / "m.xml", model).verification.holds
    image = np.full((1, 5, 5, 3), (50, 200, 150), np.uint8)
    found = core().compile_model(core().read_model(tmp_path / "m.xml"), "CPU", EXACT)([image])[0]
    np.testing.assert_allclose(found[0, :, 3, 4], [1, 2, 0], atol=1e-5)
