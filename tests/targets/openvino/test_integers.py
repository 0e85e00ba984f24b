"""Static int8: what the plugin executes in integers, and that nothing is rounded twice or too early."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper as h
from onnx import numpy_helper as nh

pytest.importorskip("openvino", reason="the package 'openvino' is not installed")

import tapeout
from tapeout import road
from tapeout.calibrating import Samples, with_calibration
from tapeout.compiler.cluster_check import check_clusters
from tapeout.compiler.ir.load import from_text
from tapeout.compiler.ir.save import to_proto
from tapeout.compiler.target import write
from tapeout.targets.openvino.inspection import inspect
from tapeout.targets.openvino.moved import carry
from tapeout.targets.openvino.runtime import core

RNG = np.random.default_rng(7)


def residual() -> onnx.ModelProto:
    """Convolutions around a shortcut, and a pool between products."""
    sizes = {"w1": (16, 3, 3, 3), "w2": (16, 16, 3, 3), "w3": (16, 16, 3, 3)}
    weights = {
        n: (RNG.standard_normal(s) / np.sqrt(np.prod(s[1:]))).astype(np.float32) for n, s in sizes.items()
    }
    weights["b"] = (RNG.standard_normal(16) / 4).astype(np.float32)
    nodes = [
        h.make_node("Conv", ["x", "w1", "b"], ["c1"], name="c1", pads=[1] * 4, strides=[2, 2]),
        h.make_node("Relu", ["c1"], ["r1"], name="r1"),
        h.make_node("Conv", ["r1", "w2", "b"], ["c2"], name="c2", pads=[1] * 4),
        h.make_node("Add", ["c2", "r1"], ["s"], name="sum"),
        h.make_node("Relu", ["s"], ["r2"], name="r2"),
        h.make_node("MaxPool", ["r2"], ["p"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        h.make_node("Conv", ["p", "w3", "b"], ["c3"], name="c3", pads=[1] * 4),
        h.make_node("Relu", ["c3"], ["y"], name="r3"),
    ]
    graph = h.make_graph(
        nodes, "net",
        [h.make_tensor_value_info("x", 1, [1, 3, 16, 16])],
        [h.make_tensor_value_info("y", 1, [1, 16, 4, 4])],
        [nh.from_array(a, n) for n, a in weights.items()],
    )  # fmt: skip
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[tapeout.Export, Path]:
    folder = tmp_path_factory.mktemp("int8")
    np.savez(folder / "data.npz", x=RNG.standard_normal((24, 3, 16, 16)).astype(np.float32))
    made = tapeout.export(
        residual(), "openvino", output=folder / "n.xml", quantize="int8", calibration=folder / "data.npz",
        options={"refine": "off"},
    )  # fmt: skip
    return made, folder


def test_the_device_is_as_near_to_the_source_as_the_graph(exported: tuple[tapeout.Export, Path]) -> None:
    (output,) = exported[0].report["verification"]["outputs"]
    assert output["holds"] and output["sqnr"] > 25 and output["ratio"] < 1.05


def test_inputs_and_outputs_stay_as_they_were(exported: tuple[tapeout.Export, Path]) -> None:
    model = core().read_model(exported[0].artifact)
    kinds = [p.get_element_type().get_type_name() for p in (*model.inputs, *model.outputs)]
    assert kinds == ["f32", "f32"]


def test_products_sums_and_pools_are_one_chain_of_bytes(exported: tuple[tapeout.Export, Path]) -> None:
    layers = inspect(exported[0].artifact)["layers"]
    convolutions = [layer for layer in layers if layer["kind"] == "Convolution"]
    assert [c["precision"] for c in convolutions] == ["u8", "u8", "u8"]
    assert convolutions[0]["output"] == "u8", "rounded in a kernel of its own"
    (total,) = [layer for layer in layers if "sum" in layer["sources"]]
    assert total["output"] == "u8" and "r2_quantize" in " ".join(total["sources"]), (
        "rounded after it is stored"
    )
    assert [layer["precision"] for layer in layers if layer["kind"] == "Pooling"] == ["u8"]


def test_each_cluster_is_within_a_quantum(exported: tuple[tapeout.Export, Path], tmp_path: Path) -> None:
    chosen, request = road.choose("openvino", None, "int8", {"refine": "off"})
    prepared = road.prepare(residual(), road.Wish())
    samples = Samples(exported[1] / "data.npz", None, None, 1)
    request = with_calibration(request, samples, prepared)
    road.legalize(prepared.model, chosen, request)
    write(chosen, prepared.model, tmp_path / "n.xml", request)
    (runner,) = chosen.runners(tmp_path / "n.xml", request)
    assert request.calibration is not None
    feeds = list(itertools.islice(request.calibration.feeds(), 2))
    found = check_clusters(prepared.model, chosen, request, runner, feeds)
    assert {d.name for d in found} >= {"c1", "sum"}
    assert [d.text() for d in found if not d.holds] == []
    assert sum(d.elements for d in found) > 1000


TEXT = """<ir_version: 10, opset_import: ["" : 25]>
g (float[2,3] x) => (float[3,2] y) <float s = {0.1}, float t = {0.2}, int8 z = {3}>
{
  q = QuantizeLinear (x, s, z)
  d = DequantizeLinear (q, s, z)
  m = Transpose <perm = [1, 0]> (d)
  n = QuantizeLinear (m, SCALE, z)
  e = DequantizeLinear (n, SCALE, z)
  y = Relu (e)
}"""


@pytest.mark.parametrize(("scale", "left"), [("s", 4), ("t", 6)])
def test_what_is_moved_is_not_rounded_again_at_the_same_scale(scale: str, left: int) -> None:
    proto = to_proto(from_text(TEXT.replace("SCALE", scale)))
    carry(proto.graph)
    onnx.checker.check_model(proto)
    assert len(proto.graph.node) == left


def executed_in(model: onnx.ModelProto, shape: tuple[int, ...], kind: str, folder: Path) -> set[str]:
    """The precisions in which the plugin executes the layers of a kind, in a proven int8 export of `model` whose
    inputs, of `shape`, are not centred on zero."""
    given = {v.name: (RNG.standard_normal((16, *shape)) + 0.7).astype(np.float32) for v in model.graph.input}
    np.savez(folder / "data.npz", **given)
    made = tapeout.export(
        model,
        "openvino",
        output=folder / "n.xml",
        quantize="int8",
        calibration=folder / "data.npz",
        options={"refine": "off"},
    )
    found = {layer["precision"] for layer in inspect(made.artifact)["layers"] if layer["kind"] == kind}
    assert found, f"no layer is a {kind}"
    return found


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_product_behind_joined_tensors_is_in_integers(axis: int, tmp_path: Path) -> None:
    weight = RNG.standard_normal((4 if axis < 2 else 8, 64)).astype(np.float32)
    graph = h.make_graph(
        [
            h.make_node("Neg", ["a"], ["p"]),
            h.make_node("Concat", ["p", "b"], ["c"], axis=axis),
            h.make_node("MatMul", ["c", "w"], ["y"]),
        ],
        "net", [h.make_tensor_value_info(n, 1, [2, 3, 4]) for n in "ab"], [h.make_tensor_value_info("y", 1, None)],
        [nh.from_array(weight, "w")],
    )  # fmt: skip
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10)
    assert executed_in(model, (2, 3, 4), "FullyConnected", tmp_path) <= {"u8", "i8"}


def test_a_convolution_behind_space_to_depth_is_in_integers(tmp_path: Path) -> None:
    weight = (RNG.standard_normal((16, 12, 3, 3)) / 10).astype(np.float32)
    graph = h.make_graph(
        [
            h.make_node("SpaceToDepth", ["x"], ["s"], blocksize=2),
            h.make_node("Conv", ["s", "w"], ["y"], pads=[1] * 4),
        ],
        "net", [h.make_tensor_value_info("x", 1, [1, 3, 16, 16])], [h.make_tensor_value_info("y", 1, None)],
        [nh.from_array(weight, "w")],
    )  # fmt: skip
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10)
    assert executed_in(model, (3, 16, 16), "Convolution", tmp_path) <= {"u8", "i8"}
