"""What is known of a Loop before it runs: how often its body runs, whether it ends, what its states start from."""

from __future__ import annotations

import onnx_ir as ir

from tapeout.compiler.ir import graph as g

# Exporters write a bound such as this where there is none.
ENDLESS = 2**31 - 1


def bounded(node: ir.Node) -> bool:
    """Whether the Loop `node` states how often it runs at most."""
    count = g.scalar(node.inputs[0])
    return node.inputs[0] is not None and (count is None or count < ENDLESS)


def conditional(node: ir.Node) -> bool:
    """Whether a trip of the Loop `node` can decide that it is the last one."""
    body: ir.Graph = node.attributes["body"].as_graph()
    last: ir.Value | None = body.outputs[0]
    while (made := g.producer(last, "Identity")) is not None:
        last = made.inputs[0]
    return last is not body.inputs[1] and not (g.is_constant(last) and g.scalar(last))


def trips(node: ir.Node) -> int | str:
    """How often the body of the Loop `node` runs where that is known, else the reason why it is not."""
    bound, start = node.inputs[0], node.inputs[1]
    going = True if start is None else g.scalar(start)
    count = g.scalar(bound)
    if (going is not None and not going) or (count is not None and count <= 0):
        return 0
    if count is None:
        return "the number of trips is not known"
    if going is None:
        return "the condition is not known at the start"
    return "the condition is computed" if conditional(node) else int(count)


def growing_from_nothing(node: ir.Node) -> ir.Value | None:
    """The first state of the Loop `node` that starts without elements and has another shape after a trip."""
    body: ir.Graph = node.attributes["body"].as_graph()
    for first, after in zip(node.inputs[2:], body.outputs[1:], strict=False):
        shape = g.static_dims(first)
        if shape is not None and 0 in shape and g.dims(after) != shape:
            return first
    return None
