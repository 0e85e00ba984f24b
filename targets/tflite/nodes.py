"""What lowerings ask of IR nodes: plain attributes, fused activations, float16 constants, what subgraphs read."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from ai_edge_litert import schema_py_generated as s

from tapeout.sdk import graph as g

NONE = s.ActivationFunctionType.NONE
_CLIPS = {
    (0.0, 6.0): s.ActivationFunctionType.RELU6,
    (-1.0, 1.0): s.ActivationFunctionType.RELU_N1_TO_1,
    (0.0, None): s.ActivationFunctionType.RELU,
}


def stored(value: ir.Value) -> ir.Value | None:
    """The float16 constant that `value` widens to float32, else None."""
    cast = g.producer(value, "Cast")
    half = None if cast is None else cast.inputs[0]
    if half is None or half.dtype != ir.DataType.FLOAT16 or value.dtype != ir.DataType.FLOAT:
        return None
    return half if g.is_constant(half) else None


def activation_of(node: ir.Node) -> int:
    """The fused activation that computes what `node` computes, or NONE."""
    if node.domain == "" and node.op_type == "Relu":
        return int(s.ActivationFunctionType.RELU)
    if node.domain == "" and node.op_type == "Clip":
        bounds: list[float | None] = [None, None]
        for i, value in enumerate(node.inputs[1:3]):
            if value is not None:
                number = g.scalar(value)
                if number is None:
                    return int(NONE)
                bounds[i] = float(number)
        if bounds[0] is not None:
            return int(_CLIPS.get((bounds[0], bounds[1]), NONE))
    return int(NONE)


def attributes(node: ir.Node) -> dict[str, Any]:
    """The attributes of `node` as plain Python values (tensors as arrays, graphs as they are)."""
    found: dict[str, Any] = {}
    for name in node.attributes:
        value = g.attribute(node, name)
        found[name] = value.numpy() if isinstance(value, ir.TensorProtocol) else value
    return found


def captures(*graphs: ir.Graph) -> list[ir.Value]:
    """The computed values of outer graphs that `graphs` (the subgraphs of one node) read, in order."""
    found: dict[ir.Value, None] = {}
    for graph in graphs:
        inner = [graph, *graph.subgraphs()]
        own = {v for sub in inner for v in sub.inputs}
        own |= {v for sub in inner for node in sub for v in node.outputs}
        reads = [v for sub in inner for node in sub for v in node.inputs] + [
            v for sub in inner for v in sub.outputs
        ]
        for value in reads:
            if value is not None and value not in own and not g.is_constant(value):
                found[value] = None
    return list(found)
