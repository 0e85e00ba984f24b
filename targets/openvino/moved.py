"""Codes that an operator only moves are not made again: the plugin would round to them a second time.

D(Q(move(D(c))))  ->  move(D(c))        one scale and zero point, so the numbers are the same
"""

from __future__ import annotations

import onnx

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
# What moves elements, or chooses among them, by its inputs that hold these: the first, or all.
MOVES = frozenset(
    {
        "MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split", "Expand", "Gather",
        "DepthToSpace",
    }
)  # fmt: skip
ALL = frozenset({"Concat"})

Parameters = tuple[bytes, ...]


def carry(graph: onnx.GraphProto) -> None:
    """Take out of `graph` what makes codes again."""
    numbers = {t.name: t for t in graph.initializer if len(t.dims) == 0 or list(t.dims) == [1]}
    makers = {name: node for node in graph.node for name in node.output}

    def parameters(node: onnx.NodeProto | None, kind: str) -> Parameters | None:
        if node is None or node.op_type != kind or node.domain not in ("", "ai.onnx"):
            return None
        found = [numbers.get(name) for name in node.input[1:] if name]
        if any(t is None for t in found):
            return None
        return tuple(
            bytes([t.data_type]) + onnx.numpy_helper.to_array(t).tobytes() for t in found if t is not None
        )

    kept = {v.name for v in graph.output} | {
        n for node in graph.node for a in node.attribute for n in outside(a)
    }
    instead: dict[str, str] = {}
    for node in graph.node:
        codes = makers.get(node.input[0]) if node.op_type == DEQUANTIZE else None
        told = parameters(node, DEQUANTIZE)
        if codes is None or told is None or parameters(codes, QUANTIZE) != told or node.output[0] in kept:
            continue
        mover = makers.get(codes.input[0])
        if mover is None or mover.op_type not in MOVES | ALL:
            continue
        moved = list(mover.input) if mover.op_type in ALL else list(mover.input[:1])
        if all(parameters(makers.get(name), DEQUANTIZE) == told for name in moved):
            instead[node.output[0]] = codes.input[0]
    if not instead:
        return
    for node in graph.node:
        node.input[:] = [instead.get(name, name) for name in node.input]
    nodes = _living(graph, kept)
    del graph.node[:]
    graph.node.extend(nodes)


def _living(graph: onnx.GraphProto, kept: set[str]) -> list[onnx.NodeProto]:
    """The nodes of `graph` that something reads, in their order."""
    needed, nodes = set(kept), []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.append(node)
    return nodes[::-1]


def outside(attribute: onnx.AttributeProto) -> set[str]:
    """The names that a graph in `attribute` reads, its own among them."""
    if attribute.type != onnx.AttributeProto.GRAPH:
        return set()
    found = {v.name for v in attribute.g.output}
    for node in attribute.g.node:
        found |= set(node.input) | {name for a in node.attribute for name in outside(a)}
    return found
