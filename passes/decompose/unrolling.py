"""Loops whose number of trips is known and small, written out: straight lines are fused, folded and quantized.

    Loop(3, true, s) { s' = f(i, s) }  ->  s1 = f(0, s), s2 = f(1, s1), s3 = f(2, s2)
    Scan(s, x) { s', y = f(s, x_t) }   ->  the same over the slices of x; what is collected is concatenated
    Loop(0, _, s) { ... }              ->  s

Innermost loops come first, so that a loop around a small one is counted with that one written out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.origin import merged_origin, set_origin
from tapeout.compiler.ir.shapes import infer_node
from tapeout.compiler.loops import trips
from tapeout.compiler.rewriting import Builder, Changes, Declined, NodeRule

Values = dict[ir.Value, ir.Value]


@dataclass(frozen=True)
class Unroll:
    """Writes out loops of at most `trips` trips that come to at most `nodes` nodes."""

    trips: int = 16
    nodes: int = 256
    name: str = "unroll"

    def __call__(self, model: ir.Model) -> Changes:
        rules: dict[str, NodeRule] = {
            "Loop": UnrollLoop(self.trips, self.nodes),
            "Scan": UnrollScan(self.trips, self.nodes),
        }
        count, declined = 0, list[Declined]()
        for graph in reversed(list(g.graphs(model))):
            for node in [n for n in graph if n.domain == "" and n.op_type in rules]:
                rule = rules[node.op_type]
                done = rule.apply(node)
                if isinstance(done, str):
                    declined.append(Declined(rule.name, node.name or "", done))
                else:
                    count += done is not None
            g.remove_dead(graph)
        return Changes(count, tuple(declined))


@dataclass(frozen=True)
class UnrollLoop(NodeRule):
    """Loop(n, true, states) -> n times its body"""

    trips: int
    nodes: int
    ops = ("Loop",)

    def rewrite(self, op: Builder, node: ir.Node) -> Sequence[ir.Value] | str:
        body: ir.Graph = node.attributes["body"].as_graph()
        states = list(node.inputs[2:])
        count = trips(node)
        if isinstance(count, str):
            return count
        reason = _too_much(body, count, self.trips, self.nodes)
        if reason is not None:
            return reason
        if any(v is None for v in states):
            return "a state has no first value"
        steps = body.outputs[1 + len(states) :]
        shapes = [g.static_dims(v) for v in steps]
        if not count and any(s is None for s in shapes):
            return "the shape of what is collected over no trip is not known"
        now = [v for v in states if v is not None]
        collected: list[list[ir.Value]] = [[] for _ in steps]
        shared = constants(op, body)
        going = op.constant(np.array(True)) if count else None
        for trip in range(count):
            assert going is not None
            values = {body.inputs[0]: op.constant(np.array(trip, np.int64)), body.inputs[1]: going} | shared
            values |= dict(zip(body.inputs[2:], now, strict=True))
            results = copied(op, body, values)
            now = results[1 : 1 + len(now)]
            for parts, value in zip(collected, results[1 + len(now) :], strict=True):
                parts.append(value)
        made = [
            _stacked(op, parts, 0) if parts else op.constant(_nothing(value, shape or ()))
            for parts, value, shape in zip(collected, steps, shapes, strict=True)
        ]
        return [*now, *made]


@dataclass(frozen=True)
class UnrollScan(NodeRule):
    """Scan(states, x) -> its body on each slice of x"""

    trips: int
    nodes: int
    ops = ("Scan",)

    def rewrite(self, op: Builder, node: ir.Node) -> Sequence[ir.Value] | str:
        body: ir.Graph = node.attributes["body"].as_graph()
        given = [v for v in node.inputs if v is not None]
        split = len(given) - g.attribute(node, "num_scan_inputs")
        states, scanned = given[:split], given[split:]
        axes = g.attribute(node, "scan_input_axes") or (0,) * len(scanned)
        shape = g.dims(scanned[0])
        count = None if shape is None else shape[axes[0]]
        if not isinstance(count, int):
            return "the number of steps is not known"
        reason = _too_much(body, count, self.trips, self.nodes)
        if reason is not None or not count:
            return reason or "there is no step"
        steps = body.outputs[split:]
        back_in = g.attribute(node, "scan_input_directions") or (0,) * len(scanned)
        back_out = g.attribute(node, "scan_output_directions") or (0,) * len(steps)
        out_axes = g.attribute(node, "scan_output_axes") or (0,) * len(steps)
        now, shared = list(states), constants(op, body)
        collected: list[list[ir.Value]] = [[] for _ in steps]
        for step in range(count):
            values = shared | dict(zip(body.inputs[:split], now, strict=True))
            for inner, value, axis, back in zip(body.inputs[split:], scanned, axes, back_in, strict=True):
                place = np.array(count - 1 - step if back else step, np.int64)
                values[inner] = op.Gather(value, place, axis=axis)
            results = copied(op, body, values)
            now = results[:split]
            for parts, value in zip(collected, results[split:], strict=True):
                parts.append(value)
        made = [
            _stacked(op, parts[::-1] if back else parts, axis)
            for parts, axis, back in zip(collected, out_axes, back_out, strict=True)
        ]
        return [*now, *made]


def _too_much(body: ir.Graph, count: int, most: int, nodes: int) -> str | None:
    size = sum(1 for _ in body.all_nodes())
    if count > most:
        return f"{count} trips, at most {most} are written out"
    if count * size > nodes:
        return f"{count} trips of {size} nodes, at most {nodes} nodes are written out"
    return None


def _nothing(value: ir.Value, shape: Sequence[int]) -> np.ndarray[Any, Any]:
    assert value.dtype is not None
    return np.zeros((0, *shape), value.dtype.numpy())


def _stacked(op: Builder, parts: Sequence[ir.Value], axis: int) -> ir.Value:
    rows = [op.Unsqueeze(v, np.array([axis], np.int64)) for v in parts]
    made: ir.Value = op.Concat(*rows, axis=axis) if len(rows) > 1 else rows[0]
    return made


# --- copies of a body -------------------------------------------------------------------------------------


def constants(op: Builder, body: ir.Graph) -> Values:
    """The initializers of `body` as initializers of the graph that `op` builds in."""
    return {
        v: g.add_constant(op.graph, v.const_value, v.name or "constant")
        for v in body.initializers.values()
        if v.const_value is not None
    }


def copied(op: Builder, body: ir.Graph, values: Values) -> list[ir.Value]:
    """The nodes of `body` once more where `op` builds, reading `values` for its inputs and constants; what
    they make in place of the outputs of `body`."""
    graph, known = op.graph, dict(values)
    for node in body:
        hint = (node.name or node.op_type.lower()).split("~")[0]
        attributes = [_attribute(graph, a, known) for a in node.attributes.values()]
        made = ir.Node(
            node.domain,
            node.op_type,
            [None if v is None else known.get(v, v) for v in node.inputs],
            attributes,
            num_outputs=len(node.outputs),
            name=g.fresh(graph, hint),
        )
        for old, new in zip(node.outputs, made.outputs, strict=True):
            new.name = g.fresh(graph, old.name) if old.name else ""
            new.type = old.type
            known[old] = new
        set_origin(made, merged_origin([node]) or op.origins)
        op.adopt(made)
        infer_node(made)
    return [known.get(v, v) for v in body.outputs]


def _attribute(graph: ir.Graph, attribute: ir.Attr, known: Mapping[ir.Value, ir.Value]) -> ir.Attr:
    if attribute.type == ir.AttributeType.GRAPH:
        return ir.AttrGraph(attribute.name, _subgraph(graph, attribute.as_graph(), known))
    if attribute.type == ir.AttributeType.GRAPHS:
        return ir.AttrGraphs(attribute.name, [_subgraph(graph, s, known) for s in attribute.as_graphs()])
    return attribute


def _subgraph(graph: ir.Graph, inner: ir.Graph, known: Mapping[ir.Value, ir.Value]) -> ir.Graph:
    """A copy of a graph inside the body, under names of its own."""
    made = inner.clone(allow_outer_scope_values=True)
    for each in (made, *made.subgraphs()):
        g.adopt_names(each, graph)
        for value in list(each.initializers.values()):
            del each.initializers[value.name or ""]
            value.name = g.fresh(graph, value.name or "constant")
            each.register_initializer(value)
        for value in each.inputs:
            value.name = g.fresh(graph, value.name or "input")
        for node in each:
            node.name = g.fresh(graph, node.name or node.op_type.lower())
            for index, read in enumerate(node.inputs):
                if read is not None and read in known:
                    node.replace_input_with(index, known[read])
            for value in node.outputs:
                if value.name:
                    value.name = g.fresh(graph, value.name)
        for index, value in enumerate(each.outputs):
            if value in known:
                each.outputs[index] = known[value]
    return made
