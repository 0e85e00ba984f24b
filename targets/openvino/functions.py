"""Functions of the graph in operators that the front end reads, in a copy that shares the graph's tensors.

    tapeout::FullyConnected(X, W [O, I], B)  ->  Add(MatMul(X, Transpose(W)), B)

The front end leaves the Transpose before the product; `turned` makes it an attribute of that.

    DequantizeLinear(codes, scale, 0)  ->  DequantizeLinear(codes, scale)        codes that are held, signed

A zero that is subtracted from a matrix is arithmetic to the plugin, which it does.

    DequantizeLinear(QuantizeLinear(x, s, z), s, z)  ->  the same in uint8 with z + 128        x computed, int8

The numbers are the same. The plugin's products have fast kernels for unsigned activations alone: what follows a
QuantizeLinear to int8 directly would be read as it is (2 to 4 times the time).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from tapeout.sdk import DOMAIN
from tapeout.sdk import graph as g

FULLY_CONNECTED = "FullyConnected"
# Behind the name of codes: uint8 ones, 128 above those of the name.
UNSIGNED = "~unsigned"


def written_out(model: ir.Model) -> ir.Model:
    """`model`, or a copy of it without calls of FullyConnected."""
    if not any(_is_product(n) for graph in g.graphs(model) for n in graph):
        return model
    copy = model.clone()
    for graph in g.graphs(copy):
        for node in [n for n in graph if _is_product(n)]:
            _write_out(graph, node)
    copy.functions.pop((DOMAIN, FULLY_CONNECTED, ""), None)
    return copy


def _is_product(node: ir.Node) -> bool:
    return node.domain == DOMAIN and node.op_type == FULLY_CONNECTED


def _write_out(graph: ir.Graph | Any, node: ir.Node) -> None:
    x, weight, bias = node.inputs
    old = node.outputs[0]
    held = g.constant(bias)
    plain = held is not None and not held.any()
    name = node.name or FULLY_CONNECTED
    turn = ir.node("Transpose", [weight], {"perm": [1, 0]}, name=f"{name}~turned")
    product = ir.node("MatMul", [x, turn.outputs[0]], name=name if plain else f"{name}~product")
    made = [turn, product]
    if not plain:
        made.append(ir.node("Add", [product.outputs[0], bias], name=name))
    for each in made:
        each.outputs[0].name = f"{each.name}~y"
        each.outputs[0].type = old.type
    new = made[-1].outputs[0]
    new.shape, new.type = old.shape, old.type
    graph.insert_before(node, made)
    known = old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    new.name = known


def turned(made: Any) -> None:
    """Let every MatMul of the openvino.Model read the matrix before a Transpose itself."""
    for op in made.get_ordered_ops():
        if op.get_type_name() != "MatMul" or op.get_attributes()["transpose_b"]:
            continue
        before = op.input_value(1).get_node()
        if before.get_type_name() != "Transpose" or len(before.output(0).get_partial_shape()) != 2:
            continue
        perm = before.input_value(1).get_node()
        if perm.get_type_name() == "Constant" and list(perm.get_data()) == [1, 0]:
            op.set_attribute("transpose_b", True)
            op.input(1).replace_source_output(before.input_value(0))
    made.validate_nodes_and_infer_types()


def centred(graph: onnx.GraphProto) -> None:
    """Leave out the zero points of held codes that are zeros."""
    made = {name for node in graph.node for name in node.output}
    small = {
        t.name: t for t in graph.initializer if t.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.INT4)
    }
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or len(node.input) < 3 or node.input[0] in made:
            continue
        zero = small.get(node.input[2])
        if zero is not None and not np.asarray(onnx.numpy_helper.to_array(zero)).astype(np.int8).any():
            del node.input[2:]


def unsigned(graph: onnx.GraphProto) -> None:
    """Let activations in int8 be uint8."""
    zeros = {t.name: t for t in graph.initializer if t.data_type == onnx.TensorProto.INT8}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    kept = {v.name for v in graph.output}
    made: dict[str, str] = {}
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or len(node.input) < 3 or node.output[0] in kept:
            continue
        pair = [node, *readers.get(node.output[0], [])]
        if any(n.op_type != "DequantizeLinear" or len(n.input) < 3 for n in pair[1:]):
            continue
        if any(n.input[2] not in zeros for n in pair):
            continue
        for each in pair:
            each.input[2] = made.setdefault(each.input[2], _shifted(graph, zeros[each.input[2]]))
        for reader in pair[1:]:
            reader.input[0] = node.output[0] + UNSIGNED
        node.output[0] += UNSIGNED  # no longer the codes of that name


def _shifted(graph: onnx.GraphProto, zero: onnx.TensorProto) -> str:
    name = f"{zero.name}{UNSIGNED}"
    if all(t.name != name for t in graph.initializer):
        array = (onnx.numpy_helper.to_array(zero).astype(np.int16) + 128).astype(np.uint8)
        graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return name
