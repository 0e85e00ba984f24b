"""Quantities that only the circuit's rows bound."""

from __future__ import annotations

import functools
import math
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir

from tapeout.compiler.operators import operator_name
from tapeout.sdk import Call, Quantity, axes, quantity
from tapeout.sdk import graph as g

QUANTITIES: list[Quantity] = []

_FUSING = ("ConvNHWC", "FullyConnected", "AveragePoolNHWC", "ReduceMean", "Add")
_PASSING = ("QuantizeLinear", "DequantizeLinear", "Reshape", "Transpose")


def own(name: str, label: str) -> Callable[[Callable[[Call], Any]], Quantity]:
    def make(function: Callable[[Call], Any]) -> Quantity:
        QUANTITIES.append(quantity(name, label)(function))
        return QUANTITIES[-1]

    return make


@own("fpga.batch", "batch")
def _(call: Call) -> Any:
    """The first dimension of what a node makes, of two or more; 1 for fewer."""
    dims = g.static_dims(call.output(0))
    return None if dims is None else dims[0] if len(dims) > 1 else 1


@own("fpga.rows", "rows of the product")
def _(call: Call) -> Any:
    """The product of all dimensions of the first input but the last."""
    dims = g.static_dims(call.input(0))
    return None if dims is None else math.prod(dims[:-1])


@own("fpga.computed", "computed operands")
def _(call: Call) -> Any:
    """True where no operand is a constant, quantized or not."""
    return not any(_constant(v) for v in call.node.inputs)


@own("fpga.divisor", "one divisor for all windows")
def _(call: Call) -> Any:
    """True where an average divides by the kernel's area at every place."""
    pads = call.attribute("pads")
    inside = not isinstance(pads, tuple) or not any(pads)
    return inside or call.attribute("count_include_pad") == 1


@own("fpga.fused", "an activation that the node in front computes along")
def _(call: Call) -> Any:
    """True where an activation alone reads a node that clips its codes."""
    value = call.input(0)
    made = None if value is None else value.producer()
    return made is not None and made.op_type in _FUSING and g.only_use(made.outputs[0]) is call.node


@own("fpga.border", "numbers of the model's inputs or of the circuit")
def _(call: Call) -> Any:
    """True where a QuantizeLinear reads an input of the model or what an operator with a row makes."""
    value = call.input(0)
    made = None if value is None else value.producer()
    return made is None or operator_name(made) in _operators()


@own("fpga.pixels", "a mean over all pixels")
def _(call: Call) -> Any:
    """True where the axes are all those between the batch and the channels, which are last."""
    count, found = g.rank(call.input(0)), axes(call)
    if count is None or not isinstance(found, tuple):
        return None
    return count > 2 and sorted(a % count for a in found) == list(range(1, count - 1))


@own("fpga.last", "an output of the model")
def _(call: Call) -> Any:
    """True where a node makes an output of the model that nothing else reads."""
    return call.output(0).is_graph_output() and not call.output(0).uses()


@own("fpga.order", "a transposition outside the circuit")
def _(call: Call) -> Any:
    """True where a transposition moves nothing, or is done with the inputs, the outputs or the weights of products."""
    dims, perm = g.static_dims(call.input(0)), g.attribute(call.node, "perm")
    if dims is None:
        return None
    moved = [a for a in (perm or range(len(dims))[::-1]) if dims[a] != 1]
    return moved == sorted(moved) or _from_input(call.node) or _to_products(call.output(0))


@functools.cache
def _operators() -> frozenset[str]:
    """The operators that have rows."""
    return frozenset(tomllib.loads(Path(__file__).with_name("target.toml").read_text())["op"])


def _from_input(node: ir.Node) -> bool:
    value = node.inputs[0]
    while value is not None and not value.is_graph_input():
        made = value.producer()
        if made is None or made.op_type not in _PASSING or g.only_use(value) is None:
            return False
        value = made.inputs[0]
    return value is not None and g.only_use(value) is not None


def _to_products(value: ir.Value) -> bool:
    readers = [u.node for u in value.uses()]
    return all(
        n.op_type == "FullyConnected" or (n.op_type in _PASSING and _to_products(n.outputs[0]))
        for n in readers
    )


def _constant(value: ir.Value | None) -> bool:
    made = g.producer(value, "DequantizeLinear")
    return g.is_constant(value if made is None else made.inputs[0])
