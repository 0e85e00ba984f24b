"""Weights in codes: what the file computes with them, what it stores, and that the plugin keeps them packed."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper as nh

import tapeout
from tapeout.commands.inspect import text
from tapeout.compiler.errors import AccuracyError, UnsupportedError
from tapeout.compiler.ir.load import from_proto
from tapeout.compiler.ir.save import to_bytes
from tapeout.compiler.reference import Reference

pytest.importorskip("openvino", reason="the package 'openvino' is not installed")

from tapeout.targets.openvino.float_codes import TABLES
from tapeout.targets.openvino.float_codes import coded as nearest_codes
from tapeout.targets.openvino.inspection import executed, hold, low_bit
from tapeout.targets.openvino.run import EXACT
from tapeout.targets.openvino.runtime import core
from tapeout.targets.openvino.weights import restored, withheld

pytestmark = pytest.mark.slow

K, N, G = 64, 96, 32
LIMITS = {"INT4": (-8, 7), "UINT4": (0, 15), "INT8": (-127, 127), "UINT8": (0, 255)}
NAMES = {"INT4": "i4", "UINT4": "u4", "INT8": "i8", "UINT8": "u8"}


def coded(kind: str, block: int, table: bool, zero: bool) -> onnx.ModelProto:
    """One product, or one look-up, by a weight in codes."""
    rng = np.random.default_rng(3)
    low, high = LIMITS[kind]
    shape = (N, K) if table else (K, N)
    inner = 1 if table else 0
    scales: tuple[int, ...] = (N,)
    if block:
        scales = (N, K // block) if table else (K // block, N)
    inputs = ["q", "s"]
    held = [
        h.make_tensor("q", getattr(T, kind), shape, rng.integers(low, high + 1, shape).reshape(-1)),
        nh.from_array(rng.uniform(0.01, 0.1, scales).astype(np.float16).astype(np.float32), "s"),
    ]
    if zero:
        held.append(
            h.make_tensor(
                "z", getattr(T, kind), scales, rng.integers(low // 2, high // 2, scales).reshape(-1)
            )
        )
        inputs.append("z")
    attributes = {"axis": inner, "block_size": block} if block else {"axis": 1 - inner}
    nodes = [h.make_node("DequantizeLinear", inputs, ["w"], name="dq", **attributes)]
    nodes.append(
        h.make_node("Gather" if table else "MatMul", ["w", "x"] if table else ["x", "w"], ["y"], name="read")
    )
    x = h.make_tensor_value_info("x", T.INT64 if table else T.FLOAT, ["B"] if table else ["B", K])
    y = h.make_tensor_value_info("y", T.FLOAT, ["B", K if table else N])
    graph = h.make_graph(nodes, "g", [x], [y], held)
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 25)], ir_version=11)


@pytest.mark.parametrize(
    ("kind", "block", "table", "zero"),
    list(itertools.product(LIMITS, (0, G), (False, True), (False, True))),
)
def test_codes_compute_what_onnx_does_and_stay_codes(kind: str, block: int, table: bool, zero: bool) -> None:
    model = from_proto(coded(kind, block, table, zero))
    rng = np.random.default_rng(4)
    x = rng.integers(0, N, 7) if table else rng.normal(size=(5, K)).astype(np.float32)
    with Reference(model) as reference:
        expected = reference.run({"x": x})["y"]
    shell, stored = withheld(model)
    assert [s.type for s in stored] == [NAMES[kind]]
    assert (stored[0].zero is not None) == zero
    made = core().read_model(to_bytes(shell), b"")
    restored(made, stored)
    compiled = core().compile_model(made, "CPU", EXACT)
    np.testing.assert_allclose(compiled([x])[0], expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    (found,) = low_bit(made, executed(compiled))
    assert found.type == NAMES[kind] and not found.widened, found


def test_what_has_other_readers_is_left_to_the_front_end() -> None:
    proto = coded("INT8", 0, False, False)
    proto.graph.node.append(h.make_node("Neg", ["w"], ["v"], name="other"))
    proto.graph.output.append(h.make_tensor_value_info("v", T.FLOAT, [K, N]))
    model = from_proto(proto)
    shell, stored = withheld(model)
    assert shell is model and not stored


def test_a_weight_that_executes_as_floats_is_a_fault() -> None:
    from openvino import Model
    from openvino import opset13 as op

    rng = np.random.default_rng(5)
    x = op.parameter([1, 16, 8, 8], np.float32, name="x")
    codes = op.constant(rng.integers(-127, 127, (32, 16, 3, 3)).astype(np.int8), name="kernel")
    real = op.multiply(op.convert(codes, np.float32), op.constant(np.full((32, 1, 1, 1), 0.1, np.float32)))
    y = op.convolution(x, real, [1, 1], [0, 0], [0, 0], [1, 1], name="conv")
    model = Model([op.result(y)], [x], "m")
    with pytest.raises(
        AccuracyError, match=r"weight 'kernel' is stored as i8 and .* executes it as f32, for 'conv'"
    ):
        hold(model, core().compile_model(model, "CPU", EXACT), "m.xml")


def network(tied: bool = False) -> onnx.ModelProto:
    """A table, a layer with a bias, a Gemm and a head, which reads the table where it is `tied`."""
    rng = np.random.default_rng(6)
    table = rng.normal(size=(200, K)).astype(np.float32)
    head = np.ascontiguousarray(table.T) if tied else rng.normal(size=(K, 200)).astype(np.float32)
    held = [
        nh.from_array(table, "table"),
        nh.from_array(rng.normal(size=(K, K)).astype(np.float32) / 8, "w"),
        nh.from_array(rng.normal(size=K).astype(np.float32), "b"),
        nh.from_array(rng.normal(size=(K, K)).astype(np.float32) / 8, "gw"),
        nh.from_array(rng.normal(size=K).astype(np.float32), "gb"),
        nh.from_array(head, "head"),
    ]
    nodes = [
        h.make_node("Gather", ["table", "ids"], ["e"], name="embed"),
        h.make_node("MatMul", ["e", "w"], ["m"], name="first"),
        h.make_node("Add", ["m", "b"], ["a"], name="bias"),
        h.make_node("Tanh", ["a"], ["t"], name="tanh"),
        h.make_node("Gemm", ["t", "gw", "gb"], ["u"], name="second", transB=1),
        h.make_node("MatMul", ["u", "head"], ["y"], name="last"),
    ]
    ids = h.make_tensor_value_info("ids", T.INT64, ["B"])
    y = h.make_tensor_value_info("y", T.FLOAT, ["B", 200])
    graph = h.make_graph(nodes, "g", [ids], [y], held)
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize(("scheme", "bits"), [
    ("w8", 8.5), ("w4", 4.5), ("w4g32", 5), ("nf4", 4.5), ("mxfp4", 4.5),
])  # fmt: skip
def test_a_scheme_stores_every_matrix(tmp_path: Path, scheme: str, bits: float) -> None:
    done = tapeout.export(network(), "openvino", output=tmp_path / "m.xml", quantize=scheme)
    assert done.report["verification"]["holds"]
    assert done.manifest["quantization"]["weights"]
    found = tapeout.inspect(tmp_path / "m.xml")
    assert len(found["low_bit"]) == 4 and not any(w["widened"] for w in found["low_bit"])
    assert "weights in few bits:" in text(found, "m.xml") and "WIDENED" not in text(found, "m.xml")
    elements = 2 * 200 * K + 2 * K * K
    assert (tmp_path / "m.bin").stat().st_size <= elements * bits / 8 + 4 * 2 * K + 4 * 600


@pytest.mark.parametrize("scheme", ["nf4", "mxfp4"])
def test_codes_are_the_nearest_of_the_table(scheme: str) -> None:
    rng = np.random.default_rng(7)
    blocks = rng.normal(size=(8, 3, 32)).astype(np.float32) * np.exp2(rng.integers(-9, 9, (8, 3, 1))).astype(
        np.float32
    )
    codes, scale = nearest_codes(blocks, scheme)
    table, kind = TABLES[scheme]
    nearest = np.abs(blocks[..., None] / scale[..., None] - table).min(-1)
    np.testing.assert_allclose(np.abs(blocks / scale - table[codes]), nearest, atol=1e-6)
    assert kind == "nf4" or (np.exp2(np.round(np.log2(scale))) == scale).all()


def test_a_table_that_is_the_head_too_is_written_once(tmp_path: Path) -> None:
    sizes = []
    for tied in (False, True):
        tapeout.export(network(tied), "openvino", output=tmp_path / "m.xml", quantize="w4g32")
        sizes.append((tmp_path / "m.bin").stat().st_size)
    assert sizes[0] - sizes[1] == 200 * K * (4 + 16 / 32) / 8


def test_a_scheme_that_stores_nothing_says_why() -> None:
    held = [nh.from_array(np.ones((32, 16, 3, 3), np.float32), "w")]
    x = h.make_tensor_value_info("x", T.FLOAT, [1, 16, 8, 8])
    y = h.make_tensor_value_info("y", T.FLOAT, [1, 32, 6, 6])
    graph = h.make_graph([h.make_node("Conv", ["x", "w"], ["y"], name="conv")], "g", [x], [y], held)
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=9)
    with pytest.raises(UnsupportedError, match="no kernel takes weights as codes here"):
        tapeout.export(model, "openvino", output="unused.xml", quantize="w8", dry_run=True)
