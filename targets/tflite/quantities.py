"""Quantities that only TFLite's rows bound."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from tapeout.passes.quantization.dynamic import rounded
from tapeout.sdk import DOMAIN, Call, Quantity, quantity
from tapeout.sdk import graph as g
from tapeout.targets.tflite.legalize import resizing
from tapeout.targets.tflite.legalize.transposed import same_pads
from tapeout.targets.tflite.nodes import captures


@quantity("resize.native", "neighbours and weights as its RESIZE has them")
def resize_native(call: Call) -> Any:
    """True where TFLite chooses the same neighbours and weights as this Resize."""
    return resizing.native(call.node)


@quantity("resize.planar", "resizing of height and width alone")
def resize_planar(call: Call) -> Any:
    """True where only axes 1 and 2 of a tensor of rank 4 are resized."""
    return resizing.planar(call.node)


@quantity("cropping.same_or_valid", "SAME or VALID cropping")
def cropping(call: Call) -> Any:
    """True where a transposed convolution crops nothing, or what TensorFlow's SAME crops."""
    node = call.node
    pads = g.attribute(node, "pads")
    if any(g.attribute(node, name) for name in ("output_shape", "output_padding")):
        return False
    if g.attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        return False
    if not pads or not any(pads):
        return True
    shape, weight = g.dims(call.input(0)), g.static_dims(call.input(1))
    if shape is None or weight is None:
        return None
    strides = g.attribute(node, "strides") or (1,) * (len(weight) - 2)
    return tuple(pads) == same_pads(shape[1:-1], tuple(strides), weight[1:-1])


def _bodies(call: Call) -> list[ir.Graph]:
    return [a.value for a in call.node.attributes.values() if a.type == ir.AttributeType.GRAPH]


@quantity("body.inputs", "tensors of known rank in and out of the subgraph")
def body_inputs(call: Call) -> Any:
    """True where all that the subgraphs of a node take, give or read from outside has a known rank."""
    values: list[ir.Value | None] = [*call.node.inputs]
    for body in _bodies(call):
        values += [*body.inputs, *body.outputs, *captures(body)]
    return all(v is None or (isinstance(v.type, ir.TensorType) and g.rank(v) is not None) for v in values)


@quantity("body.collected", "collected outputs of known shape")
def body_collected(call: Call) -> Any:
    """True where each dimension of what is collected at a step is a number or named by an input."""
    node = call.node
    (body,) = _bodies(call)
    scans = node.op_type == "Scan"
    states = len(node.inputs) - (g.attribute(node, "num_scan_inputs", 0) if scans else 2)
    known = {d for v in (*node.inputs, *captures(body), *body.inputs[: states + 2]) for d in g.dims(v) or ()}
    steps = [g.dims(v) for v in body.outputs[states + (0 if scans else 1) :]]
    return all(s is not None and all(isinstance(d, int) or d in known for d in s) for s in steps)


def _codes(call: Call) -> ir.Node | None:
    """The DequantizeLinear of the weight or the table that a node reads."""
    value = call.value("W") or call.value("data")
    return g.producer(value, "DequantizeLinear")


@quantity("weight.block", "elements that share a scale along a row")
def weight_block(call: Call) -> Any:
    """The block size of stored weights, 0 where an output channel shares a scale; in words where blocks leave a
    rest of the row."""
    node = _codes(call)
    block = 0 if node is None else int(g.attribute(node, "block_size", 0))
    shape = None if node is None else g.static_dims(node.inputs[0])
    if node is None or shape is None or not block:
        return block
    axis = int(g.attribute(node, "axis", 1))
    return block if shape[axis] % block == 0 else f"{block} with a rest"


@quantity("activations.rounded", "rounding of the activations")
def activations_rounded(call: Call) -> Any:
    """What the activations are rounded to 8 bits by while the kernel runs: "rows", "samples" or "no"."""
    return rounded(call.input(0))


@quantity("readers.rounding", "kernels that round their activations")
def readers_rounding(call: Call) -> Any:
    """True where everything that reads the result multiplies it by stored weights."""
    output = call.output()
    uses = list(output.uses())
    return (
        not output.is_graph_output()
        and bool(uses)
        and all(u.idx == 0 and u.node.domain == DOMAIN and storage_of(u.node) for u in uses)
    )


def storage_of(node: ir.Node) -> bool:
    """Whether the weight of a product is stored as codes."""
    return len(node.inputs) > 1 and g.producer(node.inputs[1], "DequantizeLinear") is not None


QUANTITIES: tuple[Quantity, ...] = (
    weight_block,
    activations_rounded,
    readers_rounding,
    resize_native,
    resize_planar,
    cropping,
    body_inputs,
    body_collected,
)
