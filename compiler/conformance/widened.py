"""bfloat16 as a reference computes it: in float32, each result rounded once.

ONNX Runtime has few kernels in bfloat16, and `onnx.reference` rounds every partial sum: neither is what a kernel that
accumulates in float32 is to be held to.
"""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import onnx

from tapeout.compiler.conformance.case import Array

NARROW, WIDE = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
TYPES = ("to", "dtype", "output_dtype")  # attributes that name a type


def narrow(proto: onnx.ModelProto) -> bool:
    """Whether inputs, weights or results of the graph are bfloat16."""
    graph = proto.graph
    types = [v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)]
    return NARROW in types or any(t.data_type == NARROW for t in graph.initializer)


def widened(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `proto` with float32 in place of bfloat16 throughout."""
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    _widen(made.graph)
    return made


def _widen(graph: onnx.GraphProto) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == NARROW:
            value.type.tensor_type.elem_type = WIDE
    for tensor in graph.initializer:
        _tensor(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in TYPES and attribute.i == NARROW:
                attribute.i = WIDE
            _tensor(attribute.t)
            _widen(attribute.g)


def _tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == NARROW:
        array = onnx.numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def fed(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """`inputs` for the widened model."""
    return {k: v.astype(np.float32) if v.dtype == ml_dtypes.bfloat16 else v for k, v in inputs.items()}
