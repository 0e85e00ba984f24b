"""Stored weights on both resolvers: each scheme against its graph, sizes, refusals."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from tapeout.compiler import pipeline
from tapeout.compiler.errors import UnsupportedError
from tapeout.compiler.ir.load import from_proto
from tapeout.compiler.target import Request
from tapeout.passes.quantization.dynamic import NAMES
from tapeout.targets.tflite import TARGET
from tapeout.targets.tflite.run import RESOLVERS, LiteRT
from tests.targets.tflite import road

pytestmark = pytest.mark.slow

SCHEMES = [s for s in TARGET.schemes if s == "int8-dynamic" or (s[0] == "w" and s[1].isdigit())]


def network(width: int = 256) -> onnx.ModelProto:
    """A table, two products and a convolution."""
    rng = np.random.default_rng(0)
    held = {
        "table": (200, width),
        "w0": (width, 2 * width),
        "w1": (2 * width, width),
        "kernel": (32, 1, 6, 6),
    }
    weights = [
        numpy_helper.from_array((rng.standard_normal(s) / np.sqrt(s[0] + 9)).astype(np.float32), n)
        for n, s in held.items()
    ]
    weights.append(numpy_helper.from_array(np.array([-1, 1, 16, width // 16], np.int64), "plane"))
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w0"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w1"], ["m"]),
        helper.make_node("Reshape", ["m", "plane"], ["p"]),
        helper.make_node("Conv", ["p", "kernel"], ["y"]),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [2, 5])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [ids], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def made(scheme: str, width: int = 256) -> ir.Model:
    model = from_proto(network(width))
    pipeline.run(model, TARGET.passes(Request(scheme)))
    assert not road.refusals(model)
    return model


def agree(model: ir.Model, feeds: road.Arrays) -> None:
    """Both resolvers make of `model` what ONNX Runtime does, but for what floats round; where the kernels round
    activations, a few may be rounded the other way."""
    (right,) = road.reference(model, feeds).values()
    rounding = any(n.op_type in NAMES.values() for n in model.graph)
    for resolver in RESOLVERS:
        (found,) = LiteRT(road.emitted(model), resolver).run(feeds).values()
        far = np.linalg.norm(found - right) / np.linalg.norm(right)
        assert far < (1e-2 if rounding else 1e-5), f"{resolver}: {far:.2g}"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_files_compute_what_their_graphs_say(scheme: str) -> None:
    model = made(scheme)
    agree(model, {"ids": np.random.default_rng(1).integers(-200, 200, (2, 5))})


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_file_has_the_size_that_its_bits_imply(scheme: str) -> None:
    model = made(scheme, 512)
    implied = 0
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        scale = any(u.node.op_type == "DequantizeLinear" and u.idx == 1 for u in value.uses())
        rank = len(value.const_value.shape)
        size = value.const_value.size
        # Beside a channel's scale TFLite wants its zero point in 64 bits; those of blocks have 16 bits.
        implied += (
            size * (2 if rank > 1 else 12) if scale else -(-size * value.const_value.dtype.bitwidth // 8)
        )
    assert abs(len(road.emitted(model)) / implied - 1) < 0.03
    floats = sum(t.raw_data.__len__() for t in network(512).graph.initializer)
    assert implied < 0.3 * floats


PRODUCTS = {
    "MatMul": ([3, 128], [128, 64], {}),
    "Conv": ([1, 16, 8, 8], [32, 16, 3, 3], {}),
    "depthwise": ([1, 128, 8, 8], [128, 1, 3, 3], {"group": 128}),
    "ConvTranspose": ([1, 32, 6, 6], [32, 16, 2, 2], {"strides": [2, 2]}),
}


@pytest.mark.parametrize(
    ("scheme", "kind", "bounds"),
    [("int8-dynamic", kind, (0, 6)) for kind in PRODUCTS]
    + [("w4g32", "MatMul", bounds) for bounds in [(0, None), (0, 6), (-1, 1)]],
)
def test_an_activation_behind_stored_weights_is_computed(
    scheme: str, kind: str, bounds: tuple[float, float | None]
) -> None:
    """The builtin kernel for blocks leaves out an activation that is fused into it."""
    shape, weight, attributes = PRODUCTS[kind]
    rng = np.random.default_rng(0)
    held = {"w": (rng.standard_normal(weight) * 0.5).astype(np.float32)}
    held |= {n: np.float32(v) for n, v in zip(("low", "high"), bounds, strict=True) if v is not None}
    nodes = [
        helper.make_node("Conv" if kind == "depthwise" else kind, ["x", "w"], ["c"], **attributes),
        helper.make_node("Clip", ["c", "low", "high"][: len(held)], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    weights = [numpy_helper.from_array(np.asarray(v), n) for n, v in held.items()]
    model = from_proto(helper.make_model(helper.make_graph(nodes, "g", [x], [y], weights)))
    pipeline.run(model, TARGET.passes(Request(scheme)))
    agree(model, {"x": rng.standard_normal(shape).astype(np.float32)})


def test_odd_rows_of_a_table_are_not_looked_up_in_four_bits() -> None:
    table = numpy_helper.from_array(
        np.random.default_rng(0).standard_normal((90, 33)).astype(np.float32), "t"
    )
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [7])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Gather", ["t", "ids"], ["y"])], "g", [ids], [y], [table])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    model = from_proto(proto)
    pipeline.run(model, TARGET.passes(Request("w4")))
    content = road.emitted(model)
    assert "EMBEDDING_LOOKUP" not in road.operators(content)
    agree(model, {"ids": np.array([0, 89, 3, 3, 41, 7, -1])})


def product(x: list[int], weight: tuple[int, ...], *, left: bool = False, dtype: str = "float32") -> ir.Model:
    """A lone MatMul of `x` and a constant."""
    array = np.random.default_rng(0).standard_normal(weight).astype(dtype)
    node = helper.make_node("MatMul", ["w", "x"] if left else ["x", "w"], ["y"])
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    values = [
        helper.make_tensor_value_info("x", kind, x),
        helper.make_tensor_value_info("y", kind, None),
    ]
    graph = helper.make_graph([node], "g", values[:1], values[1:], [numpy_helper.from_array(array, "w")])
    return from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


@pytest.mark.parametrize("scheme", ["w4g32", "w3"])
@pytest.mark.parametrize(
    ("x", "weight", "left"),
    [([3, 640], (640, 128), False), ([640, 3], (128, 640), True), ([2, 3, 64], (2, 64, 32), False)],
)
def test_products_are_stored_wherever_the_constant_stands(
    scheme: str, x: list[int], weight: tuple[int, ...], left: bool
) -> None:
    model = product(x, weight, left=left)
    pipeline.run(model, TARGET.passes(Request(scheme)))
    size = len(road.emitted(model))
    assert size < 0.2 * 4 * np.prod(weight) + 3000
    agree(model, {"x": np.random.default_rng(1).standard_normal(x).astype(np.float32)})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("g (float[2,4] x) => (float[2,4] y) { y = Relu(x) }", "no product and no table"),
        ("g (float[2,4] x, float[4,9] w) => (float[2,9] y) { y = MatMul(x, w) }", "1 are computed"),
        (
            "g (float[2,4] x) => (float[2,2] y) <float[4,2] w = {1,2,3,4,5,6,7,8}> { y = MatMul(x, w) }",
            "fewer",
        ),
    ],
)
def test_a_scheme_that_stores_nothing_is_an_error_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(UnsupportedError, match=f"stores no weight.*{reason}"):
        road.legalized(text, "w8")
