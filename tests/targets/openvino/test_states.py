"""States inside the file: they last from one run to the next, grow where they are a cache, and can be set back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import tapeout
from tapeout.compiler.errors import UsageError
from tests.passtext import imported, parse

pytest.importorskip("openvino", reason="the package 'openvino' is not installed")

from tapeout.targets.openvino.run import EXACT
from tapeout.targets.openvino.runtime import core

SUM = """agraph (float[1,4] x, float[1,4] h) => (float[1,4] y, float[1,4] h2) {
    h2 = Add (x, h)
    y = Relu (h2)
}"""
CACHE = """agraph (float[1,S,4] x, float[1,P,4] k) => (float[1,4] y, float[1,T,4] k2)
<int64[1] one = {1}> {
    k2 = Concat<axis=1> (k, x)
    y = ReduceSum<keepdims=0> (k2, one)
}"""


def test_a_state_lasts_and_can_be_set_back(tmp_path: Path) -> None:
    done = tapeout.export(parse(SUM), "openvino", output=tmp_path / "m.xml", options={"state": "h:h2"})
    assert done.report["verification"]["samples"] == 20
    request = core().compile_model(core().read_model(tmp_path / "m.xml"), "CPU", EXACT).create_infer_request()
    x = np.ones((1, 4), np.float32)
    assert [float(request.infer([x])[0][0, 0]) for _ in range(3)] == [1, 2, 3]
    request.reset_state()
    assert float(request.infer([x])[0][0, 0]) == 1


def test_a_cache_begins_with_nothing_and_grows(tmp_path: Path) -> None:
    done = tapeout.export(parse(CACHE), "openvino", output=tmp_path / "m.xml", options={"state": "k:k2"})
    assert done.report["verification"]["holds"]
    request = core().compile_model(core().read_model(tmp_path / "m.xml"), "CPU", EXACT).create_infer_request()
    sums = [float(request.infer([np.ones((1, n, 4), np.float32)])[0][0, 0]) for n in (3, 1, 2)]
    assert sums == [3, 4, 6]
    (state,) = request.query_state()
    assert state.name == "k" and state.state.data.shape == (1, 6, 4)


def test_a_state_that_one_of_several_outputs_makes(tmp_path: Path) -> None:
    text = """agraph (float[1,3] x, float[1,3] h) => (float[1,3] y, float[1,3] h2) {
        z = Concat<axis=1> (x, h)
        y, h2 = Split<axis=1, num_outputs=2> (z)
    }"""
    done = tapeout.export(parse(text), "openvino", output=tmp_path / "m.xml", options={"state": "h:h2"})
    assert done.report["verification"]["holds"]


def test_a_state_beside_stored_weights(tmp_path: Path) -> None:
    model = imported(
        parse("""agraph (float[1,64] x, float[1,64] h) => (float[1,64] y, float[1,64] h2) <float[64,64] w> {
        z = Add (x, h)
        h2 = MatMul (z, w)
        y = Tanh (h2)
    }""")
    )
    rng = np.random.default_rng(0)
    model.graph.initializers["w"].const_value = ir.tensor((rng.normal(size=(64, 64)) / 16).astype(np.float32))
    done = tapeout.export(
        model, "openvino", output=tmp_path / "m.xml", options={"state": "h:h2"}, quantize="w8"
    )
    (entry,) = done.report["verification"]["outputs"]
    assert entry["output"] == "y" and entry["ratio"] < 1.1 and entry["sqnr"] > 25


def test_what_grows_is_refused_for_fixed_sizes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not fixed"):
        tapeout.export(
            parse(CACHE), "openvino", device="npu", output=tmp_path / "m.xml", options={"state": "k:k2"}
        )
