"""A plugin that extends a built-in target: narrower rows, and a compiler of its own behind emission."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

import tapeout
from tapeout.compiler.errors import FallbackError, UnsupportedError, VendorToolError
from tapeout.compiler.target import target
from tests.cli.conftest import Cli
from tests.passtext import parse
from tests.sdk.plugin import install

TOML = """
api = 1
name = "npu"
extends = "tflite"
[device.npu-1]
[[op.Relu]]
rank.X = {max = 2}
[[op.Add]]
"""
MODULE = '''
"""An NPU of which a compiler is run on the emitted file."""
import subprocess, sys
from pathlib import Path
from tapeout import sdk

declaration = sdk.declarations(Path(__file__).with_name("target.toml"))

def finish(artifact, model, request):
    done = subprocess.run([sys.executable, "-c", COMPILER, str(artifact)], capture_output=True, text=True)
    if done.returncode:
        raise sdk.VendorToolError(f"npucc failed: {done.stderr.strip().splitlines()[-1]}")
    hosted = [sdk.source_name(n) for n in model.graph if isinstance(
        declaration(request.device).match(n, model.functions), sdk.Refusal)]
    made = artifact.read_bytes() + done.stdout.encode()
    return sdk.Finished(made, {"tool": "npucc 1", "placement": {"npu": 2, "cpu": len(hosted)}}, hosted, "compiled")

COMPILER = "import sys; assert open(sys.argv[1], 'rb').read(8)[4:] == b'TFL3'; print('NPU')"
TARGET = sdk.extension(
    "tflite", name="npu", suffix=".tflite", schemes=("float32",), devices=("npu-1",), declaration=declaration,
    finish=finish,
)
'''
TAKEN = "agraph (float[2,3] x) => (float[2,3] y) { [a] c = Add (x, x) [r] y = Relu (c) }"
PART = "agraph (float[2,3] x) => (float[2,3] y) { [a] c = Add (x, x) [s] d = Sin (c) [r] y = Relu (d) }"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in [m for m in sys.modules if m.startswith("npu_target")]:
        del sys.modules[name]


def plugin(site: Path, module: str = MODULE) -> None:
    install(site, name="npu", module=module, toml=TOML)
    importlib.invalidate_caches()


def test_narrowed_emitted_and_finished(site: Path, tmp_path: Path) -> None:
    plugin(site)
    made = tapeout.export(parse(TAKEN), "tflite", device="npu-1", output=tmp_path / "m.tflite")
    assert made.manifest["target"] == "npu" and made.artifact.read_bytes().endswith(b"NPU\n")
    assert made.manifest["finished"]["tool"] == "npucc 1"
    assert made.report["verification"]["holds"] and made.report["proof"]["unproven"], "the CPU has run it"
    found = tapeout.explain(parse(PART), "tflite", device="npu-1")
    assert found.coverage().startswith("2 of 3 nodes on npu, ")
    with pytest.raises(UnsupportedError, match="npu has no kernel for Sin"):
        tapeout.export(parse(PART), "npu", output=tmp_path / "p.tflite")
    left = tapeout.export(parse(PART), "npu", output=tmp_path / "p.tflite", fallback="host")
    assert left.report["coverage"].endswith("; 1 on the CPU: Sin 's'")
    with pytest.raises(FallbackError):
        tapeout.export(parse(PART), "npu", output=tmp_path / "q.tflite", fallback="host", max_fallback=10)
    wide = PART.replace("float[2,3]", "float[2,3,4]")
    assert [str(r.refusal) for r in tapeout.explain(parse(wide), "npu").refused][-1].startswith(
        "Relu 'r': rank of X 3, at most 2 on npu"
    )


def test_a_compiler_that_fails(site: Path, tmp_path: Path) -> None:
    plugin(site, MODULE.replace("b'TFL3'", "b'ELF'"))
    with pytest.raises(VendorToolError, match=r"npu' of package 'npu-target'.*npucc failed: AssertionError"):
        tapeout.export(parse(TAKEN), "npu", output=tmp_path / "m.tflite")
    assert [p.name for p in tmp_path.iterdir()] == ["site"]


def test_the_command_line_lists_what_does_not_load(site: Path, cli: Cli, tmp_path: Path) -> None:
    plugin(site, MODULE + "\nraise OSError('no licence')")
    found = {t["name"]: t for t in cli("targets", "--json").json()["targets"]}
    assert "no licence" in found["npu"]["error"] and found["tflite"]["devices"] == ["cpu"]
    onnx.save(parse(TAKEN), tmp_path / "m.onnx")
    done = cli("export", tmp_path / "m.onnx", "--target", "npu", "--json")
    assert done.code == 8 and json.loads(done.out)["error"]["kind"] == "vendor_tool"
    assert cli("export", tmp_path / "m.onnx", "-o", tmp_path / "m.tflite").code == 0
    assert target("tflite").name == "tflite"
