"""Large weights go past the front end: it reads parameters in their places, which then become constants that share
the memory of the graph's tensors. Nothing of them is copied before the file is written.

    Conv(x, W)  ->  Conv(x, Parameter)  ->  Conv(x, Constant)
"""

from __future__ import annotations

import ctypes
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

from tapeout.sdk import InternalError, to_proto_without
from tapeout.sdk import graph as g
from tapeout.targets.openvino.runtime import openvino

Array: TypeAlias = "np.ndarray[Any, Any]"

# Inputs by which an operator reads a weight that the front end need not see.
READERS = frozenset(
    {("Conv", 1), ("ConvTranspose", 1), ("MatMul", 0), ("MatMul", 1), ("Gemm", 1), ("Gather", 0), ("Cast", 0)}
)
STREAMED = 1 << 16  # bytes of a weight from which on it goes past the front end
TYPES = {ir.DataType.FLOAT: np.float32, ir.DataType.FLOAT16: np.float16}


def shared(model: ir.Model) -> dict[str, ir.Value]:
    """The weights of `model` that go past the front end, by name."""
    return {name: value for name, value in model.graph.initializers.items() if _is_shared(model.graph, value)}


def _is_shared(graph: ir.Graph, value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or tensor.dtype not in TYPES or tensor.nbytes < STREAMED or value.is_graph_output():
        return False
    uses = list(value.uses())
    return bool(uses) and all(
        u.node.graph is graph and u.node.domain in ("", "ai.onnx") and (u.node.op_type, u.idx) in READERS
        for u in uses
    )


def outlined(model: ir.Model, weights: dict[str, ir.Value]) -> onnx.ModelProto:
    """`model` with an input in the place of each of `weights`."""
    proto = to_proto_without(model, weights.keys())
    for name, value in weights.items():
        assert value.const_value is not None
        kind = int(value.const_value.dtype.value)
        shape = g.static_dims(value)
        proto.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, shape))
    return proto


def filled(made: Any, weights: dict[str, ir.Value]) -> list[Array]:
    """Put a constant in the place of each parameter of the openvino.Model `made` that stands for one of `weights`.
    The arrays returned hold what the constants are made of: they must outlive `made`."""
    ov = openvino()
    from openvino import opset13 as op

    held: list[Array] = []
    parameters = {n: p for p in made.get_parameters() for n in p.output(0).get_names()}
    for name, value in weights.items():
        parameter = parameters.get(name)
        if parameter is None or value.const_value is None:
            raise InternalError(f"OpenVINO's front end has lost the weight '{name}'")
        array = np.ascontiguousarray(value.const_value.numpy())
        held.append(array)
        constant = op.constant(ov.Tensor(_unlocked(array), shared_memory=True), shared_memory=True, name=name)
        constant.output(0).set_names({name})
        parameter.output(0).replace(constant.output(0))
        made.remove_parameter(parameter)
    return held


def _unlocked(array: Array) -> Array:
    """The same memory, not marked as read-only: the runtime takes no other, though it writes nothing to constants."""
    if array.flags.writeable:
        return array
    content: Any = (ctypes.c_byte * array.nbytes).from_address(array.ctypes.data)
    made: Array = np.frombuffer(content, array.dtype).reshape(array.shape)
    return made
