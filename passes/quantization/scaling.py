"""What scales per channel between products take: how large channels are, the scales that weights and activations share
best, weights and statistics after scaling.

    P(X / s, W s) = P(X, W)        s along the input channels of W
    P(X, W / d) = P(X, W) / d      d along its output channels
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from tapeout.compiler.calibration.statistics import Channels, TensorStats
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.functions import DOMAIN
from tapeout.compiler.operations import LAST

Array = np.ndarray[Any, Any]

# Shares of the activations' size that s may take on.
SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
# The estimated error must shrink by this factor for anything to be scaled.
GAIN = 2.0
# Channels are scaled by at most this much against the largest where floats are beside them; between integers by less:
# what calibration hardly saw may come.
FARTHEST, BETWEEN = 2.0**-10, 2.0**-4
# What calibration has not seen may be larger: a channel is taken to reach so far beyond what was measured, within
# the largest.
ROOM = 1.3
# How many times the root of its mean square the largest number of a channel is, where nothing more is known.
PEAK = 4.0


class Reader(NamedTuple):
    """A product that reads the channels: its weight [O, ..., I]; `apart`: output o reads channel o alone."""

    weight: Array
    apart: bool


def reader(node: ir.Node) -> Reader | None:
    """`node` as a product whose weight can be scaled along its input channels."""
    weight = real_weight(node)
    if weight is None:
        return None
    group = int(g.attribute(node, "group", 1)) if node.op_type != "FullyConnected" else 1
    if group == 1:
        return Reader(weight, False)
    return Reader(weight, True) if group == len(weight) and weight.shape[-1] == 1 else None


def real_weight(node: ir.Node) -> Array | None:
    """The weight of a product as float32 numbers: a constant, or one behind Cast; None where it is neither, and
    where others read it too."""
    plain = LAST.sub("", node.op_type)
    if node.domain != DOMAIN or (node.op_type != "FullyConnected" and plain != "Conv"):
        return None
    value = node.inputs[1]
    cast = g.producer(value, "Cast")
    held = cast.inputs[0] if cast is not None else value
    if value is None or held is None or g.only_use(value) is None or g.only_use(held) is None:
        return None
    array = g.constant(held)
    return None if array is None else array.astype(np.float32)


def roomy(size: Array, farthest: float = FARTHEST) -> Array:
    """How large channels may become that were as large as `size`."""
    largest = float(size.max(initial=0.0))
    return np.asarray(np.clip(ROOM * size.astype(np.float64), farthest * largest, largest))


def shared(readers: Sequence[Reader], size: Array, farthest: float = FARTHEST) -> Array | None:
    """The scales s [C] for products that read channels as large as `size` [C]; None where they gain too little."""
    largest = float(size.max(initial=0.0))
    if largest <= 0 or not all(r.weight.any() for r in readers):
        return None
    acts = roomy(size, farthest)
    flat = [r.weight.reshape(len(r.weight), -1, r.weight.shape[-1]).astype(np.float64) for r in readers]
    whole = [np.abs(w) for w, r in zip(flat, readers, strict=True) if not r.apart]
    power = sum(
        (w**2).sum((1, 2)) if r.apart else (w**2).sum((0, 1)) for w, r in zip(flat, readers, strict=True)
    )
    peak = np.ones_like(acts)
    if whole:
        peak = np.max([w.max((0, 1)) for w in whole], axis=0)
        peak = np.maximum(peak, FARTHEST * peak.max())
    rows = [w.max(1) for w in whole]
    alone = sum(
        float(((np.abs(w).max((1, 2)) * acts / PEAK) ** 2).sum())
        for w, r in zip(flat, readers, strict=True)
        if r.apart
    )

    def error(scale: Array) -> float:
        activations = float(((acts / scale).max() ** 2 * (scale**2 * power)).sum())
        levels = sum(float(((r * scale).max(1) ** 2).sum()) for r in rows)
        return activations + levels * float(((acts / scale / PEAK) ** 2).sum()) + alone

    tried = [acts**a / peak ** (1 - a) for a in SHARES]
    errors = [error(s) for s in tried]
    best = int(np.argmin(errors))
    if errors[best] * GAIN > error(np.ones_like(acts)):
        return None
    found = tried[best]
    return np.asarray(found / np.exp(np.log(found).mean()))


def scale_inputs(node: ir.Node, factors: Array) -> None:
    """Multiply the weight of a product along its input channels."""
    apart = node.op_type != "FullyConnected" and int(g.attribute(node, "group", 1)) > 1
    _scale(node, factors, 0 if apart else -1)


def scale_outputs(node: ir.Node, factors: Array) -> None:
    """Multiply weight and bias of a product along its outputs: codes of the weight stay the same."""
    _scale(node, factors, 0)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    offset = g.constant(bias)
    if bias is not None and offset is not None:
        assert isinstance(node.graph, ir.Graph)
        moved = (offset.astype(np.float64) * factors).astype(np.float32)
        node.replace_input_with(2, g.add_constant(node.graph, moved, bias.name or "bias"))


def _scale(node: ir.Node, factors: Array, axis: int) -> None:
    value = node.inputs[1]
    cast = g.producer(value, "Cast")
    held = cast.inputs[0] if cast is not None else value
    assert held is not None and held.const_value is not None and isinstance(node.graph, ir.Graph)
    shape = g.static_dims(held)
    assert shape is not None
    make = functools.partial(_scaled, held.const_value, factors, axis % len(shape))
    hint = (value.name if value is not None else None) or "weight"
    node.replace_input_with(1, g.add_lazy_constant(node.graph, shape, ir.DataType.FLOAT, make, hint))


def _scaled(tensor: ir.TensorProtocol, factors: Array, axis: int) -> Array:
    array = tensor.numpy().astype(np.float64)
    shape = [-1 if i == axis else 1 for i in range(array.ndim)]
    made: Array = (array * factors.reshape(shape)).astype(np.float32)
    return made


def scaled_stats(channels: Channels, factors: Array, rank: int) -> TensorStats:
    """Statistics of a tensor of `rank` axes after multiplication by `factors` along the last."""
    low, high, mean = (
        (a.astype(np.float64) * factors).astype(np.float32)
        for a in (channels.min, channels.max, channels.mean)
    )
    least, most = float(low.min()), float(high.max())
    known = {rank - 1: Channels(low, high, mean)}
    return TensorStats(len(factors), least, most, float(mean.mean()), least, most, None, rank, known)
