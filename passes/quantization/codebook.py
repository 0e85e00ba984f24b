"""Weights that are looked up in a table: the logarithmic, codebook and product schemes.

    W -> s * Gather(table, Cast(codes))              table [L]: one number for each code
    W -> s * Reshape(Gather(table, Cast(codes)))     table [L, d]: d numbers along the inputs for each code

with a scale `s` for each output channel. `logarithmic` has powers of two, `codebook` the centres that k-means finds
among the normalised weights (Han et al., Deep Compression, ICLR 2016), `product` the same among vectors of them
(Stock et al., And the Bit Goes Down, ICLR 2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.errors import UnsupportedError
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.origin import merged_origin, set_origin
from tapeout.compiler.ir.shapes import infer_node
from tapeout.compiler.rewriting import Changes
from tapeout.compiler.schemes import Scheme
from tapeout.passes.quantization.codes import LEAST, matrix, packed
from tapeout.passes.quantization.logarithmic import nearest_power, powers_of_two
from tapeout.passes.quantization.weights import Place, readers

Array = np.ndarray[Any, Any]

# Elements of a vector of the product scheme, and how many vectors the table holds.
LENGTH, VECTORS = 2, 256
# Steps of k-means, and how many numbers or vectors it looks at.
STEPS, SEEN = 16, 1 << 16


@dataclass(frozen=True)
class TabulateWeights:
    """Store the weights of products and tables as codes of a table, one table for each weight."""

    scheme: Scheme
    name: str = "tabulate-weights"

    def __call__(self, model: ir.Model) -> Changes:
        made: dict[ir.Value, ir.Value] = {}
        count = 0
        for node, place in readers(model):
            value = node.inputs[place.position]
            assert value is not None
            if value not in made:
                made[value] = self._table(model.graph, node, place, value)
            node.replace_input_with(place.position, made[value])
            count += 1
        g.remove_dead(model.graph)
        if not count:
            raise UnsupportedError(
                f"scheme '{self.scheme.name}' stores no weight of this model",
                hint="export it without --quantize, or choose another scheme",
            )
        return Changes(count)

    def _table(self, graph: ir.Graph, node: ir.Node, place: Place, value: ir.Value) -> ir.Value:
        assert value.const_value is not None and self.scheme.weight is not None
        array = value.const_value.numpy()
        table, codes, scale = tabulated(matrix(array, place.axis), self.scheme)
        shape = array.shape
        axis = place.axis % len(shape)
        moved = (shape[axis], *(d for i, d in enumerate(shape) if i != axis))
        name = value.name or "weight"
        held = g.add_constant(graph, packed(codes, self.scheme.weight), name)
        where = self._node(graph, node, "Cast", [held], {"to": int(ir.DataType.INT32)})
        found = self._node(graph, node, "Gather", [g.add_constant(graph, table, f"{name}_table"), where])
        wide = g.add_constant(graph, scale.reshape(-1, *[1] * (len(shape) - 1)), f"{name}_scale")
        if found.shape != ir.Shape(moved):
            target = g.add_constant(graph, np.array(moved, np.int64), "shape")
            found = self._node(graph, node, "Reshape", [found, target])
        result = self._node(graph, node, "Mul", [found, wide])
        if axis:
            back = [*range(1, axis + 1), 0, *range(axis + 1, len(shape))]
            result = self._node(graph, node, "Transpose", [result], {"perm": back})
        return result

    @staticmethod
    def _node(
        graph: ir.Graph,
        reader: ir.Node,
        op: str,
        inputs: list[ir.Value],
        attributes: dict[str, Any] | None = None,
    ) -> ir.Value:
        made = ir.node(op, inputs, attributes or {}, name=g.fresh(graph, op.lower()))
        made.outputs[0].name = g.fresh(graph, op.lower())
        set_origin(made, merged_origin([reader]))
        anchor = reader if reader.graph is graph else graph[0]
        graph.insert_before(anchor, made)
        infer_node(made)
        return made.outputs[0]


def tabulated(weight: Array, scheme: Scheme) -> tuple[Array, Array, Array]:
    """A table, codes and scales [O] of a matrix [O, K]: table [L] and codes [O, K], or table [L, d] and codes
    [O, K / d]."""
    assert scheme.weight is not None
    largest = np.maximum(np.abs(weight).max(1, initial=0), LEAST).astype(np.float32)
    if scheme.table == "logarithmic":
        scale = np.exp2(np.ceil(np.log2(largest))).astype(np.float32)
        table = powers_of_two(scheme.weight.bitwidth)
        return table, nearest_power(weight / scale[:, None], table), scale
    scale = np.maximum(np.sqrt((weight.astype(np.float64) ** 2).mean(1)), LEAST).astype(np.float32)
    normal = weight / scale[:, None]
    length = LENGTH if scheme.table == "product" and weight.shape[1] % LENGTH == 0 else 1
    vectors = normal.reshape(-1, length)
    centres = kmeans(vectors, VECTORS if scheme.table == "product" else 1 << scheme.weight.bitwidth)
    codes = nearest(vectors, centres).reshape(len(weight), -1)
    return (centres[:, 0] if length == 1 else centres), codes.astype(np.uint8), scale


def kmeans(vectors: Array, count: int) -> Array:
    """`count` centres [count, d] of `vectors` [n, d] with little squared distance, float32; always the same."""
    draw = np.random.default_rng(0)
    seen = (
        vectors if len(vectors) <= SEEN else vectors[np.sort(draw.choice(len(vectors), SEEN, replace=False))]
    )
    seen = seen.astype(np.float64)
    if seen.shape[1] == 1:
        places = (np.arange(count) + 0.5) / count
        centres = np.quantile(seen, places, axis=0)
    else:
        centres = seen[draw.choice(len(seen), count, replace=len(seen) < count)]
    for _ in range(STEPS):
        owner = nearest(seen, centres)
        members = np.bincount(owner, minlength=count)
        sums = np.stack([np.bincount(owner, seen[:, i], count) for i in range(seen.shape[1])], 1)
        alive = members > 0
        centres[alive] = sums[alive] / members[alive, None]
    return np.asarray(centres, np.float32)


def nearest(vectors: Array, centres: Array) -> Array:
    """The index of the nearest centre to each vector."""
    found = np.empty(len(vectors), np.int64)
    if centres.shape[1] == 1:
        order = np.argsort(centres[:, 0], kind="stable")
        middles = (centres[order[1:], 0] + centres[order[:-1], 0]) / 2
        found[:] = order[np.searchsorted(middles, vectors[:, 0])]
        return found
    half = (centres.astype(np.float64) ** 2).sum(1) / 2
    for start in range(0, len(vectors), 4096):
        part = vectors[start : start + 4096]
        found[start : start + 4096] = np.argmin(half - part @ centres.T, 1)
    return found
