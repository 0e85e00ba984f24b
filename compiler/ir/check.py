"""Is this graph one of ours? Run by the driver before the first pass and after every pass."""

from __future__ import annotations

import onnx_ir as ir

from tapeout.compiler.ir.functions import DOMAIN, OPSET, digest
from tapeout.compiler.ir.origin import origin


def digests(model: ir.Model) -> dict[ir.OperatorIdentifier, str]:
    """The digest of every function body, to be given to `faults` after a pass."""
    return {key: digest(function) for key, function in model.functions.items()}


def faults(model: ir.Model, frozen: dict[ir.OperatorIdentifier, str] | None = None) -> list[str]:
    """What is wrong with `model` by the conventions of the IR, one line each, the first twenty; empty if nothing."""
    found: list[str] = []
    if model.graph.opset_imports.get("") != OPSET:
        found.append(f"the graph imports opset {model.graph.opset_imports.get('')}, expected {OPSET}")
    for key, before in (frozen or {}).items():
        function = model.functions.get(key)
        if function is not None and digest(function) != before:
            found.append(f"the body of function {key[0]}::{key[1]} has been changed")
    node_names: set[str] = set()
    value_names: set[str] = set()
    _walk(model, model.graph, frozenset(), node_names, value_names, found)
    return found[:20]


def _walk(
    model: ir.Model,
    graph: ir.Graph,
    outer: frozenset[ir.Value],
    nodes: set[str],
    names: set[str],
    found: list[str],
) -> None:
    known = set(graph.inputs)
    for name, value in graph.initializers.items():
        if value.const_value is None:
            found.append(f"initializer '{name}' has no data")
        if value in known:
            found.append(f"initializer '{name}' is also a graph input")
        if value.type is None or value.shape is None:
            found.append(f"initializer '{name}' has no type or shape")
        known.add(value)
    for value in known:
        _unique(value, names, found)
    for node in graph:
        label = f"{node.op_type} '{node.name}'"
        if not node.name or node.name in nodes:
            found.append(f"{label}: the node name is missing or used twice")
        nodes.add(node.name or "")
        if not origin(node):
            found.append(f"{label}: no origin")
        if (
            node.domain not in ("", "ai.onnx")
            and node.op_identifier() not in model.functions
            and node.domain == DOMAIN
        ):
            found.append(f"{label}: no function {node.domain}::{node.op_type} in the model")
        if node.domain == "" and node.op_type == "Constant":
            found.append(f"{label}: constants are initializers")
        for read in node.inputs:
            if read is not None and read not in known and read not in outer:
                found.append(f"{label}: reads '{read.name}' before it is made")
        for a in node.attributes.values():
            for sub in (
                (a.value,)
                if a.type == ir.AttributeType.GRAPH
                else a.value
                if a.type == ir.AttributeType.GRAPHS
                else ()
            ):
                _walk(model, sub, outer | known, nodes, names, found)
        for value in node.outputs:
            known.add(value)
            if value.name != "":
                _unique(value, names, found)
            if value.type is None and (value.uses() or value.is_graph_output()):
                found.append(f"{label}: the type of output '{value.name}' is not known")
    for value in graph.outputs:
        if value not in known and value not in outer:
            found.append(f"graph output '{value.name}' is made by no node")


def _unique(value: ir.Value, names: set[str], found: list[str]) -> None:
    if not value.name or value.name in names:
        found.append(f"the value name '{value.name}' is missing or used twice")
    names.add(value.name or "")
