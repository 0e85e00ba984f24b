"""The C99 sample: a target of its own package on the SDK alone, held by the kit and on real models."""

from __future__ import annotations

import ast
import importlib
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tapeout
from tapeout.compiler.conformance import graphs
from tapeout.compiler.conformance.levels import Choice, run_kit
from tapeout.compiler.conformance.running import run_case
from tapeout.compiler.support_table import support_table
from tapeout.compiler.target import Request, target
from tests.asset_samples import samples
from tests.assets import model_path, needs_assets
from tests.cli.conftest import small_model

SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "c99"
PAGE = SAMPLE.parents[1] / "docs" / "targets" / "c99.md"
SOURCES = sorted(p for p in (SAMPLE / "src" / "tapeout_c99").iterdir() if p.suffix in (".py", ".c"))
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
ARM = all(map(shutil.which, ("arm-none-eabi-gcc", "qemu-system-arm")))
MODELS = {"ad01_autoencoder": (1, 640), "kws01_dscnn": (1, 49, 10, 1), "ic01_resnet8": (1, 32, 32, 3)}


def test_it_is_small_and_imports_the_sdk_alone() -> None:
    assert sum(1 for p in SOURCES for line in p.read_text().splitlines() if line.strip()) <= 400
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())) if path.suffix == ".py" else ():
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "tapeout":
                assert node.module == "tapeout.sdk" or [a.name for a in node.names] == ["sdk"], path


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 200), st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_what_lives_at_the_same_time_lies_apart(tensors: list[tuple[int, int, int]]) -> None:
    sys.path.insert(0, str(SAMPLE / "src"))
    emit = importlib.import_module("tapeout_c99.emit")
    sys.path.remove(str(SAMPLE / "src"))
    lives = {}
    for size, a, b in tensors:
        value = ir.Value(name="t", shape=ir.Shape((size,)), type=ir.TensorType(ir.DataType.INT8))
        lives[value] = min(a, b), max(a, b)
    offsets, arena = emit.plan(lives)
    placed = [(offsets[v], offsets[v] + v.shape.numpy()[0], *life) for v, life in lives.items()]
    for i, (start, end, first, last) in enumerate(placed):
        assert start >= 0 and end <= arena
        for other, stop, begin, until in placed[:i]:
            assert stop <= start or end <= other or until < first or last < begin
    peak = max((sum(e - s for s, e, f, t in placed if f <= step <= t) for step in range(10)), default=0)
    assert peak <= arena <= 4 * len(placed) + sum(e - s for s, e, _, _ in placed)


@needs_gcc
@pytest.mark.slow
def test_the_kit(tmp_path: Path) -> None:
    levels = ("load", "generated", "refused", "graphs", "damaged")
    report = run_kit(str(SAMPLE), Choice(levels, count=60, keep=tmp_path))
    assert report.ok, report.text()
    assert report.levels()["generated"]["pass"] == 60 and report.levels()["refused"]["refused"] >= 15


@needs_gcc
def test_tensors_on_top_of_each_other_are_seen_by_the_kit(monkeypatch: pytest.MonkeyPatch) -> None:
    """One kernel at a time shows nothing of the arena: random graphs in integers do."""
    found = target(str(SAMPLE))
    known = frozenset({"convolution Conv", "product MatMul", "transposition Transpose"})
    made = [graphs.graph(number, "int8", "host", known=known) for number in range(40)]
    cases = [m[0] for m in made if m is not None and m[0].origin.count("Conv") > 1][:3]
    assert len(cases) == 3 and all(run_case(case, found)[0].status == "pass" for case in cases)
    emit = sys.modules["tapeout_c99.emit"]
    plan = emit.plan
    monkeypatch.setattr(emit, "plan", lambda lives: (dict.fromkeys(lives, 0), plan(lives)[1]))
    assert "wrong" in {run_case(case, found)[0].status for case in cases}


@needs_gcc
@needs_assets
@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_real_models_are_proven(name: str, tmp_path: Path) -> None:
    data = samples(name, 16, "calib")
    np.savez(tmp_path / "calib.npz", **data)
    made = tapeout.export(
        model_path(name), str(SAMPLE), quantize="int8", shape={next(iter(data)): MODELS[name]},
        calibration=tmp_path / "calib.npz", output=tmp_path / "model.c",
        device="cortex-m" if ARM and name == "kws01_dscnn" else "host",
    )  # fmt: skip
    assert "gcc" in str(made.report)
    assert "model_arena" in made.artifact.with_suffix(".h").read_text()


@needs_gcc
def test_artifacts_are_verified_and_compared(tmp_path: Path) -> None:
    """With their manifest layer by layer; without it by what the runner says of inputs and outputs."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((8, 3, 8, 8)).astype(np.float32))
    onnx.save(small_model(), tmp_path / "small.onnx")
    model, path, data = tmp_path / "small.onnx", tmp_path / "small.c", tmp_path / "data.npz"
    tapeout.export(
        model, str(SAMPLE), quantize="int8", shape={"x": (1, 3, 8, 8)}, calibration=data, output=path
    )
    assert tapeout.verify(path, model, target=str(SAMPLE), data=data).error is None
    layers = {f.tensor: f for f in tapeout.compare(model, path, target=str(SAMPLE), data=data).layers}
    assert set(layers) >= {"y", "z"}
    # Two roundings to 255 steps, and weights rounded to as many.
    assert all(f.local is not None and f.local < 0.02 for f in layers.values())
    path.with_name("small.c.manifest.json").unlink()
    verified = tapeout.verify(path, model, target=str(SAMPLE), data=data, gates={"sqnr": 35})
    assert verified.error is None and len(verified.verification.entries) == 2
    assert {f.tensor for f in tapeout.compare(model, path, target=str(SAMPLE), data=data).layers} >= {
        "y",
        "z",
    }


def test_the_support_page_is_what_the_rows_say(bless: bool) -> None:
    found = target(str(SAMPLE))
    page = support_table(found.declaration("host"), found.passes(Request("int8", "host")))
    if bless:
        PAGE.write_text(page, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page, "run pytest --bless on this test"
