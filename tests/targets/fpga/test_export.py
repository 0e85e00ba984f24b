"""`tapeout export --target fpga`: the folder, what is proven of it, and what is refused with what words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

import tapeout
from tapeout.compiler.errors import BudgetError, InvalidModelError, UnsupportedError, UsageError
from tests.assets import model_path, needs_assets
from tests.targets.fpga.networks import Network

needs_verilator = pytest.mark.skipif(shutil.which("verilator") is None, reason="verilator is not installed")


def saved(folder: Path, tail: bool = False) -> Path:
    net = Network((1, 3, 6, 6), 31)
    y = net.conv(net.input(), (3, 4), 3)
    y = net.rounded(net.node("Flatten", [y]), 0.2, -128) if tail else y
    y = net.rounded(net.node("Softmax", [net.dense(y, (64, 5), relu=False)]), 1 / 256, -128) if tail else y
    onnx.save(net.model(y), folder / "net.onnx")
    return folder / "net.onnx"


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_same_model_gives_the_same_folder(tmp_path: Path) -> None:
    model = saved(tmp_path)
    for name in ("a", "b"):
        made = tapeout.export(model, "fpga", output=tmp_path / name, verify=False)
    first, second = files(tmp_path / "a"), files(tmp_path / "b")
    assert first == second
    assert {"circuit.json", "report.json", "report.txt", "rtl/top.v"} <= first.keys()
    assert {p["name"] for p in made.manifest["artifact"]["parts"]} == first.keys()
    assert tapeout.inspect(tmp_path / "a")["device"] == "xc7z020"


def test_an_earlier_folder_is_replaced_and_another_is_not(tmp_path: Path) -> None:
    model = saved(tmp_path)
    (tmp_path / "out").mkdir()
    tapeout.export(model, "fpga", output=tmp_path / "out", verify=False)
    tapeout.export(model, "fpga", device="ecp5-85", output=tmp_path / "out", verify=False)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["device"] == "ecp5-85"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "work.txt").write_text("mine")
    with pytest.raises(UsageError, match="folder"):
        tapeout.export(model, "fpga", output=tmp_path / "mine", verify=False)


@pytest.mark.slow
@needs_verilator
def test_an_export_is_simulated(tmp_path: Path) -> None:
    model = saved(tmp_path)
    made = tapeout.export(model, "fpga", output=tmp_path / "out")
    assert made.report["proof"]["proven"] and not made.report["proof"]["unproven"]
    assert tapeout.verify(tmp_path / "out", model, samples=2).error is None
    memory = next(iter(sorted((tmp_path / "out" / "memories").glob("*weights.hex"))))
    text = memory.read_text()
    memory.write_text("".join("7f" * (len(line) // 2) + "\n" for line in text.split()))
    assert tapeout.verify(tmp_path / "out", model, samples=2, raising=False).error is not None


@pytest.mark.slow
@needs_verilator
def test_a_tail_is_left_to_the_host(tmp_path: Path) -> None:
    model = saved(tmp_path, tail=True)
    with pytest.raises(UnsupportedError, match="Softmax"):
        tapeout.export(model, "fpga", output=tmp_path / "out")
    made = tapeout.export(model, "fpga", output=tmp_path / "out", fallback="host")
    assert [n.split("'")[0] for n in made.report["fallback"]["reasons"]] == ["Softmax ", "QuantizeLinear "]
    assert (tmp_path / "out" / "part-00.fpga" / "rtl" / "top.v").is_file()
    assert not made.report["proof"]["unproven"]
    tapeout.export(model, "fpga", output=tmp_path / "out", fallback="host", verify=False)


def test_a_float_model_is_told_how_to_become_integers(tmp_path: Path) -> None:
    net = Network((1, 3, 6, 6), 1)
    y = net.node("Conv", ["x", net.constant(np.ones((2, 3, 3, 3), np.float32))])
    onnx.save(net.model(y), tmp_path / "float.onnx")
    with pytest.raises(UnsupportedError) as found:
        tapeout.export(tmp_path / "float.onnx", "fpga", output=tmp_path / "out")
    assert "Conv 'conv0': float32, must be int8" in found.value.message
    assert "--calibration" in (found.value.hint or "") and found.value.exit_code == 4


def test_free_sizes_are_refused_with_the_table(tmp_path: Path) -> None:
    net = Network(("N", 3, 6, 6), 1)  # type: ignore[arg-type]
    onnx.save(net.model(net.conv(net.input(), (3, 4), 3)), tmp_path / "free.onnx")
    with pytest.raises(UnsupportedError, match=r"'x': \[N, 3, 6, 6\]") as found:
        tapeout.export(tmp_path / "free.onnx", "fpga", output=tmp_path / "out")
    assert "--shape x=1,3,6,6" in (found.value.hint or "") and found.value.exit_code == 4
    tapeout.export(
        tmp_path / "free.onnx", "fpga", output=tmp_path / "out", shape={"x": [1, 3, 6, 6]}, verify=False
    )


def test_an_operator_without_integers_is_refused(tmp_path: Path) -> None:
    net = Network((1, 3, 6, 6), 2)
    y = net.rounded(net.node("LpNormalization", [net.conv(net.input(), (3, 4), 3)], axis=1))
    onnx.save(net.model(y), tmp_path / "odd.onnx")
    with pytest.raises(UnsupportedError, match="lpnormalization"):
        tapeout.export(tmp_path / "odd.onnx", "fpga", output=tmp_path / "out")


def test_what_does_not_fit_says_by_how_much(tmp_path: Path) -> None:
    """A product whose weights alone are more than the device's memories."""
    net = Network((1, 4096), 3)
    onnx.save(net.model(net.dense(net.input(), (4096, 1024), relu=False)), tmp_path / "large.onnx")
    with pytest.raises(BudgetError, match=r"memories of 18 kbit of 208 \(\d+\.\d times\): 'gemm4'") as found:
        tapeout.export(tmp_path / "large.onnx", "fpga", device="ecp5-85", output=tmp_path / "out")
    assert found.value.exit_code == 6 and not (tmp_path / "out").exists()


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    tapeout.export(saved(tmp_path), "fpga", output=tmp_path / "out", verify=False)
    place = tmp_path / "out" / "circuit.json"
    place.write_bytes(place.read_bytes()[:-400])
    with pytest.raises(InvalidModelError, match=r"circuit\.json"):
        tapeout.inspect(tmp_path / "out")


@pytest.mark.parametrize("scheme", ["int8", "int8-fixed"])
def test_a_float_model_is_quantized_on_the_way(tmp_path: Path, scheme: str) -> None:
    rng = np.random.default_rng(0)
    net = Network((1, 3, 8, 8), 4)
    y = net.node("Conv", ["x", net.constant(rng.standard_normal((8, 3, 3, 3)).astype(np.float32))])
    y = net.node("GlobalAveragePool", [net.node("Relu", [y])])
    onnx.save(net.model(y), tmp_path / "float.onnx")
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((8, 3, 8, 8)).astype(np.float32))
    tapeout.export(
        tmp_path / "float.onnx", "fpga", output=tmp_path / "out", quantize=scheme,
        calibration=tmp_path / "data.npz", verify=False,
    )  # fmt: skip
    said = json.loads((tmp_path / "out" / "report.json").read_text())["requantization"]
    assert said["powers_of_two"] == (8 if scheme == "int8-fixed" else 0)


@needs_assets
def test_the_refusal_of_a_real_model(tmp_path: Path) -> None:
    """The refusal of a real float model names its layers."""
    with pytest.raises(UnsupportedError, match="functional_1/conv2d"):
        tapeout.export(model_path("kws01_dscnn"), "fpga", output=tmp_path / "out")


@pytest.mark.slow
@needs_verilator
def test_bench_counts_cycles(tmp_path: Path) -> None:
    model = saved(tmp_path)
    tapeout.export(model, "fpga", output=tmp_path / "out", verify=False)
    (found,) = tapeout.bench(tmp_path / "out", against=model, runs=2)[1:]
    cycles = json.loads((tmp_path / "out" / "report.json").read_text())["predicted"]["interval_cycles"]
    assert 0 <= round(100e6 / found.rate) - cycles <= 20  # a few at the start of each row of windows
