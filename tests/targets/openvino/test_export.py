"""Exports for OpenVINO: their files, names, proof, and what is said of bad input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper as h
from onnx import numpy_helper as nh

import tapeout
from tapeout.compiler.errors import AccuracyError, UnsupportedError, UsageError, VendorToolError
from tapeout.targets.openvino import TARGET
from tapeout.targets.openvino.runtime import core, openvino

SIZE: Any = "N"


def network(batch: Any = SIZE) -> onnx.ModelProto:
    rng = np.random.default_rng(2)
    weights = {"w": (16, 3, 3, 3), "b": (16,), "m": (16, 1100)}
    nodes = [
        h.make_node("Conv", ["image", "w", "b"], ["c"], name="stem/conv", pads=[1] * 4),
        h.make_node("Relu", ["c"], ["r"], name="stem/relu"),
        h.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        h.make_node("Flatten", ["p"], ["f"], name="flat"),
        h.make_node("MatMul", ["f", "m"], ["scores"], name="head"),
    ]
    graph = h.make_graph(
        nodes, "net",
        [h.make_tensor_value_info("image", 1, [batch, 3, 8, 8])],
        [h.make_tensor_value_info("scores", 1, [batch, 1100]), h.make_tensor_value_info("r", 1, [batch, 16, 8, 8])],
        [nh.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in weights.items()],
    )  # fmt: skip
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10)
    h.set_model_props(model, {"author": "someone", "labels": "a,b"})
    return model


needs_openvino = pytest.mark.skipif(
    not __import__("importlib").util.find_spec("openvino"), reason="the package 'openvino' is not installed"
)


@needs_openvino
def test_two_files_with_the_source_s_names_and_metadata(tmp_path: Path) -> None:
    made = tapeout.export(network(), "openvino", output=tmp_path / "net.xml")
    found = {p.name: p for p in made.outputs}
    assert sorted(found) == ["net.bin", "net.xml", "net.xml.manifest.json", "net.xml.report.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(found)
    (part,) = made.manifest["artifact"]["parts"]
    assert part["name"] == "net.bin" and part["bytes"] == found["net.bin"].stat().st_size
    assert made.report["proof"] == {"proven": made.report["proof"]["proven"], "unproven": False}
    model = core().read_model(tmp_path / "net.xml")
    assert [p.get_names() for p in model.inputs] == [{"image"}]
    assert [p.get_names() for p in model.outputs] == [{"scores"}, {"r"}]
    assert {"stem/conv", "pool"} <= {op.get_friendly_name() for op in model.get_ops()}
    assert model.get_rt_info(["framework", "author"]).astype(str) == "someone"
    assert "tapeout" not in (tmp_path / "net.xml").read_text()


@needs_openvino
def test_the_same_bytes_again(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tapeout.export(network(), "openvino", output=tmp_path / f"{name}.xml", verify=False)
    for suffix in (".xml", ".bin"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@needs_openvino
def test_half_the_weights_bytes(tmp_path: Path) -> None:
    sizes = {}
    for scheme in ("float32", "float16"):
        made = tapeout.export(network(), "openvino", output=tmp_path / "n.xml", quantize=scheme)
        sizes[scheme] = made.manifest["artifact"]["parts"][0]["bytes"]
        assert made.report["verification"]["holds"]
    assert sizes["float16"] < 0.55 * sizes["float32"]


@needs_openvino
def test_an_export_that_fails_leaves_neither_file(tmp_path: Path) -> None:
    with pytest.raises(AccuracyError):
        tapeout.export(network(), "openvino", output=tmp_path / "n.xml", gates={"sqnr": 1e9})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(AccuracyError):
        tapeout.export(
            network(), "openvino", output=tmp_path / "n.xml", gates={"sqnr": 1e9}, keep_rejected=True
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["n.bin.rejected", "n.xml.rejected"]


@needs_openvino
@pytest.mark.parametrize("device", ["gpu", "npu"])
def test_the_cpu_plugin_is_no_proof_for_another_device(tmp_path: Path, device: str) -> None:
    made = tapeout.export(network(1), "openvino", device=device, output=tmp_path / "n.xml")
    assert made.report["verification"]["holds"] and made.report["proof"]["unproven"]
    with pytest.raises(AccuracyError, match="on cpu only: it is unproven"):
        tapeout.export(network(1), "openvino", device=device, output=tmp_path / "n.xml", require_proof=True)


def test_the_npu_wants_fixed_sizes(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="npu needs static shapes; state the sizes with --shape") as e:
        tapeout.export(network(), "openvino", device="npu", output=tmp_path / "n.xml")
    assert "--shape image=" in (e.value.hint or "")
    assert list(tmp_path.iterdir()) == []


@needs_openvino
def test_the_npu_takes_sizes_that_are_stated(tmp_path: Path) -> None:
    made = tapeout.export(
        network(), "openvino", device="npu", output=tmp_path / "n.xml", shape={"image": (2, 3, 8, 8)}
    )
    assert list(core().read_model(made.artifact).inputs[0].get_shape()) == [2, 3, 8, 8]


def test_the_output_is_the_graph_not_the_weights(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"-o .*n\.xml") as e:
        tapeout.export(network(), "openvino", output=tmp_path / "n.bin")
    assert e.value.exit_code == 2


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    core.cache_clear()
    with pytest.raises(VendorToolError, match="needs the package 'openvino'") as e:
        openvino()
    assert e.value.hint == "pip install 'tapeout[openvino]'"
    with pytest.raises(VendorToolError):
        tapeout.export(network(), "openvino", output=tmp_path / "n.xml")
    assert list(tmp_path.iterdir()) == []
    core.cache_clear()


def test_every_row_is_lowered_by_the_reader_or_as_weights() -> None:
    for device in TARGET.devices:
        rows = [row for found in TARGET.declaration(device).rows.values() for row in found]
        assert {row.lower for row in rows} <= {"ONNX", "WEIGHTS"}


@needs_openvino
def test_files_of_other_tools_are_verified_and_compared(tmp_path: Path) -> None:
    source = tmp_path / "net.onnx"
    source.write_bytes(network(2).SerializeToString())
    ours = tapeout.export(source, "openvino", output=tmp_path / "ours.xml", verify=False)
    model = core().read_model(ours.artifact)
    for port in (*model.inputs, *model.outputs):
        port.set_names({f"their_{sorted(port.get_names())[0]}"})
    openvino().save_model(model, tmp_path / "theirs.xml", compress_to_fp16=False)
    verified = tapeout.verify(tmp_path / "theirs.xml", source)
    assert verified.error is None and len(verified.verification.entries) == 2
    layers = tapeout.compare(source, ours.artifact).layers
    assert {"c", "p", "scores"} <= {layer.tensor for layer in layers}
