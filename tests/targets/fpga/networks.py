"""Small quantized networks with random weights, as another tool would write them, and their circuits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from tapeout.compiler.pipeline import run
from tapeout.road import Wish, prepare
from tapeout.sdk import Request
from tapeout.targets.fpga import declaration, integer
from tapeout.targets.fpga import dialect as d
from tapeout.targets.fpga.lower import lower
from tapeout.targets.fpga.passes import passes


@dataclass
class Network:
    """A graph in the making: every method adds an operator with its rounding and gives the name of its result.

    Activations are real numbers behind DequantizeLinear; scales are drawn from `rng`, or powers of two.
    """

    shape: tuple[int, ...]
    seed: int = 0
    powers: bool = False
    nodes: list[Any] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.shapes = {"x": self.shape}

    def scale(self, low: float = 0.01, high: float = 0.1) -> Any:
        drawn = self.rng.uniform(low, high)
        return np.float32(2.0 ** np.round(np.log2(drawn)) if self.powers else drawn)

    def zero(self) -> Any:
        return np.int8(0 if self.powers else self.rng.integers(-100, 100))

    def constant(self, array: Any) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def node(self, op: str, inputs: list[str], **attributes: Any) -> str:
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name, **attributes))
        return f"{name}_out"

    def rounded(self, value: str, scale: Any = None, zero: Any = None) -> str:
        pair = [self.constant(np.float32(self.scale() if scale is None else scale))]
        pair.append(self.constant(np.int8(self.zero() if zero is None else zero)))
        return self.node("DequantizeLinear", [self.node("QuantizeLinear", [value, *pair]), *pair])

    def input(self) -> str:
        return self.rounded("x")

    def parameters(self, shape: tuple[int, ...], x_scale: float = 0.05) -> list[str]:
        """Weights with a scale for each output, and a bias in units of about the accumulator."""
        codes = self.rng.integers(-127, 128, shape).astype(np.int8)
        scale = np.array([self.scale(0.001, 0.02) for _ in range(shape[0])], np.float32)
        bias = self.rng.integers(-3000, 3000, shape[0]).astype(np.int32)
        found = []
        for array, size in ((codes, scale), (bias, (scale * np.float32(x_scale)).astype(np.float32))):
            pair = [self.constant(size), self.constant(np.zeros(shape[0], array.dtype))]
            found.append(self.node("DequantizeLinear", [self.constant(array), *pair], axis=0))
        return found

    def x_scale(self, x: str) -> float:
        """The scale of a rounded value."""
        made = next(n for n in self.nodes if x in n.output)
        return float(numpy_helper.to_array(next(w for w in self.weights if w.name == made.input[1])))

    def conv(
        self, x: str, channels: tuple[int, int], kernel: int, relu: bool = True, **attributes: Any
    ) -> str:
        group = attributes.get("group", 1)
        shape = (channels[1], channels[0] // group, kernel, kernel)
        y = self.node("Conv", [x, *self.parameters(shape, self.x_scale(x))], **attributes)
        size = self.result_scale(channels[0] // group * kernel**2)
        return self.rounded(self.node("Relu", [y]) if relu else y, size, -128 if relu else None)

    def dense(self, x: str, sizes: tuple[int, int], relu: bool = True) -> str:
        y = self.node("Gemm", [x, *self.parameters((sizes[1], sizes[0]), self.x_scale(x))], transB=1)
        size = self.result_scale(sizes[0])
        return self.rounded(self.node("Relu", [y]) if relu else y, size, -128 if relu else None)

    def result_scale(self, products: int) -> Any:
        """A scale at which sums of so many products fill the codes."""
        return self.scale(0.02 * products**0.5, 0.08 * products**0.5)

    def model(self, result: str) -> onnx.ModelProto:
        source = helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)
        made = helper.make_tensor_value_info(result, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "network", [source], [made], self.weights)
        model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
        return onnx.shape_inference.infer_shapes(model)

    def data(self, samples: int = 20) -> Any:
        """Inputs that use the whole range of codes."""
        return self.rng.uniform(-8, 8, (samples, *self.shape[1:])).astype(np.float32)


def circuit(model: onnx.ModelProto, device: str = "xc7z020") -> d.Graph:
    """The circuit of a quantized model, not folded."""
    prepared = prepare(model, Wish()).model
    run(prepared, passes(Request("int8", device)))
    return lower(prepared, declaration(device), device)


def codes(graph: d.Graph, data: Any) -> dict[str, Any]:
    """The codes of every tensor for arrays at the one input."""
    (port,) = graph.input_ports
    return integer.run(graph, {port.tensor: integer.stream(port, graph.tensors[port.tensor], data)})


def results(graph: d.Graph, data: Any) -> Any:
    """What the one output port gives, [samples, ...] without the batch of 1."""
    (port,) = graph.output_ports
    made = codes(graph, data)[port.tensor]
    return integer.unstream(port, graph.tensors[port.tensor], made)[:, 0]


def runtime(model: onnx.ModelProto, data: Any, fused: bool = True) -> Any:
    """The same in ONNX Runtime, its integer kernels fused or every node by itself."""
    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if fused else level.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (name,) = (i.name for i in session.get_inputs())
    return np.concatenate([session.run(None, {name: sample[None]})[0] for sample in data])
