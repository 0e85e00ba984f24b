"""tapeout export: the main road, its files, its JSON, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import tapeout
from tests.cli.conftest import Cli, small_model


def test_the_main_road(cli: Cli, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.tflite"
    done = cli("export", model, "--target", "tflite", "-o", out)
    assert done.code == 0, done.err
    assert done.out == ""
    assert "small.onnx: 3 nodes" in done.err and "verified on LiteRT" in done.err
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "out.tflite", "out.tflite.manifest.json", "out.tflite.report.json", "small.onnx",
    ]  # fmt: skip
    manifest = json.loads((tmp_path / "out.tflite.manifest.json").read_text())
    assert manifest["artifact"]["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert manifest["artifact"]["bytes"] == out.stat().st_size
    assert manifest["inputs"] == [
        {
            "name": "small.onnx",
            "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
            "bytes": model.stat().st_size,
        }
    ]
    report = json.loads((tmp_path / "out.tflite.report.json").read_text())
    assert report["verification"]["holds"] and len(report["verification"]["proven"]) == 2
    assert {e["output"] for e in report["verification"]["outputs"]} == {"y", "z"}


def test_the_same_input_gives_the_same_bytes(cli: Cli, model: Path, tmp_path: Path) -> None:
    made = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        assert cli("export", model, "-o", folder / "m.tflite", "--no-verify").code == 0
        made.append([(folder / f"m.tflite{s}").read_bytes() for s in ("", ".manifest.json")])
    assert made[0] == made[1]


def test_json_is_one_object(cli: Cli, model: Path, tmp_path: Path) -> None:
    done = cli("export", model, "-o", tmp_path / "m.tflite", "--json")
    found = done.json()
    assert found["schema"] == "tapeout.export/1"
    assert found["manifest"] == json.loads((tmp_path / "m.tflite.manifest.json").read_text())
    assert found["report"]["proof"]["unproven"] is False


def test_dry_run_writes_nothing(cli: Cli, model: Path, tmp_path: Path) -> None:
    done = cli("export", model, "-o", tmp_path / "m.tflite", "--dry-run", "--json")
    assert done.code == 0
    assert [Path(p).name for p in done.json()["outputs"]] == [
        "m.tflite", "m.tflite.report.json", "m.tflite.manifest.json",
    ]  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["small.onnx"]


def test_no_verify_says_that_it_is_unproven(cli: Cli, model: Path, tmp_path: Path) -> None:
    done = cli("export", model, "-o", tmp_path / "m.tflite", "--no-verify")
    assert done.code == 0 and "unproven" in done.err


def test_depfile(cli: Cli, model: Path, tmp_path: Path) -> None:
    assert cli("export", model, "-o", tmp_path / "m.tflite", "--depfile", tmp_path / "m.d").code == 0
    text = (tmp_path / "m.d").read_text()
    assert text.startswith(f"{tmp_path / 'm.tflite'}:") and str(model) in text


def test_shape_layout_and_outputs(cli: Cli, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.tflite"
    done = cli("export", model, "-o", out, "--shape", "x=1,3,8,8", "--layout", "x=NHWC", "--layout", "y=NHWC",
               "--outputs", "y")  # fmt: skip
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "m.tflite.manifest.json").read_text())["interface"]
    assert found["inputs"] == [{"name": "x", "dtype": "float32", "shape": [1, 8, 8, 3]}]
    assert found["outputs"] == [{"name": "y", "dtype": "float32", "shape": [1, 8, 8, 4]}]
    assert cli("verify", out, "--against", model).code == 0
    assert cli("compare", model, out).code == 0


def test_real_data_is_checked_on(cli: Cli, model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    np.savez(tmp_path / "d.npz", x=rng.standard_normal((5, 3, 8, 8)).astype(np.float32), labels=np.arange(5))
    done = cli("export", model, "-o", tmp_path / "m.tflite", "--data", tmp_path / "d.npz", "--json")
    assert done.json()["report"]["verification"]["samples"] == 5


def test_float16(cli: Cli, tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    wide (float[N,64] x) => (float[N,128] y) { y = MatMul (x, w) }"""
    model = parser.parse_model(text)
    weight = np.random.default_rng(1).standard_normal((64, 128)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    onnx.save(model, tmp_path / "wide.onnx")
    done = cli(
        "export", tmp_path / "wide.onnx", "-o", tmp_path / "m.tflite", "--quantize", "float16", "--json"
    )
    assert done.code == 0, done.err
    assert done.json()["manifest"]["artifact"]["bytes"] < 0.7 * weight.nbytes
    errors = [e["relative"] for e in done.json()["report"]["verification"]["outputs"]]
    assert 1e-5 < max(errors) < 1e-2


def test_shape_keeps_and_names_free_sizes(cli: Cli, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "named.tflite"
    done = cli("export", model, "-o", out, "--shape", "x=batch,3,?,8", "--json")
    assert done.code == 0, done.err
    manifest = done.json()["manifest"]
    assert manifest["interface"]["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["batch", 3, 8, 8]}]
    assert manifest["interface"]["outputs"][0]["shape"] == ["batch", 4, 8, 8]
    assert manifest["wish"]["shape"] == {"x": ["batch", 3, "?", 8]}
    assert cli("verify", out, "--against", model).code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--target", "toaster"], 2, "no target 'toaster'"),
        (["--device", "abacus"], 2, "no device 'abacus'"),
        (["--quantize", "int3"], 2, "does not offer 'int3'"),
        (["--shape", "nix=1,3,8,8"], 2, "nix"),
        (["--shape", "x=1,3,8"], 2, "x"),
        (["--shape", "x=1,5,8,8"], 2, "x"),
        (["--shape", "x=1,3,2*k,8"], 2, "'2*k'"),
        (["--shape", "x=1,3,,8"], 2, "expected sizes"),
        (["--shape", "x=N,C,8,8"], 2, "is fixed"),
        (["--shape", "x"], 2, "expected NAME=1,3,224,224"),
        (["--layout", "x=NWHC"], 2, "expected NCHW or NHWC"),
        (["--layout", "w=NHWC"], 2, "no input or output"),
        (["--outputs", "nix"], 2, "nix"),
        (["--max-size", "10"], 6, "bytes"),
        (["--max-size", "big"], 2, "--max-size"),
        (["--data", "missing.npz"], 2, "does not exist"),
        (["--gate", "sqnr=900"], 5, "at least 900"),
        (["--gate", "speed=9"], 2, "no metric 'speed'"),
        (["--jobs", "0"], 2, "--jobs"),
        (["--colour", "red"], 2, "--colour"),
    ],
)
def test_wrong_options(
    cli: Cli, model: Path, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    out = tmp_path / "m.tflite"
    out.write_bytes(b"what stood before")
    done = cli("export", model, "-o", out, "--json", *arguments)
    assert (done.code, done.json()["error"]["code"]) == (code, code), done.err
    assert words in done.json()["error"]["message"]
    assert out.read_bytes() == b"what stood before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.tflite", "small.onnx"]


def test_what_the_target_lacks_is_refused_with_every_reason(cli: Cli, tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    agraph (float[4,4] x) => (float y, float[4,4] z) { [one] y = Det (x) [two] t = Det (x) z = Add (x, t) }"""
    path = tmp_path / "m.onnx"
    onnx.save(parser.parse_model(text), path)
    done = cli("export", path, "-o", tmp_path / "m.tflite", "--json")
    assert done.code == 4
    assert done.json()["error"]["kind"] == "unsupported"
    assert {"one", "two"} & set(done.json()["error"]["nodes"])
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_bad_models(cli: Cli, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.tflite"
    out.write_bytes(b"before")
    data = model.read_bytes()
    for content in (b"", b"\x00", b"hello", data[: len(data) // 2], data[:-3]):
        path = tmp_path / "bad.onnx"
        path.write_bytes(content)
        done = cli("export", path, "-o", out)
        assert done.code == 3, (content[:10], done.err)
        assert len(done.err.splitlines()) <= 3
    assert cli("export", tmp_path / "none.onnx", "-o", out).code == 2
    assert cli("export", tmp_path, "-o", out).code == 2
    assert out.read_bytes() == b"before"


def test_the_model_is_never_the_output(cli: Cli, model: Path) -> None:
    before = model.read_bytes()
    assert cli("export", model, "-o", model).code == 2
    assert cli("export", model, "-o", model.with_name("m.tflite"), "--depfile", model).code == 2
    assert model.read_bytes() == before


def test_in_python_a_given_model_is_not_changed(tmp_path: Path) -> None:
    model = small_model()
    before = model.SerializeToString()
    done = tapeout.export(model, "tflite", output=tmp_path / "m.tflite", layout={"x": "NHWC"})
    assert done.artifact == tmp_path / "m.tflite" and done.artifact.exists()
    assert model.SerializeToString() == before
    with pytest.raises(tapeout.TapeoutError) as caught:
        tapeout.export(model, "tflite", output=tmp_path)
    assert caught.value.exit_code == 2


def test_help_is_fast_and_imports_little() -> None:
    code = (
        "import sys, tapeout.__main__ as m; m.main(['--help']);"
        "print([n for n in ('onnx', 'numpy', 'rich') if n in sys.modules])"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < 2
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_process_as_users_run_it(model: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tapeout",
        "export",
        str(model),
        "-o",
        str(tmp_path / "m.tflite"),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["manifest"]["target"] == "tflite"
    assert "INFO" not in done.stderr  # native libraries keep quiet
    done = subprocess.run([*command[:-1], "--shape", "x=9"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("error: ")
