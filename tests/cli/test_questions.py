"""explain, verify, compare, inspect, bench, targets, conformance on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

import tapeout
from tests.cli.conftest import Cli, Done, spoiled


@pytest.fixture
def artifact(cli: Cli, model: Path, tmp_path: Path) -> Path:
    out = tmp_path / "small.tflite"
    done: Done = cli("export", model, "-o", out)
    assert done.code == 0, done.err
    return out


def test_explain(cli: Cli, model: Path, tmp_path: Path) -> None:
    done = cli("explain", model, "--target", "tflite")
    assert done.code == 0 and "nodes on tflite, 100% of the operations" in done.out, done.err
    found = cli("explain", model, "--json").json()
    assert found["schema"] == "tapeout.explain/1" and found["target"] == "tflite"
    text = """<ir_version: 8, opset_import: ["" : 17]>
    agraph (float[4,4] x) => (float y, float[4,4] z) { [one] y = Det (x) z = Relu (x) }"""
    onnx.save(parser.parse_model(text), tmp_path / "det.onnx")
    done = cli("explain", tmp_path / "det.onnx")
    assert done.code == 0 and "Det" in done.out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["det.onnx", "small.onnx"]


def test_verify(cli: Cli, model: Path, artifact: Path, tmp_path: Path) -> None:
    done = cli("verify", artifact, "--against", model, "--json")
    assert done.code == 0 and done.json()["holds"] is True
    wrong = spoiled(tmp_path / "wrong.onnx")
    done = cli("verify", artifact, "--against", wrong, "--json")
    assert done.code == 5
    assert done.json()["error"]["nodes"] == ["conv", "relu"]  # one operator of the artifact
    assert "FAILS" in done.err
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.standard_normal((4, 3, 8, 8)).astype(np.float32))
    done = cli("verify", artifact, "--against", model, "--data", tmp_path / "d.npz", "--samples", 3, "--json")
    assert done.json()["samples"] == 3 and done.json()["data"].endswith("d.npz")
    assert cli("verify", artifact, "--against", model, "--gate", "cosine=2").code == 5
    assert cli("verify", tmp_path / "none.tflite", "--against", model).code == 2


def test_verify_without_a_manifest(cli: Cli, model: Path, artifact: Path, tmp_path: Path) -> None:
    artifact.with_name("small.tflite.manifest.json").unlink()
    assert cli("verify", artifact, "--against", model).code == 0
    artifact.with_name("small.tflite.manifest.json").write_text("{")
    assert cli("verify", artifact, "--against", model).code == 3
    other = artifact.rename(tmp_path / "small.bin")
    done = cli("verify", other, "--against", model)
    assert done.code == 2 and "--target" in done.err
    assert cli("verify", other, "--against", model, "--target", "tflite").code == 0


def test_verify_a_damaged_artifact(cli: Cli, model: Path, artifact: Path) -> None:
    artifact.write_bytes(artifact.read_bytes()[:100])
    done = cli("verify", artifact, "--against", model)
    assert done.code in (3, 5) and "Traceback" not in done.err


def test_compare_names_the_first_deviation(cli: Cli, model: Path, artifact: Path, tmp_path: Path) -> None:
    done = cli("compare", model, artifact)
    assert done.code == 0 and "no part deviates beyond rounding" in done.out
    found = cli("compare", spoiled(tmp_path / "wrong.onnx"), artifact, "--json").json()
    assert "conv" in found["first"]["nodes"] and found["first"]["local"] > 1e-3
    last = next(layer for layer in found["layers"] if layer["tensor"] == "z")
    assert not last["deviates"] and last["accumulated"]["relative"] > 1e-3


def test_inspect(cli: Cli, model: Path, artifact: Path, tmp_path: Path) -> None:
    found = cli("inspect", model, "--json").json()
    assert found["kind"] == "onnx" and found["nodes"] == 3 and found["parameters"] == 112
    assert found["operators"] == {"Add": 1, "Conv": 1, "Relu": 1}
    assert cli("inspect", artifact, "--json").json()["kind"] == "tflite"
    lines = [line.split() for line in cli("inspect", model).out.splitlines()]
    assert ["Conv", "1"] in lines and ["float32", "2", "112", "448", "bytes"] in lines
    lines = [line.split() for line in cli("inspect", artifact).out.splitlines()]
    assert ["CONV_2D", "1", "1"] in lines and ["x", "float32", "[-1,", "3,", "8,", "8]"] in lines
    assert cli("inspect", tmp_path / "nothing").code == 2
    (tmp_path / "bad.tflite").write_bytes(b"\x10\x00\x00\x00TFL3" + b"\xff" * 40)
    (tmp_path / "bad.onnx").write_bytes(b"\xff" * 40)
    assert cli("inspect", tmp_path / "bad.tflite").code == 3
    assert cli("inspect", tmp_path / "bad.onnx").code == 3


def test_bench(cli: Cli, model: Path, artifact: Path) -> None:
    found = cli("bench", artifact, "--runs", 3, "--json").json()["runs"]
    assert len(found) == 2 and all(r["median"] >= r["least"] > 0 for r in found)
    found = cli("bench", artifact, "--against", model, "--runs", 3, "--json").json()["runs"]
    assert found[0]["reference"] and found[1]["ratio"] > 0
    assert cli("bench", artifact, "--runs", 3, "--max-latency", 1e-9).code == 6
    assert "median ms" in cli("bench", artifact, "--runs", 2).out


def test_targets(cli: Cli) -> None:
    assert "tflite: devices cpu" in cli("targets").out
    (found,) = [t for t in cli("targets", "--json").json()["targets"] if t["name"] == "tflite"]
    assert found["schemes"][:2] == ["float32", "float16"]


@pytest.mark.slow
def test_conformance(cli: Cli) -> None:
    done = cli("conformance", "tflite", "--level", "nodes", "--case", "^test_relu$")
    assert done.code == 0, done.err
    assert cli("conformance", "toaster").code == 2


def test_version_and_help(cli: Cli) -> None:
    assert cli("--version").out.strip() == f"tapeout {tapeout.__version__}"
    for command in ("export", "explain", "verify", "compare", "inspect", "bench", "targets", "conformance"):
        done = cli(command, "--help")
        assert done.code == 0 and "Usage: tapeout" in done.out
    assert cli("expert").code == 2 and cli("export").code == 2
    error = json.loads(cli("export", "--json").out)["error"]
    assert error["kind"] == "usage" and error["code"] == 2
