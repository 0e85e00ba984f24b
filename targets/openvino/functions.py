"""Functions of the graph in operators that the front end reads, in a copy that shares the graph's tensors.

    tapeout::FullyConnected(X, W [O, I], B)  ->  Add(MatMul(X, Transpose(W)), B)

The front end leaves the Transpose before the product; `turned` makes it an attribute of that.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from tapeout.sdk import DOMAIN
from tapeout.sdk import graph as g

FULLY_CONNECTED = "FullyConnected"


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
