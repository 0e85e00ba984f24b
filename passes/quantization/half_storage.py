"""Weights stored as float16: the scheme "float16".

    w (float32 constant)  ->  Cast(w in float16)

for the large float32 constants, except those that float16 does not hold well and those that shall stay wide.
Matrices and kernels are rounded such that the errors of each output cancel (compiler/rounding.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.external import release
from tapeout.compiler.ir.origin import merged_origin, set_origin
from tapeout.compiler.ir.save import RELEASE
from tapeout.compiler.narrowing import mark_narrowed, matches
from tapeout.compiler.recipe import Recipe
from tapeout.compiler.rewriting import Changes, Declined
from tapeout.compiler.rounding import steered
from tapeout.compiler.schemes import FLOAT16

LARGEST = float(np.finfo(np.float16).max)
# RMS of the rounding errors over RMS of the values, at most. Where float16 has its full precision it is
# 2**-12 to 2**-11; more means that the values lie where it has less, below 6e-5.
ROUNDING = 2.0**-10
# Operators by the input that is a matrix or a kernel, and the axis of it that numbers the outputs.
OUTPUTS = {
    ("tapeout", "ConvNHWC"): (1, 0),
    ("tapeout", "ConvNDHWC"): (1, 0),
    ("tapeout", "ConvTransposeNHWC"): (1, 0),
    ("tapeout", "FullyConnected"): (1, 0),
    ("", "MatMul"): (1, -1),
    ("", "Conv"): (1, 0),
}
SMALL = 1e-10
# Elements that are looked at together.
BLOCK = 1 << 18


@dataclass(frozen=True)
class HalfStorage:
    """Store float32 constants as float16; computation stays float32.

    Not those of less than `least` elements, which the operator that widens them would outweigh; not the
    smallest that together hold at most `share` of the bytes (biases, scales, depthwise kernels: they save
    little, and as each of their elements serves a whole channel, their rounding costs most); not those whose
    name fits one of the patterns `wide`.
    """

    least: int = 256
    share: float = 0.03
    wide: tuple[str, ...] = ()
    recipe: Recipe = field(default_factory=Recipe)
    otherwise: bool = True
    name: str = "half-storage"

    def __call__(self, model: ir.Model) -> Changes:
        if self.otherwise:
            values = (v for n in model.graph for v in (*n.inputs, *n.outputs) if v is not None)
            self.recipe.check(model.graph, {v.name or "" for v in values})
        weights = [w for w in _weights(model) if self._asked(w[1])]
        total = sum(tensor.nbytes for _, _, tensor in weights)
        small, seen = set(), 0
        for _, value, tensor in sorted(weights, key=lambda w: w[2].size):
            seen += tensor.nbytes
            if tensor.size >= self.least and seen > self.share * total:
                break
            small.add(value)
        count = 0
        declined: list[Declined] = []
        for graph, value, tensor in weights:
            if tensor.dtype != ir.DataType.FLOAT or value in small:
                continue
            name = value.name or ""
            reason = "it is to stay float32" if matches(name, self.wide) else unfit(tensor)
            if tensor.nbytes >= RELEASE:
                release()
            if reason is not None:
                declined.append(Declined(self.name, name, reason))
                continue
            _narrow(graph, value, tensor)
            count += 1
        return Changes(count, tuple(declined))

    def _asked(self, value: ir.Value) -> bool:
        """Whether every reader of a weight is to read float16, by its rule or by what holds without one."""
        stated = (self.recipe.scheme_of(use.node) for use in value.uses())
        return all(self.otherwise if s is None else s == FLOAT16 for s in stated)


def _weights(model: ir.Model) -> Iterator[tuple[ir.Graph, ir.Value, ir.TensorProtocol]]:
    """The constants that are float32, or float16 already, with the graph that holds each."""
    for graph in g.graphs(model):
        for value in list(graph.initializers.values()):
            tensor = value.const_value
            if tensor is None or value.is_graph_output() or not value.uses():
                continue
            if tensor.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
                yield graph, value, tensor


def unfit(tensor: ir.TensorProtocol) -> str | None:
    """Why float16 does not hold the float32 `tensor`, else None."""
    array = tensor.numpy().reshape(-1)
    power = noise = 0.0
    for start in range(0, array.size, BLOCK):
        block: np.ndarray[Any, Any] = array[start : start + BLOCK]
        largest = float(np.maximum(block.max(), -block.min()))
        if not largest <= LARGEST:
            return f"{largest:g} is beyond float16"
        gap = block - block.astype(np.float16).astype(np.float32)  # without rounding
        if largest < SMALL:  # squares leave float32
            block, gap = block.astype(np.float64), gap.astype(np.float64)
        power += float(np.vdot(block, block))
        noise += float(np.vdot(gap, gap))
    if noise > ROUNDING**2 * power:
        rounding = (noise / power) ** 0.5 if power else 1.0
        return f"float16 would round its values by {rounding:.1g} of themselves"
    return None


def _narrow(graph: ir.Graph, value: ir.Value, tensor: ir.TensorProtocol) -> None:
    readers = [use.node for use in value.uses()]
    axis = _outputs(value)
    first = next((n for n in graph if n in readers), None) or graph[0]
    half = g.add_lazy_constant(
        graph,
        [int(d) for d in tensor.shape],  # type: ignore[arg-type]
        ir.DataType.FLOAT16,
        lambda: tensor.numpy().astype(np.float16) if axis is None else steered(tensor.numpy(), axis),
        value.name or "weight",
    )
    mark_narrowed(half, value)
    cast = ir.node("Cast", [half], {"to": int(ir.DataType.FLOAT)}, name=g.fresh(graph, "widen"))
    made = cast.outputs[0]
    made.name, made.dtype, made.shape = g.fresh(graph, value.name or "weight"), ir.DataType.FLOAT, value.shape
    set_origin(cast, merged_origin(readers[:1]))
    graph.insert_before(first, cast)
    value.replace_all_uses_with(made)
    if value.name is not None:
        del graph.initializers[value.name]


def _outputs(value: ir.Value) -> int | None:
    """The axis of a weight along which the outputs of all its readers are numbered, if there is one."""
    rank = g.rank(value) or 0
    axes = set()
    for node, place in value.uses():
        expected, axis = OUTPUTS.get((node.domain, node.op_type), (-1, 0))
        axes.add(axis % rank if place == expected and rank > 1 else None)
    return axes.pop() if len(axes) == 1 else None
