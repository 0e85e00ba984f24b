"""Small networks of the kinds that converters get wrong, in int8 and int16x8 on the whole road: calibrated on one
draw, held against float on another, inputs with outliers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import tapeout
from tapeout.compiler.reference import Reference
from tapeout.targets.tflite.run import RESOLVERS, LiteRT
from tests.targets.tflite.networks import Net

pytestmark = pytest.mark.slow

Array = np.ndarray[Any, Any]
SIZES = {"N": 1, "T": 16, "H": 12, "W": 10}


def weight(n: Net, *shape: int) -> str:
    """A random matrix or kernel that keeps the size of what it multiplies."""
    inner = int(np.prod(shape[1:])) if len(shape) != 2 else shape[0]
    return n.const(n.rng.standard_normal(shape) / np.sqrt(inner), np.float32)


def model(n: Net, shape: list[Any], output: str) -> onnx.ModelProto:
    graph = helper.make_graph(
        n.nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        n.initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)


def _heads(n: Net, causal: bool) -> onnx.ModelProto:
    q, k, v = (n("MatMul", "x", weight(n, 32, 32)) for _ in range(3))
    made = n("Attention", q, k, v, q_num_heads=4, kv_num_heads=4, is_causal=int(causal))
    return model(n, [1, 16, 32], n("Add", n("MatMul", made, weight(n, 32, 32)), "x"))


def attention(n: Net) -> onnx.ModelProto:
    return _heads(n, causal=False)


def causal_attention(n: Net) -> onnx.ModelProto:
    return _heads(n, causal=True)


def _mlp(n: Net, norm: str, act: str) -> onnx.ModelProto:
    scale = n.const(1 + 0.1 * n.rng.standard_normal(32), np.float32)
    inputs = [scale] if norm == "RMSNormalization" else [scale, n.const(np.zeros(32), np.float32)]
    inner = n(act, n("MatMul", n(norm, "x", *inputs, axis=-1), weight(n, 32, 64)))
    return model(n, [1, 16, 32], n("Add", n("MatMul", inner, weight(n, 64, 32)), "x"))


def layer_norm(n: Net) -> onnx.ModelProto:
    return _mlp(n, "LayerNormalization", "Relu")


def rms_norm(n: Net) -> onnx.ModelProto:
    return _mlp(n, "RMSNormalization", "Relu")


def gelu(n: Net) -> onnx.ModelProto:
    return _mlp(n, "LayerNormalization", "Gelu")


def swish(n: Net) -> onnx.ModelProto:
    inner = n("Swish", n("MatMul", "x", weight(n, 32, 64)))
    return model(n, [1, 16, 32], n("MatMul", inner, weight(n, 64, 32)))


def conv_3d(n: Net) -> onnx.ModelProto:
    made = n("Relu", n("Conv", "x", weight(n, 8, 3, 3, 3, 3), pads=[1] * 6))
    return model(n, [1, 3, 4, 8, 8], n("Conv", made, weight(n, 4, 8, 1, 1, 1)))


def free_sizes(n: Net) -> onnx.ModelProto:
    made = n("Relu", n("Conv", "x", weight(n, 8, 3, 3, 3), pads=[1] * 4))
    return model(n, [1, 3, "H", "W"], n("Conv", made, weight(n, 4, 8, 3, 3), pads=[1] * 4))


def conv_silu(n: Net) -> onnx.ModelProto:
    made = n("Conv", "x", weight(n, 8, 3, 3, 3), pads=[1] * 4)
    made = n("Mul", made, n("Sigmoid", made))
    return model(n, [1, 3, 12, 10], n("Conv", made, weight(n, 4, 8, 3, 3), pads=[1] * 4))


def grouped_conv(n: Net) -> onnx.ModelProto:
    made = n("Relu", n("Conv", "x", weight(n, 8, 2, 3, 3), pads=[1] * 4, group=2))
    return model(n, [1, 4, 12, 10], n("Conv", made, weight(n, 8, 2, 3, 3), pads=[1] * 4, group=4))


def lstm(n: Net) -> onnx.ModelProto:
    made = n(
        "LSTM",
        "x",
        n.const(n.rng.standard_normal((1, 64, 12)) / 3, np.float32),
        n.const(n.rng.standard_normal((1, 64, 16)) / 4, np.float32),
        n.const(n.rng.standard_normal((1, 128)) / 4, np.float32),
        hidden_size=16,
    )
    return model(n, [10, 1, 12], n("MatMul", n("Squeeze", made, n.const([1])), weight(n, 16, 6)))


def conv_with_bias(n: Net) -> onnx.ModelProto:
    bias = [n.const(n.rng.standard_normal(k), np.float32) for k in (8, 4)]
    made = n("Relu", n("Conv", "x", weight(n, 8, 3, 3, 3), bias[0], pads=[1] * 4))
    return model(n, [1, 3, 12, 10], n("Conv", made, weight(n, 4, 8, 3, 3), bias[1], pads=[1] * 4))


def inputs(proto: onnx.ModelProto, count: int, seed: int) -> list[Array]:
    """Normal numbers, one in a hundred eight times as large."""
    rng = np.random.default_rng(seed)
    dims = [d.dim_value or SIZES[d.dim_param] for d in proto.graph.input[0].type.tensor_type.shape.dim]
    found = []
    for _ in range(count):
        x = rng.standard_normal(dims).astype(np.float32)
        found.append(np.where(rng.random(dims) < 0.01, 8 * x, x).astype(np.float32))
    return found


def sqnr(proto: onnx.ModelProto, artifact: Path) -> float:
    """Of the worse resolver, over samples that calibration has not seen, in dB."""
    name = proto.graph.output[0].name
    samples = inputs(proto, 16, seed=1000)
    with Reference(proto) as reference:
        right = [reference.run({"x": x})[name].astype(np.float64) for x in samples]
    worst = np.inf
    for resolver in RESOLVERS:
        runner = LiteRT(artifact, resolver)
        noise = sum(
            float(((runner.run({"x": x})[name] - r) ** 2).sum()) for x, r in zip(samples, right, strict=True)
        )
        worst = min(worst, 10 * np.log10(sum(float((r**2).sum()) for r in right) / max(noise, 1e-30)))
    return worst


def exported(proto: onnx.ModelProto, scheme: str, folder: Path) -> tapeout.Export:
    drawn = inputs(proto, 32, seed=1)
    return tapeout.export(
        proto, quantize=scheme, calibration=lambda: [{"x": x} for x in drawn], output=folder / "net.tflite"
    )


NETWORKS = (
    attention, causal_attention, layer_norm, rms_norm, gelu, swish, conv_3d, free_sizes, conv_silu, grouped_conv, lstm,
)  # fmt: skip
# Least SQNR in dB.
BLOCKS = ("attention", "causal_attention", "layer_norm", "rms_norm", "gelu")
LEAST = {**dict.fromkeys(BLOCKS, 30.0), "lstm": 30.0}


@pytest.mark.parametrize("build", NETWORKS, ids=lambda b: b.__name__)
def test_int8(build: Any, tmp_path: Path) -> None:
    proto = build(Net(3))
    made = exported(proto, "int8", tmp_path)
    assert made.report["quantization"]["clusters"]
    found = sqnr(proto, made.artifact)
    print(build.__name__, round(found, 1))
    assert found >= LEAST.get(build.__name__, 25.0)


def test_what_arrives_quantized(tmp_path: Path) -> None:
    """A model quantized by another tool keeps its scales: the file computes what the QDQ model computes."""
    from onnxruntime import quantization as q

    proto = conv_with_bias(Net(3))
    drawn = iter([{"x": x} for x in inputs(proto, 32, seed=1)])

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Array] | None:
            return next(drawn, None)

    source, target = tmp_path / "float.onnx", tmp_path / "qdq.onnx"
    onnx.save(proto, source)
    q.quantize_static(
        source, target, Reader(), q.QuantFormat.QDQ, per_channel=True, weight_type=q.QuantType.QInt8,
        activation_type=q.QuantType.QUInt8,
    )  # fmt: skip
    made = tapeout.export(target, quantize="int8", output=tmp_path / "net.tflite")
    arrived = onnx.load(target)
    assert sqnr(arrived, made.artifact) >= 40
    assert sqnr(proto, made.artifact) >= 25


@pytest.mark.parametrize("build", [conv_with_bias, conv_silu, grouped_conv], ids=lambda b: b.__name__)
def test_int16(build: Any, tmp_path: Path) -> None:
    proto = build(Net(3))
    least = 45 if build is conv_with_bias else 44  # one or several layers of 8-bit weights
    assert sqnr(proto, exported(proto, "int16x8", tmp_path).artifact) >= least
