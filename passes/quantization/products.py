"""Convolutions and matrix products seen alike: each group of output channels multiplies rows of its inputs.

    Y[r, g, o] = sum over k of X[r, g, k] * W[g, o, k]

A row is what one output position reads: for a convolution the patch under its window.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.operations import LAST

Array = np.ndarray[Any, Any]


class Product(NamedTuple):
    """A node whose weight is a stored constant behind DequantizeLinear (`codes`, `scale`), or a float one."""

    node: ir.Node
    weight: ir.Value  # codes where quantized, else floats
    scale: ir.Value | None
    groups: int
    channels_last: bool

    @property
    def window(self) -> bool:
        return self.node.op_type != "FullyConnected"

    def matrix(self, array: Array) -> Array:
        """A weight [O, ...] as [G, O/G, K]."""
        return array.reshape(self.groups, array.shape[0] // self.groups, -1)

    def rows(self, x: Array, weight_shape: tuple[int, ...], count: int, seed: int) -> Array:
        """At most `count` rows [R, G, K] of the input `x` at positions drawn by `seed`."""
        draw = np.random.default_rng(seed)
        if not self.window:
            flat = x.reshape(-1, x.shape[-1])
            if len(flat) > count:
                flat = flat[np.sort(draw.choice(len(flat), count, replace=False))]
            return flat[:, None]
        if not self.channels_last:
            x = np.moveaxis(x, 1, -1)
        kernel = weight_shape[1:-1] if self.channels_last else weight_shape[2:]
        strides, dilations, pads = geometry(self.node, x.shape[1:-1], kernel)
        half = len(kernel)
        x = np.pad(x, ((0, 0), *zip(pads[:half], pads[half:], strict=True), (0, 0)))
        sizes = [
            (n - d * (k - 1) - 1) // s + 1
            for n, k, s, d in zip(x.shape[1:-1], kernel, strides, dilations, strict=True)
        ]
        total = x.shape[0] * math.prod(sizes)
        chosen = np.arange(total) if total <= count else np.sort(draw.choice(total, count, replace=False))
        sample, *spots = np.unravel_index(chosen, (x.shape[0], *sizes))
        channels = x.shape[-1]
        patches = np.empty((len(chosen), math.prod(kernel), channels), np.float32)
        for j, offset in enumerate(itertools.product(*map(range, kernel))):
            where = [p * s + o * d for p, s, o, d in zip(spots, strides, offset, dilations, strict=True)]
            patches[:, j] = x[(sample, *where)]
        inner = channels // self.groups
        rows = patches.reshape(len(chosen), -1, self.groups, inner).transpose(0, 2, 1, 3)
        if not self.channels_last:  # the weight is stored O, I, K...
            rows = rows.swapaxes(2, 3)
        return rows.reshape(len(chosen), self.groups, -1)


def geometry(
    node: ir.Node, sizes: tuple[int, ...], kernel: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Strides, dilations and explicit pads (all begins, then all ends) of a convolution."""
    ones = (1,) * len(kernel)
    strides = tuple(g.attribute(node, "strides", ones)) or ones
    dilations = tuple(g.attribute(node, "dilations", ones)) or ones
    same = g.attribute(node, "auto_pad", "NOTSET")
    if same in ("SAME_UPPER", "SAME_LOWER"):
        needs = [
            max(0, (-(-n // s) - 1) * s + d * (k - 1) + 1 - n)
            for n, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)
        ]
        fewer, more = [n // 2 for n in needs], [n - n // 2 for n in needs]
        return strides, dilations, tuple(fewer + more if same == "SAME_UPPER" else more + fewer)
    pads = tuple(g.attribute(node, "pads", ())) if same == "NOTSET" else ()
    return strides, dilations, pads or (0,) * (2 * len(kernel))


def product(node: ir.Node) -> Product | None:
    """`node` as a product whose weight is its own and constant, its scales along its output channels."""
    plain = LAST.sub("", node.op_type)
    if plain not in ("Conv", "FullyConnected") or len(node.inputs) < 2:
        return None
    groups = int(g.attribute(node, "group", 1)) if plain == "Conv" else 1
    weight, scale = node.inputs[1], None
    stored = g.producer(weight, "DequantizeLinear")
    if stored is not None:
        if g.only_use(stored.outputs[0]) is not node or g.attribute(stored, "axis", 1) != 0:
            return None
        weight, scale = stored.inputs[0], stored.inputs[1]
        if not g.is_constant(scale) or g.attribute(stored, "block_size", 0):
            return None
    if weight is None or not g.is_constant(weight):
        return None
    return Product(node, weight, scale, groups, plain == "FullyConnected" or plain != node.op_type)
