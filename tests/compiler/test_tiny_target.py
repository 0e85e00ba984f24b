"""The road through a whole target without vendor software: passes, acceptance, refusal, emission, running."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tapeout.compiler import pipeline
from tapeout.compiler.errors import UnsupportedError
from tapeout.compiler.explanation import explain, refusal_error
from tapeout.compiler.target import Request
from tests.compiler.tiny_target import LOWERINGS, TARGET, declaration
from tests.passtext import imported, parse, run

NETWORK = """
agraph (float[1,3,9,9] image) => (float[1,4,4,4] y)
<float[4,3,3,3] kernel, float[4] bias, float[4,1,1] shift>
{
   [stem] a = Conv<strides=[2,2]> (image, kernel, bias)
   [act] b = Relu (a)
   [again] c = Relu (b)
   [shifted] d = Add (c, shift)
   [doubled] y = Add (d, d)
}
"""


def legal(text: str, device: str = "one") -> tuple[ir.Model, Request]:
    request = Request(device=device)
    model = imported(parse(text))
    pipeline.run(model, TARGET.passes(request))
    return model, request


def test_a_model_goes_all_the_way(tmp_path: Path) -> None:
    model, request = legal(NETWORK)
    acceptance = TARGET.declaration("one").accept(model)
    assert [row.lower for _, row in acceptance.placed] == ["convolve", "clamp", "add_bias", "add"]
    assert acceptance.refused == []
    path = tmp_path / "model.json"
    with path.open("wb") as sink:
        TARGET.emit(model, sink, request)
    data = {"image": np.random.default_rng(3).normal(size=(1, 3, 9, 9)).astype(np.float32)}
    (runner,) = TARGET.runners(path, request)
    reference = run(parse(NETWORK), data)["y"]
    np.testing.assert_allclose(runner.run(data)["y"], reference, rtol=1e-5, atol=1e-5)
    assert set(runner.tensors(data, ["a", "nothing"])) == {"a"}


def test_the_same_model_gives_the_same_bytes() -> None:
    files = []
    for _ in range(2):
        model, request = legal(NETWORK)
        sink = io.BytesIO()
        TARGET.emit(model, sink, request)
        files.append(sink.getvalue())
    assert files[0] == files[1]


def test_refusals_come_all_at_once_and_say_what_to_do() -> None:
    model, _ = legal(
        NETWORK.replace("strides=[2,2]", "strides=[4,4], dilations=[2,2]").replace("[1,4,4,4]", "[1,4,2,2]")
    )
    acceptance = TARGET.declaration("one").accept(model)
    (refusal,) = acceptance.refused
    assert (
        str(refusal)
        == "Conv 'stem': stride 4, at most 3; dilation 2, exactly 1 on tiny; pad and stride twice"
    )
    error = refusal_error(acceptance)
    assert isinstance(error, UnsupportedError) and error.exit_code == 4
    assert "tiny does not take 1 of 4 nodes" in error.message and "'stem'" in error.message
    assert error.nodes == ("stem",)
    assert explain(acceptance).coverage().startswith("3 of 4 nodes on tiny, ")


def test_a_row_may_be_for_one_device() -> None:
    text = "agraph (float[2,3] x) => (float[2,4] y) <float[3,4] w> { [mm] y = MatMul (x, w) }"
    model, _ = legal(text)
    (refusal,) = declaration("one").accept(model).refused
    assert str(refusal) == "MatMul 'mm': tiny has no kernel for MatMul"
    accepted = declaration("two").accept(model)
    assert accepted.refused == [] and accepted.target == "tiny-two"
    assert declaration("two").facts == {"memory": 1024}


def test_what_holds_for_every_operator_holds_for_each() -> None:
    model, _ = legal("agraph (float[N,3] x) => (float[N,3] y) { [act] y = Relu (x) }")
    (refusal,) = declaration("one").accept(model).refused
    assert str(refusal) == "Relu 'act': tiny needs static shapes; give --shape"


@pytest.mark.parametrize("device", TARGET.devices)
def test_rows_and_lowerings_are_the_same(device: str) -> None:
    lowerings = declaration(device).lowerings()
    assert lowerings <= set(LOWERINGS)
    assert declaration("two").lowerings() == set(LOWERINGS)
