"""Old and new operators become canonical ones that compute the same, by ONNX Runtime on the original."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from tapeout.compiler.errors import UnsupportedError
from tapeout.compiler.ir import check
from tapeout.compiler.ir.load import from_proto
from tapeout.compiler.ir.save import to_bytes

ort.set_default_logger_severity(4)
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
RNG = np.random.default_rng(20)
X = RNG.standard_normal((2, 6, 5, 7)).astype(np.float32)
X3 = RNG.standard_normal((2, 6, 5)).astype(np.float32)
X16 = X.astype(np.float16)


def model(
    op: str,
    opset: int,
    inputs: dict[str, np.ndarray[Any, Any]],
    outputs: int = 1,
    weights: dict[str, Any] | None = None,
    order: list[str] | None = None,
    free: bool = False,
    **attributes: Any,
) -> onnx.ModelProto:
    """One node. `weights` are initializers, `order` the node's inputs, `free` leaves all sizes open."""
    weights = weights or {}
    names = order if order is not None else [*inputs, *weights]
    graph = helper.make_graph(
        [helper.make_node(op, names, [f"y{i}" for i in range(outputs)], name="it", **attributes)],
        "g",
        [
            helper.make_tensor_value_info(
                n,
                helper.np_dtype_to_tensor_dtype(v.dtype),
                [f"{n}{i}" for i in range(v.ndim)] if free else v.shape,
            )
            for n, v in inputs.items()
        ],
        [onnx.ValueInfoProto(name=f"y{i}") for i in range(outputs)],
        [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(content: bytes, feed: dict[str, Any]) -> list[Any]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return list(ort.InferenceSession(content, options).run(None, feed))


def same(proto: onnx.ModelProto, feed: dict[str, Any], rtol: float = 1e-5) -> None:
    proto = onnx.shape_inference.infer_shapes(proto)
    for output in proto.graph.output:
        if not output.type.WhichOneof("value"):
            output.type.tensor_type.elem_type = FLOAT
    expected = run(proto.SerializeToString(), feed)
    ir_model = from_proto(proto)
    assert check.faults(ir_model) == []
    assert all("it" in n.metadata_props["tapeout.origin"] for n in ir_model.graph)
    for a, b in zip(expected, run(to_bytes(ir_model), feed), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(b, a, rtol=rtol, atol=1e-6)


W = RNG.standard_normal((4, 6, 3, 3)).astype(np.float32)
C = {n: RNG.uniform(0.5, 1.5, 6).astype(np.float32) for n in ("scale", "bias", "mean", "var")}
CASES: list[tuple[str, int, dict[str, Any], dict[str, Any]]] = [
    ("Upsample", 7, {"x": X}, {"scales": [1.0, 1.0, 2.0, 3.0], "mode": "nearest"}),
    ("Upsample", 7, {"x": X}, {"scales": [1.0, 1.0, 2.0, 2.0], "mode": "linear"}),
    ("Upsample", 9, {"x": X}, {"weights": {"s": np.float32([1, 1, 2.5, 2])}}),
    ("Resize", 10, {"x": X}, {"weights": {"s": np.float32([1, 1, 2, 1.5])}}),
    ("Resize", 10, {"x": X}, {"weights": {"s": np.float32([1, 1, 0.6, 0.5])}}),
    ("Resize", 10, {"x": X}, {"weights": {"s": np.float32([1, 1, 0.6, 2])}}),
    ("Resize", 10, {"x": X}, {"weights": {"s": np.float32([1, 1, 0.6, 2])}, "mode": "linear"}),
    ("Resize", 10, {"x": X, "s": np.float32([1, 1, 0.4, 1.7])}, {}),
    ("Slice", 9, {"x": X}, {"starts": [1, -4], "ends": [9, -1], "axes": [1, 3]}),
    ("Slice", 9, {"x": X}, {"starts": [0, 1], "ends": [1, 2**31]}),
    ("TopK", 9, {"x": X}, {"k": 3, "axis": 3, "outputs": 2}),
    ("TopK", 10, {"x": X}, {"axis": 1, "outputs": 2, "weights": {"k": np.int64([2])}}),
    ("Clip", 7, {"x": X}, {"min": -0.5, "max": 0.25}),
    ("Clip", 10, {"x": X16}, {"max": 0.25}),
    ("Pad", 10, {"x": X}, {"pads": [0, 0, 1, 2, 0, 0, 3, 1], "value": 1.5}),
    ("Pad", 7, {"x": X}, {"pads": [0, 0, 1, 2, 0, 0, 3, 1], "mode": "reflect"}),
    ("Dropout", 7, {"x": X}, {"ratio": 0.7}),
    ("Dropout", 10, {"x": X}, {"ratio": 0.7}),
    ("BatchNormalization", 7, {"x": X}, {"weights": C, "spatial": 1}),
    ("BatchNormalization", 9, {"x": X}, {"weights": C, "epsilon": 0.1}),
    ("Softmax", 7, {"x": X}, {}),
    ("Softmax", 11, {"x": X}, {"axis": -2}),
    ("Softmax", 12, {"x": X}, {"axis": 3}),
    ("Softmax", 12, {"x": X}, {"axis": 3, "free": True}),
    ("Softmax", 12, {"x": X}, {"axis": 0, "free": True}),
    ("LogSoftmax", 12, {"x": X}, {"axis": 2}),
    ("Hardmax", 12, {"x": X}, {"axis": 1}),
    ("Split", 7, {"x": X}, {"split": [1, 3, 2], "axis": 1, "outputs": 3}),
    ("Split", 12, {"x": X}, {"axis": 1, "outputs": 3}),
    ("Split", 13, {"x": X}, {"axis": 1, "outputs": 2}),
    ("Squeeze", 7, {"x": X[:1]}, {"axes": [0]}),
    ("Squeeze", 11, {"x": X[:1]}, {}),
    ("Unsqueeze", 7, {"x": X}, {"axes": [0, 2]}),
    ("Unsqueeze", 11, {"x": X}, {"axes": [-1]}),
    ("ReduceSum", 11, {"x": X}, {"axes": [1, -1], "keepdims": 0}),
    ("ReduceSum", 12, {"x": X}, {}),
    *[
        (f"Reduce{n}", 17, {"x": np.abs(X)}, {"axes": [2, 3]})
        for n in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
    ],
    ("ReduceMean", 7, {"x": X}, {"keepdims": 0}),
    (
        "Scatter",
        9,
        {"x": X},
        {"weights": {"i": np.int64([[[[1]]], [[[0]]]]), "u": np.float32([[[[7]]], [[[8]]]])}},
    ),
    (
        "GridSample",
        16,
        {"x": X, "g": RNG.uniform(-1, 1, (2, 3, 4, 2)).astype(np.float32)},
        {"mode": "bicubic"},
    ),
    ("GridSample", 16, {"x": X, "g": RNG.uniform(-1, 1, (2, 3, 4, 2)).astype(np.float32)}, {}),
    ("DFT", 17, {"x": X3[..., None]}, {"axis": 1}),
    ("DFT", 17, {"x": X3[..., None]}, {"onesided": 1}),
    ("LpPool", 17, {"x": X}, {"kernel_shape": [2, 2], "p": 2}),
    ("Conv", 7, {"x": X}, {"weights": {"w": W}, "pads": [1, 1, 1, 1]}),
    ("AveragePool", 10, {"x": X}, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("MaxPool", 8, {"x": X}, {"kernel_shape": [3, 3], "strides": [2, 2]}),
    ("Gemm", 7, {"x": X[0, 0]}, {"weights": {"w": X[1, 1], "c": np.float32([1])}, "transA": 1}),
    ("PRelu", 7, {"x": X}, {"weights": {"s": np.float32(0.3)}}),
    ("Flatten", 7, {"x": X}, {"axis": 2}),
    ("Gather", 7, {"x": X}, {"weights": {"i": np.int64([1, 0])}, "axis": 2}),
    ("Cast", 7, {"x": X}, {"to": INT64}),
    ("ArgMax", 7, {"x": X}, {"axis": 1, "keepdims": 0}),
    ("InstanceNormalization", 7, {"x": X}, {"weights": {"s": C["scale"], "b": C["bias"]}}),
    ("Sum", 7, {"x": X, "z": X * 2}, {}),
    ("Equal", 10, {"x": np.int64([1, 2]), "z": np.int64([1, 3])}, {}),
]


@pytest.mark.parametrize(
    ("op", "opset", "inputs", "options"), CASES, ids=[f"{i}-{c[0]}-{c[1]}" for i, c in enumerate(CASES)]
)
def test_old_operator(op: str, opset: int, inputs: dict[str, Any], options: dict[str, Any]) -> None:
    same(model(op, opset, inputs, **options), inputs)


@pytest.mark.parametrize("opset", range(7, 15))
def test_recurrent(opset: int) -> None:
    x = RNG.standard_normal((4, 2, 3)).astype(np.float32)
    weights = {
        "w": RNG.standard_normal((1, 15, 3)),
        "r": RNG.standard_normal((1, 15, 5)),
        "b": RNG.standard_normal((1, 30)),
    }
    weights = {k: v.astype(np.float32) for k, v in weights.items()}
    same(
        model("GRU", opset, {"x": x}, outputs=2, weights=weights, hidden_size=5, linear_before_reset=1),
        {"x": x},
    )


def test_roi_align_keeps_its_old_coordinates() -> None:
    """ONNX Runtime has no kernel of the canonical form, so the attribute is looked at."""
    inputs = {"x": X, "r": np.float32([[0, 0, 4, 3]]), "b": np.int64([1])}
    proto = onnx.shape_inference.infer_shapes(model("RoiAlign", 10, inputs, output_height=2))
    (node,) = from_proto(proto).graph
    assert node.attributes["coordinate_transformation_mode"].as_string() == "output_half_pixel"


def test_group_normalization_per_group() -> None:
    """Scale and bias per group, which ONNX Runtime no longer takes: against the formula."""
    weights = {"s": np.float32([1.5, -2, 0.5]), "b": np.float32([0.1, 0.2, 0.3])}
    proto = model("GroupNormalization", 18, {"x": X}, weights=weights, num_groups=3)
    proto.graph.output[0].type.tensor_type.elem_type = FLOAT
    (found,) = run(to_bytes(from_proto(proto)), {"x": X})
    groups = X.astype(np.float64).reshape(2, 3, -1)
    normal = (groups - groups.mean(-1, keepdims=True)) / np.sqrt(groups.var(-1, keepdims=True) + 1e-5)
    expected = (normal * weights["s"][:, None] + weights["b"][:, None]).reshape(X.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_dropout_mask_without_meaning_is_refused() -> None:
    proto = model("Dropout", 7, {"x": X}, outputs=2)
    for output in proto.graph.output:
        output.type.tensor_type.elem_type = FLOAT
    with pytest.raises(UnsupportedError, match=r"Dropout 'it'.*mask"):
        from_proto(proto)
    del proto.graph.output[1]
    assert [n.op_type for n in from_proto(proto).graph] == ["Dropout"]


def test_statistics_of_training_are_refused_only_where_read() -> None:
    proto = model("BatchNormalization", 9, {"x": X}, outputs=5, weights=C)
    for output in proto.graph.output:
        output.type.tensor_type.elem_type = FLOAT
    with pytest.raises(UnsupportedError, match="training statistics"):
        from_proto(proto)
    del proto.graph.output[1:]
    (node,) = from_proto(proto).graph
    assert len(node.outputs) == 1


def test_conversion_inside_subgraphs_and_functions() -> None:
    text = """
        <ir_version: 8, opset_import: ["": 12, "f": 1]>
        g (float[2,3,4] x, bool c) => (float[2,3,4] y) {
            t = If (c) <
                then_branch = a () => (float[2,3,4] p) { p = Softmax <axis = 1> (x) },
                else_branch = b () => (float[2,3,4] p) { p = Clip (x) }
            >
            y = f.Half <k = 2> (t)
        }
        <domain: "f", opset_import: ["": 9]>
        Half <k> (x) => (y) {
            a = Softmax <axis = @k> (x)
            two = Constant <value = float {2.0}> ()
            y = Div (a, two)
        }
    """
    x = RNG.standard_normal((2, 3, 4)).astype(np.float32)
    ir_model = from_proto(onnx.parser.parse_model(text))
    assert check.faults(ir_model) == []
    for c in (True, False):
        flat = np.exp(x.astype(np.float64)) if c else x.astype(np.float64)
        t = flat / flat.reshape(2, -1).sum(1).reshape(2, 1, 1) if c else flat
        e = np.exp(t)
        (y,) = run(to_bytes(ir_model), {"x": x, "c": np.array(c)})
        np.testing.assert_allclose(y, e / e.sum(-1, keepdims=True) / 2, rtol=1e-5)


# --- newer than the canonical opset ---------------------------------------------------------------------


def _newer(op: str, opset: int, inputs: dict[str, Any], **options: Any) -> list[Any]:
    proto = model(op, opset, inputs, **options)
    proto = onnx.shape_inference.infer_shapes(proto)
    ir_model = from_proto(proto)
    assert check.faults(ir_model) == []
    assert all(n.metadata_props["tapeout.origin"] == "it" for n in ir_model.graph)
    return run(to_bytes(ir_model), inputs)


def test_newer_form_with_the_same_meaning() -> None:
    (y,) = _newer("Celu", 28, {"x": X}, alpha=2.0)
    np.testing.assert_allclose(y, np.where(X > 0, X, 2 * np.expm1(X / 2)), rtol=1e-5, atol=1e-6)
    (y,) = _newer("ReduceLogSum", 28, {"x": np.abs(X)}, weights={"a": np.int64([1])})
    np.testing.assert_allclose(y, np.log(np.abs(X).sum(1, keepdims=True)), rtol=1e-5, atol=1e-6)


def test_newer_operator_through_its_body() -> None:
    (y,) = _newer("Celu", 28, {"x": X16}, alpha=2.0)
    np.testing.assert_allclose(y, np.where(X > 0, X, 2 * np.expm1(X / 2)), rtol=1e-2, atol=2e-3)
    (y,) = _newer("SpaceToDepth", 28, {"x": X[:, :, :4, :6]}, blocksize=2, mode="CRD")
    expected = X[:, :, :4, :6].reshape(2, 6, 2, 2, 3, 2).transpose(0, 1, 3, 5, 2, 4).reshape(2, 24, 2, 3)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize(
    ("op", "opset", "inputs", "options"),
    [
        ("BitCast", 26, {"x": X}, {"to": TensorProto.INT32}),
        ("CumProd", 26, {"x": X}, {"weights": {"a": np.int64(1)}}),
        ("Mod", 28, {"x": X, "z": X}, {}),
    ],
)
def test_newer_operator_without_a_body_is_refused_by_name(
    op: str, opset: int, inputs: dict[str, Any], options: Any
) -> None:
    with pytest.raises(UnsupportedError, match=f"{op} 'it'"):
        _newer(op, opset, inputs, **options)


def test_new_opset_without_new_operators_loads() -> None:
    (y,) = _newer("Mod", 28, {"x": X, "z": X + 3}, fmod=1)
    np.testing.assert_allclose(y, np.fmod(X, X + 3), rtol=1e-5, atol=1e-6)
