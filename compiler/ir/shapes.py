"""Types and shapes of values: one node at a time, and the whole graph with related symbolic dimensions."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx import shape_inference

from tapeout.compiler.ir import graph as g

# Constants of up to this many elements are given to inference as data (shapes, axes, pads, repeats).
DATA_LIMIT = 1024


def infer_node(node: ir.Node) -> None:
    """Set dtype and shape of the outputs of `node` from its inputs, by ONNX's own inference.

    What cannot be inferred stays as it is; a known shape is only made more precise.
    """
    opset = 25
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return
    inputs = [v for v in node.inputs if v is not None]
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for value in inputs:
        assert value.name
        if value.type is not None:
            proto = onnx.TypeProto()
            ir.serde.serialize_type_into(proto, value.type)
            if value.shape is not None:
                ir.serde.serialize_shape_into(proto, value.shape)
            types[value.name] = proto
        if g.is_constant(value) and value.const_value is not None and value.const_value.size <= DATA_LIMIT:
            data[value.name] = ir.serde.serialize_tensor(value.const_value)
    try:
        found = shape_inference.infer_node_outputs(
            schema, ir.serde.serialize_node(node), types, data,
            opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=13,
        )  # fmt: skip
    except (shape_inference.InferenceError, RuntimeError, TypeError):
        return
    for value in node.outputs:
        proto = found.get(value.name or "")
        if proto is None or proto.WhichOneof("value") is None:
            continue
        value.type = ir.serde.deserialize_type_proto_for_type(proto)
        shape = ir.serde.deserialize_type_proto_for_shape(proto)
        if shape is not None:
            value.shape = shape
