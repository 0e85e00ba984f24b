"""The NPU's declaration is Vela's, and Vela's results and failures are told."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import tapeout
from tapeout.compiler.errors import FallbackError, UnsupportedError, UsageError, VendorToolError
from tapeout.compiler.ir.load import from_proto
from tapeout.compiler.support_table import support_table
from tapeout.compiler.target import target
from tapeout.targets.ethos_u import DEVICES, declaration, finish
from tapeout.targets.tflite.inspection import inspect
from tests.asset_samples import samples
from tests.assets import model_path, needs_assets
from tests.targets.ethos_u.cases import draw, place

try:
    finish.command()
    HERE = True
except VendorToolError:
    HERE = False
needs_vela = pytest.mark.skipif(not HERE, reason="Arm's Vela (the extra 'vela') is not installed")


def network(folder: Path, tail: str = "y = Softmax <axis = -1> (d)") -> tuple[Path, Path]:
    """A small network and data for it."""
    rng = np.random.default_rng(0)

    def data(name: str, *shape: int) -> str:
        values = ", ".join(f"{v:.5f}" for v in rng.standard_normal(shape).reshape(-1))
        return f"float[{','.join(map(str, shape))}] {name} = {{{values}}}"

    text = f"""<ir_version: 10, opset_import: ["" : 25]>
agraph (float[1,3,8,8] x) => (float[1,4] y)
<{data("w", 8, 3, 3, 3)}, {data("b", 8)}, {data("m", 4, 8)}, {data("c", 4)}>
{{ t = Conv <pads = [1,1,1,1]> (x, w, b) r = Relu (t) p = GlobalAveragePool (r) f = Flatten (p)
   d = Gemm <transB = 1> (f, m, c) {tail} }}"""
    path = folder / "net.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    np.savez(folder / "data.npz", x=rng.standard_normal((8, 3, 8, 8)).astype(np.float32))
    return path, folder / "data.npz"


@pytest.mark.parametrize(
    ("shape", "operator", "words"),
    [
        ("[4]", "Clip (r, low, high)", ("a kernel that fuses it", "right behind a convolution")),
        ("", "Sigmoid (r)", ("least rank of what is computed 0, at least 1", "give it a dimension of 1")),
    ],
    ids=["computed in real numbers by TFLite", "a scalar"],
)
def test_what_vela_leaves_to_the_host_is_refused(shape: str, operator: str, words: tuple[str, str]) -> None:
    """Found by the conformance kit, which hands what the rows take to Vela."""
    model = onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["" : 25]>
agraph (int8{shape} x) => (int8{shape} y)
<float s = {{0.00390625}}, int8 z = {{-128}}, float low = {{-1.0}}, float high = {{1.0}}>
{{ r = DequantizeLinear (x, s, z) [one] t = {operator} y = QuantizeLinear (t, s, z) }}""")
    (refusal,) = declaration("ethos-u55-128").accept(from_proto(model)).refused
    assert refusal.name == "one"
    assert all(w in str(refusal) for w in words), str(refusal)


def export(folder: Path, tail: str = "y = Softmax <axis = -1> (d)", **more: Any) -> tapeout.Export:
    path, data = network(folder, tail)
    return tapeout.export(
        path, "tflite", device="ethos-u55-128", quantize="int8", calibration=data, output=folder / "net.tflite", **more
    )  # fmt: skip


@needs_vela
def test_a_network_goes_to_the_npu(tmp_path: Path) -> None:
    made = export(tmp_path)
    facts = made.manifest["finished"]
    assert made.manifest["target"] == "ethos-u" and facts["placement"]["cpu"] == 0
    assert facts["cycles"]["total"] > 0 and facts["macs"] > 8 * 27 * 64
    assert made.report["proof"]["unproven"] and made.report["proof"]["proven"]
    (graph,) = inspect(made.artifact)["subgraphs"]
    assert [v["type"] for v in (*graph["inputs"], *graph["outputs"])] == ["int8", "int8"]
    assert set(made.manifest["quantization"]["interface"]) == {"x", "y"}
    content = made.artifact.read_bytes()
    again = export(tmp_path)
    assert again.artifact.read_bytes() == content, "the same input gives the same bytes"


@needs_vela
def test_what_the_npu_refuses_is_left_to_the_host_only_where_asked(tmp_path: Path) -> None:
    tail = "s = Sin (d) y = Softmax <axis = -1> (s)"
    with pytest.raises(UnsupportedError, match="Sin") as error:
        export(tmp_path, tail)
    assert "--fallback host" in (error.value.hint or "")
    made = export(tmp_path, tail, fallback="host")
    left = made.report["fallback"]
    assert any("Sin" in name for name in left["operators"]) and 0 < left["percent"] < 100
    assert made.manifest["finished"]["placement"]["cpu"] == len(left["operators"])
    with pytest.raises(FallbackError, match="at most 1%"):
        export(tmp_path, tail, fallback="host", max_fallback=1)
    with pytest.raises(UsageError, match="--fallback 'some'"):
        export(tmp_path, fallback="some")


def test_a_missing_tool_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finish.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(VendorToolError, match="not installed") as error:
        export(tmp_path)
    assert error.value.exit_code == 8 and "tapeout[vela]" in (error.value.hint or "")
    assert not (tmp_path / "net.tflite").exists()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("kill -FPE $$", "crashed \\(SIGFPE\\)"),
        ("echo 'no such network' >&2; exit 3", "failed \\(exit 3\\): no such network"),
        ("exit 136", "crashed \\(SIGFPE\\)"),
    ],
)
def test_a_crash_is_told(script: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "vela"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(finish, "command", lambda: str(tool))
    with pytest.raises(VendorToolError, match=message):
        export(tmp_path)
    assert not (tmp_path / "net.tflite").exists()


def test_the_page_is_up_to_date(bless: bool) -> None:
    place = Path(__file__).resolve().parents[3] / "docs" / "targets" / "ethos-u.md"
    page = support_table(declaration("ethos-u55-128"))
    if bless:
        place.write_text(page, encoding="utf-8")
    assert place.read_text(encoding="utf-8") == page, "run pytest --bless on this test"


def test_devices_and_options(tmp_path: Path) -> None:
    assert all(declaration(d).facts["macs"] == int(d.rsplit("-")[-1]) for d in DEVICES)
    assert target("ethos-u").extends == "tflite"
    with pytest.raises(UsageError, match="no option 'speed'"):
        finish._options({"speed": "9"})
    with pytest.raises(UsageError, match="ethos-u65-512"):
        tapeout.export(network(tmp_path)[0], device="ethos-u99")


@needs_vela
@pytest.mark.slow
def test_the_declaration_agrees_with_vela() -> None:
    assert differing(15, seed=5) == []


@needs_vela
@pytest.mark.slow
def test_the_declaration_agrees_with_vela_on_many() -> None:
    """Vela takes a second for each case: TAPEOUT_VELA_CASES=640 looks at many more."""
    count = int(os.environ.get("TAPEOUT_VELA_CASES", "60"))
    assert differing(count, seed=6, least=count * 3 // 4) == []


def differing(count: int, seed: int, least: int = 0) -> list[str]:
    """The cases that go elsewhere than declared; there are cases on both sides."""
    found, sides = [], [0, 0]
    for case in draw(count, seed):
        placed = place(case)
        if placed is None:
            continue
        sides[placed.compiled] += 1
        if placed.declared != placed.compiled:
            found.append(f"{case.text}: {placed.why}")
    assert min(sides) > 0 and sum(sides) >= least, sides
    return found


# Cycles of the publisher's own int8 files by the same tool on ethos-u55-128.
CYCLES = {
    "ic01_resnet8": 201747,
    "vww01_mobilenetv1": 220870,
    "kws01_dscnn": 89900,
    "sww01_wakeword": 59693,
    "ad01_autoencoder": 201184,
}


@needs_vela
@needs_assets
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CYCLES))
def test_tiny_models_are_as_fast_as_their_publishers(name: str, tmp_path: Path) -> None:
    path, calibration = model_path(name), tmp_path / "calib.npz"
    np.savez(calibration, **samples(name, 32, "calib"))
    made = tapeout.export(
        path, device="ethos-u55-128", quantize="int8", calibration=calibration, output=tmp_path / "out.tflite"
    )
    facts = made.manifest["finished"]
    assert facts["placement"]["cpu"] == 0, json.dumps(facts["placement"])
    assert facts["cycles"]["total"] <= CYCLES[name]
