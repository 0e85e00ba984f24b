"""TFLite files of other tools: read back, held against models and against each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import tapeout
from tapeout.compiler.errors import AccuracyError, UsageError
from tapeout.compiler.foreign import Fit, Port, fit
from tests.assets import ASSETS, needs_assets
from tests.cli.conftest import Cli, small_model


def renamed(path: Path, order: str = "") -> Path:
    """The small model as another tool would write it: other names, another axis order, no manifest."""
    proto = small_model()
    for value in (*proto.graph.input, *proto.graph.output):
        for node in proto.graph.node:
            for names in (node.input, node.output):
                names[:] = [n + "_theirs" if n == value.name else n for n in names]
        value.name += "_theirs"
    layout = {f"{n}_theirs": order for n in "xyz"} if order else {}
    tapeout.export(proto, output=path, layout=layout, verify=False)
    path.with_name(path.name + ".manifest.json").unlink()
    return path


@pytest.mark.parametrize("order", ["", "NHWC"])
def test_other_names_and_orders_are_matched(order: str, model: Path, tmp_path: Path) -> None:
    found = tapeout.verify(renamed(tmp_path / "theirs.tflite", order), model).verification
    assert found.holds and found.samples == 5
    assert {e.output for e in found.entries} == {"y", "z"}


def shifted(path: Path) -> Path:
    """The small model with another bias."""
    proto = small_model()
    bias = onnx.numpy_helper.to_array(proto.graph.initializer[1])
    proto.graph.initializer[1].raw_data = (bias + np.float32(0.01)).astype("<f4").tobytes()
    onnx.save(proto, path)
    return path


def test_other_weights_are_found(tmp_path: Path) -> None:
    theirs = renamed(tmp_path / "theirs.tflite")
    with pytest.raises(AccuracyError, match=r"'[yz]' .* is off by"):
        tapeout.verify(theirs, shifted(tmp_path / "other.onnx"))


def test_another_interface_is_refused(model: Path, tmp_path: Path) -> None:
    other = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> n (float[1,5] q) => (float[1,5] r) { r = Relu (q) }'
    )
    tapeout.export(other, output=tmp_path / "o.tflite")
    (tmp_path / "o.tflite.manifest.json").unlink()
    with pytest.raises(
        UsageError, match=r"do not fit .*'q' float32\[1, 5\].* for 'x' float32\[\?, 3, 8, 8\]"
    ):
        tapeout.verify(tmp_path / "o.tflite", model)


def test_two_artifacts_against_each_other(cli: Cli, model: Path, tmp_path: Path) -> None:
    full, other, theirs = tmp_path / "full.tflite", tmp_path / "other.tflite", tmp_path / "theirs.tflite"
    tapeout.export(model, output=full)
    tapeout.export(shifted(tmp_path / "other.onnx"), output=other)
    renamed(theirs, "NHWC")
    assert tapeout.verify(theirs, full).verification.holds
    assert not tapeout.verify(other, full, raising=False).verification.holds
    layers = {entry["tensor"]: entry for entry in cli("compare", full, other, "--json").json()["layers"]}
    assert {"y", "z"} <= layers.keys()
    assert 1e-4 < layers["y"]["local"] < 0.1 and layers["y"]["deviates"]
    same = cli("compare", full, full, "--json").json()
    assert all(entry["local"] == 0 for entry in same["layers"])


def test_ports_are_matched_by_name_then_by_shape() -> None:
    a, b = Port("a", "float32", (None, 3, 8, 8)), Port("b", "int64", (1,))
    x, y = Port("x", "int32", (1,)), Port("y", "uint8", (1, 8, 8, 3), 0.5, 128)
    found = fit([a, b], [x, y], "input")
    assert [(f.theirs.name, f.perm) for f in found] == [("y", (0, 2, 3, 1)), ("x", (0,))]
    values = np.random.default_rng(5).uniform(-60, 60, (2, 3, 8, 8)).astype(np.float32)
    there = found[0].there(values)
    assert there.dtype == np.uint8 and there.shape == (2, 8, 8, 3)
    np.testing.assert_allclose(found[0].back(there), values, rtol=0, atol=0.25)


def test_integers_that_stand_for_themselves_stay() -> None:
    port = Port("a", "int64", (4,))
    assert Fit(port, Port("b", "int32", (4,)), (0,)).there(np.arange(4)).tolist() == [0, 1, 2, 3]


@needs_assets
@pytest.mark.slow
def test_a_publishers_file_holds_against_its_model() -> None:
    folder = ASSETS / "models/mnist_lstm"
    assert tapeout.verify(folder / "reference_float.tflite", folder / "model.onnx").verification.holds
    found = tapeout.verify(
        folder / "reference_int8.tflite", folder / "model.onnx", gates={"sqnr": 100.0}, raising=False
    )
    assert found.error is not None
    assert tapeout.inspect(folder / "reference_int8.tflite")["format"] == "tflite"


def test_ports_are_matched_by_the_names_of_tensors() -> None:
    """Two outputs of one shape, which a signature calls otherwise and lists in another order."""
    ours = [Port("one", "float32", (1, 4)), Port("two", "float32", (1, 4))]
    theirs = [Port("a", "float32", (1, 4), tensor="two"), Port("b", "float32", (1, 4), tensor="one")]
    assert [f.theirs.name for f in fit(ours, theirs, "output")] == ["b", "a"]


def test_layers_of_another_tools_file(cli: Cli, model: Path, tmp_path: Path) -> None:
    theirs = renamed(tmp_path / "theirs.tflite", "NHWC")
    found = {e["tensor"]: e for e in cli("compare", model, theirs, "--json").json()["layers"]}
    assert {"y", "z"} <= found.keys() and not any(e["deviates"] for e in found.values())
    found = cli("compare", shifted(tmp_path / "other.onnx"), theirs, "--json").json()
    assert found["first"]["tensor"] in ("y", "z")


@needs_assets
@pytest.mark.slow
def test_outputs_under_other_names_in_another_order(tmp_path: Path) -> None:
    """The publisher's file lists its outputs by name, the model in its own order; two have one shape."""
    folder, data = ASSETS / "models/basic_pitch", np.load(ASSETS / "data/pitch_vocadito10/eval.npz")
    audio = (data["x"][:2].astype(np.float32) / 32768)[..., None]
    np.savez(tmp_path / "d.npz", **{"serving_default_input_2:0": audio})
    found = tapeout.verify(
        folder / "reference_float.tflite", folder / "model.onnx", data=tmp_path / "d.npz",
        raising=False,
    ).verification  # fmt: skip
    assert len(found.entries) == 6
    assert all(e.difference.relative < 1e-3 for e in found.entries)


@needs_assets
@pytest.mark.slow
def test_integers_of_another_tool_have_no_tolerance(cli: Cli) -> None:
    folder, data = ASSETS / "models/mnist_lstm", ASSETS / "data/digits28/eval.npz"
    arguments = (folder / "reference_int8.tflite", "--against", folder / "model.onnx", "--data", data)
    done = cli("verify", *arguments)
    assert done.code == 0 and "no bound applies" in done.err and "computes in integers" in done.err
    assert cli("verify", *arguments, "--gate", "sqnr=30").code == 0
    assert cli("verify", *arguments, "--gate", "sqnr=60").code == 5
