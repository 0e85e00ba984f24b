"""The publishers' int8 files of MLPerf Tiny as plain QDQ ONNX, the way another tool would hand them over.

A TFLite tensor of codes becomes QuantizeLinear and DequantizeLinear around float operators with the same scales and
zero points, channels first, weights per channel as int8, biases as int32.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.assets import ASSETS

MODELS = {  # name -> data set
    "ad01_autoencoder": "ad01_logmel",
    "ic01_resnet8": "ic01_caltech",
    "kws01_dscnn": "kws01_mfcc",
    "vww01_mobilenetv1": "vww_caltech",
}


@cache
def published(name: str, tail: bool = True) -> onnx.ModelProto:
    """The publisher's int8 model as QDQ ONNX; without `tail` it ends before its Softmax."""
    return _Conversion(ASSETS / "models" / name / "reference_int8.tflite", tail).model()


class _Conversion:
    def __init__(self, path: Path, tail: bool) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.s, data = schema, path.read_bytes()
        self.file = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
        self.graph, self.tail = self.file.subgraphs[0], tail
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.values: dict[int, str] = {}

    def model(self) -> onnx.ModelProto:
        (first,) = self.graph.inputs
        shape = [int(n) for n in self.graph.tensors[first].shape]
        self.values[first] = self._quantized("input", first)
        if len(shape) == 4:
            self.values[first] = self._node("Transpose", [self.values[first]], perm=[0, 3, 1, 2])
        last = first
        for operator in self.graph.operators:
            code = self.file.operatorCodes[operator.opcodeIndex]
            kind = max(code.builtinCode, code.deprecatedBuiltinCode)
            name = next(k for k, v in vars(self.s.BuiltinOperator).items() if v == kind)
            if name == "SOFTMAX" and not self.tail:
                break
            getattr(self, f"_{name.lower()}")(operator)
            last = operator.outputs[0]
        shape = [int(n) for n in self.graph.tensors[last].shape]
        source = helper.make_tensor_value_info("input", TensorProto.FLOAT, self._input_shape())
        result = helper.make_tensor_value_info(self.values[last], TensorProto.FLOAT, shape)
        graph = helper.make_graph(self.nodes, "published", [source], [result], self.initializers)
        opset = [helper.make_opsetid("", 17)]
        return helper.make_model(graph, ir_version=8, opset_imports=opset)

    def _input_shape(self) -> list[int]:
        return [int(n) for n in self.graph.tensors[self.graph.inputs[0]].shape]

    def _constant(self, array: Any) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def _node(self, op: str, inputs: list[str], **attributes: Any) -> str:
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name, **attributes))
        return f"{name}_out"

    def _quantized(self, value: str, index: int) -> str:
        """`value` rounded to the grid of a tensor, with the activation in between that clips it."""
        q = self.graph.tensors[index].quantization
        scale, zero = self._constant(np.float32(q.scale[0])), self._constant(np.int8(q.zeroPoint[0]))
        codes = self._node("QuantizeLinear", [value, scale, zero])
        return self._node("DequantizeLinear", [codes, scale, zero])

    def _data(self, index: int) -> Any:
        tensor = self.graph.tensors[index]
        dtype = {self.s.TensorType.INT8: np.int8, self.s.TensorType.INT32: np.int32}[tensor.type]
        data = np.asarray(self.file.buffers[tensor.buffer].data, np.uint8)
        return data.view(dtype).reshape([int(n) for n in tensor.shape])

    def _weights(self, operator: Any, perm: tuple[int, ...]) -> list[str]:
        found = []
        for index in operator.inputs[1:3]:
            scale = np.asarray(self.graph.tensors[index].quantization.scale, np.float32)
            codes = self._data(index)
            codes = codes.transpose(perm) if codes.ndim > 1 else codes
            scale = np.resize(scale, len(codes))
            zero = self._constant(np.zeros(len(codes), codes.dtype))
            inputs = [self._constant(np.ascontiguousarray(codes)), self._constant(scale), zero]
            found.append(self._node("DequantizeLinear", inputs, axis=0))
        return found

    def _activated(self, operator: Any, made: str) -> None:
        kind = getattr(operator.builtinOptions, "fusedActivationFunction", 0)
        if kind == self.s.ActivationFunctionType.RELU:
            made = self._node("Relu", [made])
        assert kind in (self.s.ActivationFunctionType.NONE, self.s.ActivationFunctionType.RELU)
        self.values[operator.outputs[0]] = self._quantized(made, operator.outputs[0])

    def _window(self, operator: Any, kernel: tuple[int, int]) -> dict[str, Any]:
        options = operator.builtinOptions
        strides = (options.strideH, options.strideW)
        pads = [0, 0, 0, 0]
        if options.padding == self.s.Padding.SAME:
            for axis in (0, 1):
                size = int(self.graph.tensors[operator.inputs[0]].shape[1 + axis])
                made = int(self.graph.tensors[operator.outputs[0]].shape[1 + axis])
                total = max((made - 1) * strides[axis] + kernel[axis] - size, 0)
                pads[axis], pads[2 + axis] = total // 2, total - total // 2
        return {"kernel_shape": kernel, "strides": strides, "pads": pads}

    def _conv_2d(self, operator: Any) -> None:
        kernel = tuple(int(n) for n in self.graph.tensors[operator.inputs[1]].shape[1:3])
        inputs = [self.values[operator.inputs[0]], *self._weights(operator, (0, 3, 1, 2))]
        self._activated(operator, self._node("Conv", inputs, **self._window(operator, kernel)))

    def _depthwise_conv_2d(self, operator: Any) -> None:
        shape = [int(n) for n in self.graph.tensors[operator.inputs[1]].shape]
        window = self._window(operator, (shape[1], shape[2]))
        inputs = [self.values[operator.inputs[0]], *self._weights(operator, (3, 0, 1, 2))]
        group = int(self.graph.tensors[operator.inputs[0]].shape[3])
        self._activated(operator, self._node("Conv", inputs, group=group, **window))

    def _fully_connected(self, operator: Any) -> None:
        inputs = [self.values[operator.inputs[0]], *self._weights(operator, (0, 1))]
        self._activated(operator, self._node("Gemm", inputs, transB=1))

    def _add(self, operator: Any) -> None:
        self._activated(operator, self._node("Add", [self.values[i] for i in operator.inputs]))

    def _average_pool_2d(self, operator: Any) -> None:
        options = operator.builtinOptions
        window = self._window(operator, (options.filterHeight, options.filterWidth))
        self._activated(operator, self._node("AveragePool", [self.values[operator.inputs[0]]], **window))

    def _reshape(self, operator: Any) -> None:
        """Of a single pixel: the order of channels does not matter."""
        shape = [int(n) for n in self.graph.tensors[operator.outputs[0]].shape]
        inputs = [self.values[operator.inputs[0]], self._constant(np.array(shape, np.int64))]
        self._activated(operator, self._node("Reshape", inputs))

    def _softmax(self, operator: Any) -> None:
        self._activated(operator, self._node("Softmax", [self.values[operator.inputs[0]]], axis=-1))
