"""Statistics that are measured once serve several targets, and what they make keeps the types of inputs and outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper as nh

import tapeout

pytest.importorskip("openvino", reason="the package 'openvino' is not installed")


def network() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    held = [
        nh.from_array((rng.normal(size=(16, 3, 3, 3)) / 5).astype(np.float32), "w1"),
        nh.from_array(rng.normal(size=16).astype(np.float32) / 9, "b1"),
        nh.from_array((rng.normal(size=(16, 16, 3, 3)) / 12).astype(np.float32), "w2"),
        nh.from_array((rng.normal(size=(16, 10)) / 4).astype(np.float32), "w3"),
    ]
    nodes = [
        h.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="first", pads=[1] * 4),
        h.make_node("Relu", ["c1"], ["r1"], name="relu"),
        h.make_node("Conv", ["r1", "w2"], ["c2"], name="second", pads=[1] * 4),
        h.make_node("Add", ["c2", "r1"], ["a"], name="residual"),
        h.make_node("GlobalAveragePool", ["a"], ["p"], name="pool"),
        h.make_node("Flatten", ["p"], ["f"], name="flatten"),
        h.make_node("MatMul", ["f", "w3"], ["y"], name="head"),
    ]
    x = h.make_tensor_value_info("x", T.FLOAT, [1, 3, 12, 12])
    y = h.make_tensor_value_info("y", T.FLOAT, [1, 10])
    return h.make_model(
        h.make_graph(nodes, "g", [x], [y], held), opset_imports=[h.make_opsetid("", 17)], ir_version=9
    )


def test_one_file_of_statistics_for_two_targets(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    onnx.save(network(), model)
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(24, 3, 12, 12)).astype(np.float32))
    tapeout.calibrate(model, tmp_path / "data.npz", target=["tflite", "openvino"], output=tmp_path / "s.json")
    for target, name in (("tflite", "m.tflite"), ("openvino", "m.xml")):
        done = tapeout.export(
            model, target, output=tmp_path / name, quantize="int8", calibration=tmp_path / "s.json"
        )
        (entry,) = done.report["verification"]["outputs"][-1:]
        assert entry["holds"] and entry["sqnr"] > 25, target
        assert done.manifest["quantization"]["macs"]["wider_than_8_bits"] < 0.05, target
    found = tapeout.inspect(tmp_path / "m.xml")
    ports = [(p["name"], p["type"], p["shape"]) for p in (*found["inputs"], *found["outputs"])]
    assert ports == [("x", "f32", [1, 3, 12, 12]), ("y", "f32", [1, 10])]
    assert {w["type"] for w in found["low_bit"]} == {"i8"} and not any(w["widened"] for w in found["low_bit"])
    products = [x for x in found["layers"] if x["kind"] in ("Convolution", "FullyConnected")]
    assert [p["precision"] for p in products] == ["u8"] * 3, "activations that are signed are slow"


def test_a_constant_before_what_is_computed_stays_real(tmp_path: Path) -> None:
    """The plugin would widen its codes."""
    rng = np.random.default_rng(2)
    held = [
        nh.from_array(rng.normal(size=(48, 32)).astype(np.float32), "a"),
        nh.from_array((rng.normal(size=(32, 32)) / 6).astype(np.float32), "w"),
    ]
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["u"], name="product"),
        h.make_node("MatMul", ["a", "u"], ["y"], name="left"),
    ]
    x, y = (h.make_tensor_value_info(n, T.FLOAT, [1, d, 32]) for n, d in (("x", 32), ("y", 48)))
    model = h.make_model(
        h.make_graph(nodes, "g", [x], [y], held), opset_imports=[h.make_opsetid("", 17)], ir_version=9
    )
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(16, 32, 32)).astype(np.float32))
    done = tapeout.export(
        model, "openvino", output=tmp_path / "m.xml", quantize="int8", calibration=tmp_path / "data.npz",
        options={"refine": "off"},
    )  # fmt: skip
    left = {n: entry["reason"] for entry in done.report["quantization"]["left"] for n in entry["nodes"]}
    assert left == {"left": "openvino needs operands that are both computed"}
