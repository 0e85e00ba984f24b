"""Removes channels that no output depends on, with proof.

A channel is *constant* where its proven range is one code. A layer reads it as a number, which the bias takes:

    sum over the others + w * c  ->  sum over the others,  bias + w * c

also where the window meets padding, if the padding holds the same code. A channel whose every weight is 0 is not
read at all. What is needed is found backwards from the outputs; whatever computes channel by channel (depthwise
convolutions, pools, sums, tables) has as many channels in front as behind, so its sides need what either needs.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from tapeout.targets.fpga import dialect as d
from tapeout.targets.fpga import ranges
from tapeout.targets.fpga.dialect import Array
from tapeout.targets.fpga.requantize import Clamp, exact

Kept = dict[str, Array]  # by tensor: bool [channels]


def kept(graph: d.Graph) -> Kept:
    """The channels of each tensor that are needed; at least one of each tensor."""
    tensors = graph.tensors
    found = {name: np.zeros(t.channels, bool) for name, t in tensors.items()}
    for name in (*(t.name for t in graph.inputs), *(p.tensor for p in graph.output_ports)):
        found[name][:] = True
    changed = True
    while changed:
        before = {name: int(mask.sum()) for name, mask in found.items()}
        for node in reversed(graph.nodes):
            _need(node, tensors, found)
        changed = any(before[name] != int(mask.sum()) for name, mask in found.items())
    for node in reversed(graph.nodes):  # a tensor of which nothing is needed keeps its first channel
        if not found[node.output.name].any():
            found[node.output.name][0] = True
            _need(node, tensors, found)
    return _coupled(graph, found)


def _need(node: d.Node, tensors: dict[str, d.Tensor], found: Kept) -> None:
    """Mark what a node needs of its inputs, and what it makes because it cannot but make it."""
    made = found[node.output.name]
    if isinstance(node, d.Conv | d.Dense):
        x = tensors[node.inputs[0].tensor]
        found[x.name] |= read(node, x, made)
    elif isinstance(node, d.Reshape):
        for s in node.inputs:
            found[s.tensor][:] = True
        made[:] = True
    else:
        _couple(node, found)


def _couple(node: d.Node, found: Kept) -> None:
    union = np.logical_or.reduce([found[node.output.name], *(found[s.tensor] for s in node.inputs)])
    for name in (node.output.name, *(s.tensor for s in node.inputs)):
        found[name] = union.copy()


def _coupled(graph: d.Graph, found: Kept) -> Kept:
    """The same with equal masks on both sides of what computes channel by channel."""
    while True:
        before = {name: int(mask.sum()) for name, mask in found.items()}
        for node in graph.nodes:
            if not isinstance(node, d.Conv | d.Dense | d.Reshape):
                _couple(node, found)
        if all(before[name] == int(mask.sum()) for name, mask in found.items()):
            return found


def rounded(graph: d.Graph, found: Kept, multiple: int) -> Kept:
    """`found` with channels kept besides, the first of those not needed, until each count is a multiple."""
    more = {name: mask.copy() for name, mask in found.items()}
    for mask in more.values():
        wanted = min(-(-int(mask.sum()) // multiple) * multiple, len(mask))
        mask[np.flatnonzero(~mask)[: wanted - int(mask.sum())]] = True
    return _coupled(graph, more)


def read(node: d.Conv | d.Dense, x: d.Tensor, made: Array) -> Array:
    """The channels of x that the channels `made` of a layer read as more than a number: bool [channels]."""
    weights = _by_channel(node, x)[made]
    taken: Array = np.any(weights != 0, axis=(0, 1)) & ~_foldable(node, x)
    return taken


def _by_channel(node: d.Conv | d.Dense, x: d.Tensor) -> Array:
    """The weights [outputs, places, channels]."""
    return node.weights.reshape(len(node.weights), -1, x.channels)


def _foldable(node: d.Conv | d.Dense, x: d.Tensor) -> Array:
    """Which channels are one number wherever the layer reads them."""
    low, high = ranges.met(node, x)
    made: Array = low == high
    return made


def without(graph: d.Graph, found: Kept) -> d.Graph:
    """The circuit with only the channels in `found`; every other channel's part is in biases."""
    tensors = graph.tensors
    nodes = tuple(_narrowed(node, tensors, found) for node in graph.nodes)
    return replace(graph, nodes=nodes)


def _narrowed(node: d.Node, tensors: dict[str, d.Tensor], found: Kept) -> d.Node:
    made, t = found[node.output.name], node.output
    output = replace(t, shape=(*t.shape[:2], int(made.sum())), low=t.low[made], high=t.high[made])
    if not isinstance(node, d.Folded):
        return replace(node, output=output)
    x = tensors[node.inputs[0].tensor]
    taken, form = found[x.name], node.requantize
    idle = output.low == output.high  # kept though constant: these codes need no sum
    if made.all() and taken.all() and not idle.any():
        return node
    bias = node.bias[made]
    if isinstance(node, d.Conv | d.Dense):
        whole = _by_channel(node, x)[made]
        constant = np.where(_foldable(node, x) & ~taken, x.low, 0)
        bias = bias + (whole.astype(np.int64).sum(axis=1) * constant).sum(axis=1)
        inner = np.where(idle[:, None, None], 0, whole[:, :, taken])
        shape = (
            (len(inner), -1)
            if isinstance(node, d.Dense)
            else (len(inner), *node.window.kernel, int(taken.sum()))
        )
        node = replace(node, weights=inner.reshape(shape))
    elif isinstance(node, d.Depthwise):
        node = replace(node, weights=np.where(idle[:, None, None], 0, node.weights[made]))
    bias = np.where(idle, 0, bias)
    ends = [np.where(idle, 0, e + bias) for e in ranges.of_sums(node, x, taken)]
    form = exact(form.scale[made], Clamp(output.zero_point, form.low, form.high), *ends)
    form = replace(form, offset=np.where(idle, output.low << form.shift, form.offset))
    width = ranges.bits(ends[0], ends[1] + 1)
    return replace(node, output=output, bias=bias, requantize=form, accumulator=width)


def operations(graph: d.Graph) -> int:
    """Multiply-accumulates of one inference."""
    total = 0
    for node in graph.nodes:
        if isinstance(node, d.Conv | d.Depthwise | d.Dense):
            total += node.output.pixels * math.prod(node.weights.shape)
    return total
