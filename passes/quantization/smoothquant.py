"""Scales per channel where integers and real numbers meet, which the weights beside them take in.

    X real, read by products:     P(X, W)  =  P(X / s, W s)            X / s is quantized, W s stored
    Y read as real numbers:       P(X, W)  =  P(X, W / d) d            Y / d is quantized, the product by d is real

SmoothQuant (G. Xiao et al., ICML 2023) for the first: s shares the levels between activations and weights. Here
s = max|X|^a / max|W|^(1 - a), a as the estimated error of both is least. d makes all outputs as large: weights
have scales per output channel, so that this costs no precision anywhere. Both multiplications are float operators
beside others. Statistics of what is scaled follow from those of its channels, exactly but for the histogram.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.calibration.statistics import Channels, Statistics, TensorStats
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.functions import DOMAIN
from tapeout.compiler.ir.origin import merged_origin
from tapeout.compiler.operations import LAST
from tapeout.compiler.rewriting import Builder, Changes
from tapeout.passes.quantization.ranges import LAYOUT

Array = np.ndarray[Any, Any]

# Shares of the activations' size that s may take on.
SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
# The estimated error must shrink by this factor for a multiplication to be put in.
GAIN = 2.0
# Channels are scaled by at most this much against the largest.
FARTHEST = 2.0**-10
# What calibration has not seen may be larger: a channel is taken to reach so far beyond what was measured, within
# the largest.
ROOM = 1.3
# How many times the root of its mean square the largest number of a channel is, where nothing more is known.
PEAK = 4.0


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
        uses = [u for u in value.uses() if u.idx == 0 and self._whole(u.node)]
        channels = self.statistics.channels(value, -1)
        weights = [real_weight(u.node) for u in uses]
        if not uses or channels is None or any(w is None for w in weights):
            return
        found = shared([w for w in weights if w is not None], channels.absmax)
        if found is None:
            return
        nodes = [u.node for u in uses]
        op = Builder(nodes[0], merged_origin(nodes))
        scaled = self._multiplied(op, value, 1 / found, channels, value.name or "smooth")
        for node in nodes:
            node.replace_input_with(0, scaled)
            _scale_weight(node, found, inputs=True)

    def _whole(self, node: ir.Node) -> bool:
        """Whether each input channel of a product in integers has its own column of weights."""
        return (
            node.name not in self.floats
            and _is_product(node)
            and (node.op_type == "FullyConnected" or int(g.attribute(node, "group", 1)) == 1)
        )

    # --- Y ---

    def _output(self, node: ir.Node) -> None:
        if not _is_product(node) or real_weight(node) is None:
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
        _scale_weight(node, 1 / found, inputs=False)
        op = Builder(_behind(last), merged_origin([node]))
        layout = value.metadata_props.pop(LAYOUT, None)
        hint, inner = value.name or "product", g.fresh(node.graph, value.name or "product")
        scaled = op.node("Mul", [value, op.constant(found.astype(np.float32), hint=hint)], {}, hint=hint)[0]
        product = scaled.producer()
        assert product is not None
        self.made.append(product.name or "")
        self.known[inner] = _stats(channels, 1 / found, value)
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
        self.known[made.name or ""] = _stats(channels, factors, value)
        return made


def shared(weights: list[Array], size: Array) -> Array | None:
    """The scales s [C] for products with `weights` [O, ..., C] of inputs whose channels are as large as `size` [C];
    None where they would gain too little."""
    largest = float(size.max(initial=0.0))
    flat = [w.reshape(-1, w.shape[-1]).astype(np.float64) for w in weights]
    peak = np.max([np.abs(w).max(0) for w in flat], axis=0)
    if largest <= 0 or not peak.any():
        return None
    acts = roomy(size)
    peak = np.maximum(peak, FARTHEST * peak.max())
    power = sum((w**2).sum(0) for w in flat)
    rows = [np.abs(w.reshape(len(o), -1, w.shape[-1])).max(1) for w, o in zip(flat, weights, strict=True)]

    def error(scale: Array) -> float:
        activations = float(((acts / scale).max() ** 2 * (scale**2 * power)).sum())
        levels = sum(float(((r * scale).max(1) ** 2).sum()) for r in rows)
        return activations + levels * float(((acts / scale / PEAK) ** 2).sum())

    tried = [acts**a / peak ** (1 - a) for a in SHARES]
    errors = [error(s) for s in tried]
    best = int(np.argmin(errors))
    if errors[best] * GAIN > error(np.ones_like(acts)):
        return None
    found = tried[best]
    return np.asarray(found / np.exp(np.log(found).mean()))


def roomy(size: Array) -> Array:
    """How large channels may become that were as large as `size`."""
    largest = float(size.max(initial=0.0))
    return np.asarray(np.clip(ROOM * size.astype(np.float64), FARTHEST * largest, largest))


def real_weight(node: ir.Node) -> Array | None:
    """The weight of a product as float32 numbers: a constant, or one behind Cast; None where it is neither, and
    where others read it too."""
    value = node.inputs[1]
    cast = g.producer(value, "Cast")
    held = cast.inputs[0] if cast is not None else value
    if value is None or held is None or g.only_use(value) is None or g.only_use(held) is None:
        return None
    array = g.constant(held)
    return None if array is None else array.astype(np.float32)


def _is_product(node: ir.Node) -> bool:
    return node.domain == DOMAIN and (
        node.op_type == "FullyConnected" or LAST.sub("", node.op_type) == "Conv"
    )


def _scale_weight(node: ir.Node, factors: Array, inputs: bool) -> None:
    """Multiply the weight of `node` along its inputs, or weight and bias along its outputs; codes of the outputs
    stay the same."""
    value = node.inputs[1]
    cast = g.producer(value, "Cast")
    held = cast.inputs[0] if cast is not None else value
    assert held is not None and held.const_value is not None and isinstance(node.graph, ir.Graph)
    shape = g.static_dims(held)
    assert shape is not None
    axis = len(shape) - 1 if inputs else 0
    make = functools.partial(_scaled, held.const_value, factors, axis)
    hint = (value.name if value is not None else None) or "weight"
    node.replace_input_with(1, g.add_lazy_constant(node.graph, shape, ir.DataType.FLOAT, make, hint))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    offset = g.constant(bias)
    if not inputs and bias is not None and offset is not None:
        moved = (offset.astype(np.float64) * factors).astype(np.float32)
        node.replace_input_with(2, g.add_constant(node.graph, moved, bias.name or "bias"))


def _scaled(tensor: ir.TensorProtocol, factors: Array, axis: int) -> Array:
    array = tensor.numpy().astype(np.float64)
    shape = [-1 if i == axis else 1 for i in range(array.ndim)]
    made: Array = (array * factors.reshape(shape)).astype(np.float32)
    return made


def _stats(channels: Channels, factors: Array, value: ir.Value) -> TensorStats:
    """Statistics of `value` times `factors` along its last axis."""
    rank = g.rank(value) or 2
    low, high, mean = (
        (a.astype(np.float64) * factors).astype(np.float32)
        for a in (channels.min, channels.max, channels.mean)
    )
    least, most = float(low.min()), float(high.max())
    count = len(factors)
    return TensorStats(
        count, least, most, float(mean.mean()), least, most, None, rank, {rank - 1: Channels(low, high, mean)}
    )


def _behind(node: ir.Node) -> ir.Node | ir.Graph:
    """Where to make nodes that stand right behind `node`."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    order = list(graph)
    at = order.index(node) + 1
    return order[at] if at < len(order) else graph
