"""--fallback host where the target's format has no place for it: a folder of parts with a schedule, proven whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import tapeout
from tapeout.compiler.bundle import SCHEDULE, read
from tapeout.compiler.errors import (
    AccuracyError,
    FallbackError,
    InvalidModelError,
    UnsupportedError,
    UsageError,
)
from tests.cli.conftest import Cli
from tests.passtext import parse

# TFLite has no kernel for the determinant, and no other operators stand for it.
TEXT = """agraph (float[2,3,3] x) => (float[2,3,3] y, float[2,3,3] z) <int64[2] axes = {1, 2}>
{ [front] a = Sin (x) [twice] b = Mul (a, a) [z] z = Sub (b, x) [det] d = Det (b)
  [wide] e = Unsqueeze (d, axes) [behind] c = Add (b, e) [y] y = Cos (c) }"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(parse(TEXT), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_parts_are_proven_as_one(model: Path, tmp_path: Path) -> None:
    made = tapeout.export(model, "tflite", output=tmp_path / "m.bundle", fallback="host")
    assert made.report["verification"]["holds"] and not made.report["proof"]["unproven"]
    assert len(made.report["proof"]["proven"]) == 2, "both of the target's runtimes"
    assert sorted(p.name for p in made.artifact.iterdir()) == [
        "part-00.tflite", "part-01.onnx", "part-02.tflite", SCHEDULE,
    ]  # fmt: skip
    schedule = read(made.artifact)
    assert [p["on"] for p in schedule["parts"]] == ["cpu", "host", "cpu"]
    assert schedule["parts"][1]["nodes"] == ["det"]
    assert schedule["parts"][0]["inputs"] == [{"name": "x", "dtype": "float32", "shape": [2, 3, 3]}]
    assert made.report["coverage"].endswith("; 1 on the CPU: Det 'det'")
    assert made.report["fallback"]["operators"] == ["det"] and made.report["fallback"]["parts"] == 3
    # The same again gives the same bytes, in place of what is there.
    first = {p.name: p.read_bytes() for p in made.artifact.iterdir()}
    again = tapeout.export(model, "tflite", output=tmp_path / "m.bundle", fallback="host")
    assert {p.name: p.read_bytes() for p in again.artifact.iterdir()} == first
    assert again.manifest == made.manifest
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    # And what was written is what is verified later.
    assert tapeout.verify(made.artifact, model).verification.holds
    assert tapeout.inspect(made.artifact)["kind"] == "bundle"
    names = {name for layer in tapeout.compare(model, made.artifact).layers for name in layer.nodes}
    assert {"front", "det", "y"} <= names
    (made.artifact.parent / "m.bundle.manifest.json").unlink()
    assert tapeout.verify(made.artifact, model).verification.holds


def test_a_wrong_part_is_found(model: Path, tmp_path: Path) -> None:
    made = tapeout.export(model, "tflite", output=tmp_path / "m.bundle", fallback="host")
    host = made.artifact / "part-01.onnx"
    changed = onnx.load(host)
    changed.graph.node[0].op_type = "Det"
    changed.doc_string = "changed"
    onnx.save(changed, host)
    with pytest.raises(AccuracyError, match=r"part-01\.onnx' is not the file that the schedule names"):
        tapeout.verify(made.artifact, model)
    other = tmp_path / "other.onnx"
    onnx.save(parse(TEXT.replace("Sin", "Cos")), other)
    made = tapeout.export(other, "tflite", output=tmp_path / "n.bundle", fallback="host")
    with pytest.raises(tapeout.TapeoutError, match=r"'z'|'y'") as caught:
        tapeout.verify(made.artifact, model)
    assert caught.value.exit_code == 5
    (made.artifact / SCHEDULE).write_text(
        '{"schema": "tapeout.schedule/1", "parts": [{"file": "../m.onnx", "files": []}]}'
    )
    with pytest.raises(InvalidModelError, match=r"names the file '\.\./m\.onnx', which is not in the folder"):
        tapeout.inspect(made.artifact)


def test_policies(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="does not take 1 of 7 nodes") as refused:
        tapeout.export(model, "tflite", output=tmp_path / "m.tflite")
    assert "--fallback host leaves it to the CPU" in str(refused.value.hint)
    with pytest.raises(UsageError, match="the artifact is a folder") as caught:
        tapeout.export(model, "tflite", output=tmp_path / "m.tflite", fallback="host")
    assert caught.value.hint == f"-o {tmp_path / 'm.bundle'}"
    with pytest.raises(
        FallbackError, match=r"14\.3% of the operators are left to the CPU, at most 5% are allowed"
    ):
        tapeout.export(model, "tflite", output=tmp_path / "m.bundle", fallback="host", max_fallback=5)
    with pytest.raises(UsageError, match="say what goes to the host"):
        tapeout.export(model, "tflite", output=tmp_path / "m.bundle", smallest_island=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx"], "nothing is left of any of them"
    with pytest.raises(UnsupportedError, match=r"nothing is left for the device[^|]*island 3, at least 4"):
        tapeout.export(model, "tflite", output=tmp_path / "m.bundle", fallback="host", smallest_island=4)


def test_a_whole_model_is_one_file_all_the_same(tmp_path: Path) -> None:
    plain = parse("agraph (float[2] x) => (float[2] y) { [a] y = Sin (x) }")
    made = tapeout.export(plain, "tflite", output=tmp_path / "p.tflite", fallback="host")
    assert (
        made.artifact.is_file()
        and made.report["coverage"] == "1 of 1 nodes on tflite, 100% of the operations"
    )


def test_on_the_command_line(cli: Cli, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "cli.bundle"
    done = cli("export", model, "--target", "tflite", "--fallback", "host", "-o", out, "--json")
    assert done.code == 0, done.err
    assert "6 of 7 nodes on tflite" in done.err and "1 on the CPU: Det 'det'" in done.err
    assert "left to the CPU: 1 operators (14.29%) in 3 parts, " in done.err
    assert json.loads(done.out)["manifest"]["artifact"]["parts"][-1]["name"] == SCHEDULE
    assert cli("verify", out, "--against", model).code == 0
    done = cli("explain", model, "--fallback", "host")
    assert done.out.splitlines()[0].endswith("; 1 on the CPU: Det 'det':")
    done = cli("explain", model)
    assert done.out.splitlines()[0].endswith("; 1 refused, which --fallback host leaves to the CPU:")
    done = cli("export", model, "--fallback", "host", "--largest-transfer", "10", "-o", out)
    assert done.code == 4 and "bytes to and from the island" in done.err


def test_integers_cross_the_border(tmp_path: Path) -> None:
    """A quantized model with a part for the host: the parts hold their clusters."""
    rng = np.random.default_rng(0)
    text = """agraph (float[2,3,3] x) => (float[2,3,3] y) <float[3,3] w = {0,0,0,0,0,0,0,0,0}, int64[2] axes = {1, 2}>
    { [m] a = MatMul (x, w) [r] b = Relu (a) [det] d = Det (b) [wide] e = Unsqueeze (d, axes)
      [behind] c = Add (b, e) [n] y = MatMul (c, w) }"""
    model = parse(text)
    weight = next(t for t in model.graph.initializer if t.name == "w")
    weight.CopyFrom(onnx.numpy_helper.from_array(rng.standard_normal((3, 3)).astype(np.float32), "w"))
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((16, 2, 3, 3)).astype(np.float32))
    made = tapeout.export(
        model, "tflite", output=tmp_path / "q.bundle", fallback="host", quantize="int8",
        calibration=tmp_path / "data.npz",
    )  # fmt: skip
    assert made.report["verification"]["holds"]
    assert [p["on"] for p in read(made.artifact)["parts"]] == ["cpu", "host", "cpu"]


def test_within_one_artifact_islands_are_not_ours(tmp_path: Path) -> None:
    text = """agraph (float[1,8] x) => (float[1,8] y) <float[8,8] w>
    { [m] a = MatMul (x, w) [s] b = Sin (a) [n] y = MatMul (b, w) }"""
    model = parse(text)
    weight = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "w"))
    with pytest.raises(UsageError, match="the business of ethos-u's own compiler"):
        tapeout.export(
            model, "tflite", device="ethos-u55-128", output=tmp_path / "m.tflite", calibration="random",
            fallback="host", smallest_island=2,
        )  # fmt: skip
