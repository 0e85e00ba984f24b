"""Weights in four bits that stand for unevenly spaced numbers, in blocks along the inputs: nf4 and mxfp4.

    FullyConnected(x, W [O, I], b)  ->  FullyConnected(x, Reshape(Gather(table [16], codes) * scale [O, I / g, 1]), b)

`nf4` has the quantiles of a normal distribution between -1 and 1 and a scale in half for 64 inputs (T. Dettmers et al.,
QLoRA, NeurIPS 2023), `mxfp4` floats of one sign, two exponent and one mantissa bits and a power of two for 32 (Open
Compute Project, Microscaling Formats 1.0). Tables that are looked up get int4 in blocks of the same size: of these
types the plugin would make floats when it loads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.passes.quantization.codes import storable
from tapeout.passes.quantization.report import META
from tapeout.passes.quantization.weights import BITS, StoreWeights, readers
from tapeout.sdk import (
    WEIGHTS,
    Changes,
    Declaration,
    Declined,
    Recipe,
    Scheme,
    UnsupportedError,
    merged_origin,
    set_origin,
    source_name,
)
from tapeout.sdk import graph as g

Array = np.ndarray[Any, Any]

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
# By scheme: the numbers that codes stand for, and OpenVINO's name of the type.
TABLES: Mapping[str, tuple[Array, str]] = {
    "nf4": (np.array(NF4, np.float32), "nf4"),
    "mxfp4": (np.array(E2M1, np.float32), "f4e2m1"),
}
# Rows that are worked on together.
CHUNK = 1 << 20
LEAST = 2.0**-100


@dataclass(frozen=True)
class FloatCodes:
    """Store the weights of products as codes of `scheme`'s table, and tables as int4."""

    scheme: Scheme
    declaration: Declaration
    recipe: Recipe = field(default_factory=Recipe)
    name: str = "float-codes"

    def __call__(self, model: ir.Model) -> Changes:
        count, left = 0, {}
        made: dict[ir.Value, ir.Value] = {}
        for node, place in readers(model):
            asked = self.recipe.scheme_of(node)
            value = node.inputs[place.position]
            if place.table or value is None or (asked is not None and asked != self.scheme.name):
                continue
            shape = g.static_dims(value)
            if node.op_type != "FullyConnected" or shape is None or shape[1] % self.scheme.block:
                left[node] = f"scheme {self.scheme.name}: its inputs are no multiple of {self.scheme.block}"
                continue
            if value not in made:
                made[value] = self._stored(model.graph, node, value)
            node.replace_input_with(place.position, made[value])
            count += 1
        if not count:
            raise UnsupportedError(
                f"scheme '{self.scheme.name}' stores no weight of this model",
                hint="export it without --quantize, or choose another scheme",
                nodes=[source_name(n) for n in left][:10],
            )
        g.remove_dead(model.graph)
        known = model.meta.setdefault(META, {"left": {}, "requantized": []})
        known["left"] = {**known["left"], **left}
        count += self._tables(model)
        return Changes(count, tuple(Declined(self.name, n.name or "", why) for n, why in left.items()))

    def _tables(self, model: ir.Model) -> int:
        if not any(place.table for _, place in readers(model)):
            return 0
        blocks = replace(WEIGHTS["w4"], block=self.scheme.block)
        store = StoreWeights(blocks, self.declaration, packed=True)
        return store(model).count

    def _stored(self, graph: ir.Graph, node: ir.Node, value: ir.Value) -> ir.Value:
        assert value.const_value is not None
        table, _ = TABLES[self.scheme.name]
        array = value.const_value.numpy().astype(np.float32, copy=False)
        rows, size = array.shape
        codes, scale = coded(array.reshape(rows, -1, self.scheme.block), self.scheme.name)
        name = value.name or "weight"
        held = g.add_constant(graph, codes, name)
        held.metadata_props[BITS] = "4"

        def make(op: str, inputs: list[ir.Value], attributes: Mapping[str, Any] | None = None) -> ir.Value:
            new = ir.node(op, inputs, attributes or {}, name=g.fresh(graph, f"{name}_{op.lower()}"))
            new.outputs[0].name = g.fresh(graph, name)
            new.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            set_origin(new, merged_origin([node]))
            graph.insert_before(node, new)
            return new.outputs[0]

        index = make("Cast", [held], {"to": int(ir.DataType.INT32)})
        index.type, index.shape = ir.TensorType(ir.DataType.INT32), ir.Shape(codes.shape)
        found = make("Gather", [g.add_constant(graph, table, f"{self.scheme.name}_table"), index])
        found.shape = ir.Shape(codes.shape)
        real = make("Mul", [found, g.add_constant(graph, scale, f"{name}_scale")])
        real.shape = ir.Shape(codes.shape)
        target = g.add_constant(graph, np.array([rows, size], np.int64), "shape")
        result = make("Reshape", [real, target])
        result.shape = ir.Shape([rows, size])
        return result


def coded(blocks: Array, scheme: str) -> tuple[Array, Array]:
    """The codes [O, B, g] (uint8) of a weight in blocks, and their scales [O, B, 1]."""
    table, kind = TABLES[scheme]
    most = np.abs(blocks).max(-1, keepdims=True)
    if kind == "nf4":
        scale = storable(np.maximum(most, np.float32(LEAST)))
    else:
        exponent = np.floor(np.log2(np.maximum(most, LEAST))) - np.floor(np.log2(np.abs(table).max()))
        scale = np.exp2(np.clip(exponent, -126, 127)).astype(np.float32)
    order = np.argsort(table, kind="stable")
    order = order[np.r_[True, np.diff(table[order]) > 0]]
    edges = (table[order][1:] + table[order][:-1]) / 2
    codes = np.empty(blocks.shape, np.uint8)
    step = max(1, CHUNK // max(blocks[0].size, 1))
    for start in range(0, len(blocks), step):
        part = slice(start, start + step)
        codes[part] = order[np.searchsorted(edges, blocks[part] / scale[part])]
    return codes, scale


def table_of(node: ir.Node) -> tuple[ir.Value, ir.Value, str] | None:
    """Codes, scales and the type of a Reshape that makes a weight of `TABLES` real; None for any other node."""
    multiply = g.producer(node.inputs[0], "Mul") if node.op_type == "Reshape" else None
    gather = None if multiply is None else g.producer(multiply.inputs[0], "Gather")
    cast = None if gather is None else g.producer(gather.inputs[1], "Cast")
    if multiply is None or gather is None or cast is None:
        return None
    codes, scale, table = cast.inputs[0], multiply.inputs[1], g.constant(gather.inputs[0], limit=16)
    if (
        codes is None
        or scale is None
        or table is None
        or not g.is_constant(codes)
        or not g.is_constant(scale)
    ):
        return None
    return next(((codes, scale, kind) for known, kind in TABLES.values() if same(table, known)), None)


def same(first: Array, second: Array) -> bool:
    return first.dtype == second.dtype and first.tobytes() == second.tobytes()
