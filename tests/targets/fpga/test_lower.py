"""Circuits compute what the quantized graph computes: against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from tapeout.compiler.errors import UnsupportedError
from tapeout.targets.fpga import dialect as d
from tests.targets.fpga.networks import Network, circuit, codes, results, runtime


def held(model: onnx.ModelProto, net: Network, rate: float = 1e-3) -> d.Graph:
    """The circuit of a model; its results are at most one quantum from those of the graph, node by node in float32.

    Sums of products are exact in the circuit and rounded in float32: near a tie that may give the neighbouring code.
    `rate`: the share of elements that may.
    """
    graph, data = circuit(model), net.data()
    expected, made = runtime(model, data, fused=False), results(graph, data)
    steps = np.rint((made - expected) / graph.tensors[graph.output_ports[0].tensor].scale)
    assert np.abs(steps).max() <= 1
    assert np.mean(steps != 0) <= rate
    assert len(np.unique(expected)) > 20
    return graph


@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel": 3, "pads": [1, 1, 1, 1]},
        {"kernel": 3, "pads": [0, 1, 2, 0], "strides": [2, 2]},
        {"kernel": 2, "dilations": [2, 3]},
        {"kernel": 1},
        {"kernel": 1, "strides": [2, 1]},
        {"kernel": 3, "pads": [1, 1, 1, 1], "group": 6},
        {"kernel": 3, "group": 2},
        {"kernel": 3, "group": 3, "pads": [1, 1, 1, 1]},
    ],
    ids=str,
)
@pytest.mark.parametrize("powers", [False, True])
def test_convolution(attributes: dict[str, Any], powers: bool) -> None:
    net = Network((1, 6, 9, 8), 3, powers)
    y = net.conv(
        net.input(), (6, 6), attributes["kernel"], **{k: v for k, v in attributes.items() if k != "kernel"}
    )
    graph = held(net.model(y), net)
    kind = d.Depthwise if attributes.get("group") == 6 else d.Conv
    assert [type(n) for n in graph.nodes] == [kind]
    assert graph.nodes[0].requantize.ties_to_even == powers  # type: ignore[attr-defined]


def test_integer_operators_are_met_exactly() -> None:
    """QLinearConv is the reference itself: not one code differs."""
    rng = np.random.default_rng(2)
    text = """<ir_version: 8, opset_import: ["" : 17]>
    agraph (float[1,4,8,8] x) => (float[1,5,8,8] y) {
      q = QuantizeLinear (x, sx, zx)
      c = QLinearConv <pads = [1,1,1,1]> (q, sx, zx, w, sw, zw, sy, zy, b)
      y = DequantizeLinear (c, sy, zy)
    }"""
    model = parser.parse_model(text)
    values = {
        "sx": np.float32(0.06), "zx": np.int8(9), "w": rng.integers(-127, 128, (5, 4, 3, 3)).astype(np.int8),
        "sw": rng.uniform(0.001, 0.02, 5).astype(np.float32), "zw": np.zeros(5, np.int8),
        "sy": np.float32(0.4), "zy": np.int8(-30), "b": rng.integers(-4000, 4000, 5).astype(np.int32),
    }  # fmt: skip
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in values.items())
    data = rng.uniform(-8, 8, (40, 4, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(results(circuit(model), data), runtime(model, data))


def test_residual_network() -> None:
    net = Network((1, 8, 8, 8), 4)
    x = net.input()
    a = net.conv(net.conv(x, (8, 8), 3, pads=[1, 1, 1, 1]), (8, 8), 3, relu=False, pads=[1, 1, 1, 1])
    y = net.rounded(net.node("Relu", [net.node("Add", [x, a])]), 0.3, -128)
    graph = held(net.model(y), net)
    assert [type(n) for n in graph.nodes] == [d.Conv, d.Conv, d.Add]
    assert len(graph.readers(graph.inputs[0].name)) == 2


def test_pools_and_a_flattened_product() -> None:
    """A product behind a flatten of channels first takes its weights in the order of the stream."""
    net = Network((1, 4, 12, 12), 5)
    x = net.input()
    scale, zero = net.x_scale(x), numpy_helper.to_array(net.weights[1])
    m = net.rounded(
        net.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 0]), scale, zero
    )
    a = net.node("AveragePool", [m], kernel_shape=[2, 2], strides=[2, 2])
    f = net.node("Flatten", [net.rounded(a, 0.06)], axis=1)
    y = net.dense(net.rounded(f, 0.06, 3), (36, 7), relu=False)
    graph = held(net.model(y), net)
    assert [type(n) for n in graph.nodes][:2] == [d.MaxPool, d.AveragePool]


def test_functions_of_an_element() -> None:
    net = Network((1, 3, 6, 6), 6)
    y = net.rounded(net.node("Sigmoid", [net.input()]), 1 / 256, -128)
    y = net.rounded(net.node("LeakyRelu", [y], alpha=0.1), 1 / 200, -100)
    graph = held(net.model(y), net)
    assert [type(n) for n in graph.nodes] == [d.Lookup, d.Lookup]


def test_a_global_average_behind_a_requantization() -> None:
    net = Network((1, 5, 7, 7), 7)
    x = net.rounded(net.conv(net.input(), (5, 5), 3), 0.9, 4)
    y = net.rounded(net.node("GlobalAveragePool", [x]), 0.2, -7)
    graph = held(net.model(y), net)
    assert [type(n) for n in graph.nodes] == [d.Conv, d.Lookup, d.GlobalAverage]


def test_ranges_hold() -> None:
    """No code leaves the range that is proven for its channel."""
    net = Network((1, 4, 8, 8), 8)
    y = net.conv(net.conv(net.input(), (4, 8), 3), (8, 8), 3, relu=False, group=8)
    graph, data = circuit(net.model(y)), net.data(200)
    for name, found in codes(graph, data).items():
        tensor = graph.tensors[name]
        assert np.all(found >= tensor.low) and np.all(found <= tensor.high)


def test_inputs_arrive_channels_last() -> None:
    """An image channels first is sent channels last; the port says where each element lies."""
    net = Network((1, 3, 5, 4), 9)
    graph = circuit(net.model(net.conv(net.input(), (3, 4), 3)))
    (port,) = graph.input_ports
    assert port.real and graph.inputs[0].shape == (5, 4, 3) and port.order is not None
    places = np.arange(60).reshape(5, 4, 3).transpose(2, 0, 1).reshape(-1)
    np.testing.assert_array_equal(port.order, places)


@pytest.mark.parametrize(
    ("shape", "words"),
    [((2, 3, 6, 6), "batch 2, exactly 1"), (("N", 3, 6, 6), "inputs with free ones")],
)
def test_one_inference_after_another(shape: Any, words: str) -> None:
    net = Network(shape, 1)
    with pytest.raises(UnsupportedError, match=words):
        circuit(net.model(net.conv(net.input(), (3, 3), 1)))


def test_a_constant_operand_is_refused_by_name() -> None:
    net = Network((1, 3, 6, 6), 1)
    constant = net.rounded(net.constant(np.ones((1, 3, 6, 6), np.float32)))
    model = net.model(net.rounded(net.node("Add", [net.input(), constant])))
    with pytest.raises(UnsupportedError, match="add"):
        circuit(model)
