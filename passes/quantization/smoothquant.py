"""Scales per channel where integers and real numbers meet, which the weights beside them take in.

    X real, read by products:     P(X, W)  =  P(X / s, W s)            X / s is quantized, W s stored
    Y read as real numbers:       P(X, W)  =  P(X, W / d) d            Y / d is quantized, the product by d is real

SmoothQuant (G. Xiao et al., ICML 2023) for the first: s shares the levels between activations and weights. Here
s = max|X|^a / max|W|^(1 - a), a as the estimated error of both is least. d makes all outputs as large: weights
have scales per output channel, so that this costs no precision anywhere. Both multiplications are float operators
beside others. Statistics of what is scaled follow from those of its channels, exactly but for the histogram.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.calibration.statistics import Channels, Statistics, TensorStats
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.origin import merged_origin
from tapeout.compiler.rewriting import Builder, Changes
from tapeout.passes.quantization.ranges import LAYOUT
from tapeout.passes.quantization.scaling import (
    GAIN,
    reader,
    real_weight,
    roomy,
    scale_inputs,
    scale_outputs,
    scaled_stats,
    shared,
)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class SmoothQuant:
    """Scales what crosses between products in integers and nodes whose names are in `floats`.

    `statistics` are replaced by `result`, which knows the scaled tensors too; `made` are the names of the
    multiplications: they are to stay in floats.
    """

    statistics: Statistics
    floats: Collection[str]
    name: str = "smooth-quant"
    made: list[str] = field(default_factory=list, compare=False)
    known: dict[str, TensorStats] = field(default_factory=dict, compare=False)

    @property
    def result(self) -> Statistics:
        return replace(self.statistics, tensors={**self.statistics.tensors, **self.known})

    def __call__(self, model: ir.Model) -> Changes:
        before = len(self.made)
        values = dict.fromkeys(v for n in model.graph for v in n.outputs)
        for value in values:
            self._inputs(value)
        for node in list(model.graph):
            if node.name not in self.floats:
                self._output(node)
        return Changes(len(self.made) - before)

    # --- X ---

    def _inputs(self, value: ir.Value) -> None:
        maker = value.producer()
        if maker is None or maker.name not in self.floats:
            return
        places = [u.node for u in value.uses() if u.idx == 0 and u.node.name not in self.floats]
        known = {n: r for n in places if (r := reader(n)) is not None}
        channels = self.statistics.channels(value, -1)
        found = None if not known or channels is None else shared(list(known.values()), channels.absmax)
        if found is None or channels is None:
            return
        nodes = list(known)
        op = Builder(nodes[0], merged_origin(nodes))
        scaled = self._multiplied(op, value, 1 / found, channels, value.name or "smooth")
        for node in nodes:
            node.replace_input_with(0, scaled)
            scale_inputs(node, found)

    # --- Y ---

    def _output(self, node: ir.Node) -> None:
        if real_weight(node) is None:
            return
        value = node.outputs[0]
        reader = g.only_use(value)
        if reader is not None and reader.op_type == "Relu" and reader.name not in self.floats:
            value = reader.outputs[0]
        readers = {u.node for u in value.uses()}
        channels = self.statistics.channels(value, -1)
        if channels is None or not all(r.name in self.floats for r in readers):
            return
        if not readers and not value.is_graph_output():
            return
        size = roomy(channels.absmax)
        largest = float(size.max(initial=0.0))
        if largest <= 0 or len(size) * largest**2 < GAIN * float((size**2).sum()):
            return
        found = size / largest
        last = value.producer()
        assert last is not None and isinstance(node.graph, ir.Graph)
        scale_outputs(node, 1 / found)
        op = Builder(_behind(last), merged_origin([node]))
        layout = value.metadata_props.pop(LAYOUT, None)
        hint, inner = value.name or "product", g.fresh(node.graph, value.name or "product")
        scaled = op.node("Mul", [value, op.constant(found.astype(np.float32), hint=hint)], {}, hint=hint)[0]
        product = scaled.producer()
        assert product is not None
        self.made.append(product.name or "")
        self.known[inner] = scaled_stats(channels, 1 / found, g.rank(value) or 2)
        g.replace(node.graph, value, scaled)
        product.replace_input_with(0, value)
        value.name = inner
        if layout is not None:
            scaled.metadata_props[LAYOUT] = layout

    def _multiplied(
        self, op: Builder, value: ir.Value, factors: Array, channels: Channels, hint: str
    ) -> ir.Value:
        constant = op.constant(factors.astype(np.float32), hint=hint)
        made = op.node("Mul", [value, constant], {}, hint=hint)[0]
        node = made.producer()
        assert node is not None
        self.made.append(node.name or "")
        self.known[made.name or ""] = scaled_stats(channels, factors, g.rank(value) or 2)
        return made


def _behind(node: ir.Node) -> ir.Node | ir.Graph:
    """Where to make nodes that stand right behind `node`."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    order = list(graph)
    at = order.index(node) + 1
    return order[at] if at < len(order) else graph
