"""Rearrangements that exporters spell out by reshapes, as one operator.

    Reshape(Expand(Reshape(x, [N,C,H,1,W,1]), [N,C,H,s,W,t]), [N,C,Hs,Wt])    -> Resize(x, nearest, [1,1,s,t])
    Reshape(Tile or Concat of copies likewise)                                  -> the same
    Reshape(Transpose(Reshape(x, [N,b,b,C,H,W]), [0,3,4,1,5,2]))                -> DepthToSpace(x, b, "DCR")
    Reshape(Transpose(Reshape(x, [N,C,b,b,H,W]), [0,1,4,2,5,3]))                -> DepthToSpace(x, b, "CRD")
    Reshape(Transpose(Reshape(x, [N,C,H,b,W,b]), [0,3,5,1,2,4]))                -> SpaceToDepth(x, b)
    Concat over the channels of all x[:, :, i::b, j::b], j faster than i        -> SpaceToDepth(x, b)

All move elements only: exactly equal. A concatenation in another order of the slices is SpaceToDepth with its
channels permuted; a following Conv takes the permutation into its weights.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.rewriting import Builder, NodeRule, Rewrite
from tapeout.passes.fusion.algebra import Region, RegionRule, call

NEAREST: dict[str, Any] = {
    "mode": "nearest",
    "coordinate_transformation_mode": "asymmetric",
    "nearest_mode": "floor",
}


def _dims(value: ir.Value | None) -> g.Shape | None:
    """The shape where every dimension is a number or a name."""
    shape = g.dims(value)
    return None if shape is None or "?" in shape else shape


class RepeatedPixels(RegionRule):
    """Reshape(Expand(Reshape(x, [N,C,H,1,W,1]), [N,C,H,s,W,t]), [N,C,Hs,Wt]) -> Resize(x, nearest)"""

    ops = ("Reshape",)

    def find(self, node: ir.Node) -> Region | str | None:
        spread = g.producer(node.inputs[0], "Expand", "Tile", "Concat")
        before = None if spread is None else g.producer(spread.inputs[0], "Reshape", "Unsqueeze")
        if spread is None or before is None:
            return None
        if spread.op_type == "Concat" and any(v is not spread.inputs[0] for v in spread.inputs):
            return None
        x = before.inputs[0]
        shape, split, repeated, out = (
            _dims(v) for v in (x, before.outputs[0], spread.outputs[0], node.outputs[0])
        )
        if x is None or shape is None or split is None or repeated is None or out is None:
            return None
        if len(out) != len(shape) or len(shape) < 3 or len(split) != len(repeated) or shape[:2] != out[:2]:
            return None
        scales = _repeats(shape, split, repeated)
        if scales is None or scales[:2] != [1, 1] or not _scaled(shape, out, scales):
            return None
        if x.dtype == ir.DataType.BOOL:
            return "booleans cannot be resized"

        def make(op: Builder) -> Any:
            return op.Resize(x, None, op.constant(np.asarray(scales, np.float32), hint="scales"), **NEAREST)

        return Region((spread, before, node), make)


def _repeats(shape: g.Shape, split: g.Shape, repeated: g.Shape) -> list[int] | None:
    """How often each axis is repeated, where `split` is `shape` with 1s behind axes that `repeated` fills."""
    if not shape:
        return [] if not split else None
    if not split or split[0] != shape[0] or repeated[0] != shape[0]:
        return None
    rest = _repeats(shape[1:], split[1:], repeated[1:])
    if rest is not None:
        return [1, *rest]
    factor = repeated[1] if len(split) > 1 and split[1] == 1 else None
    rest = _repeats(shape[1:], split[2:], repeated[2:]) if isinstance(factor, int) else None
    return None if rest is None or not isinstance(factor, int) else [factor, *rest]


def _scaled(shape: g.Shape, out: g.Shape, scales: list[int]) -> bool:
    return all(
        (isinstance(d, int) and isinstance(o, int) and o == d * s)
        or (isinstance(d, str) and (s != 1 or o == d))
        for d, o, s in zip(shape, out, scales, strict=True)
    )


class ShuffledBlocks(RegionRule):
    """Reshape(Transpose(Reshape(x))) of blocks between channels and space -> DepthToSpace, SpaceToDepth"""

    ops = ("Reshape",)
    forms: ClassVar = {
        (0, 3, 4, 1, 5, 2): ("DepthToSpace", "DCR", (1, 2), 3),
        (0, 1, 4, 2, 5, 3): ("DepthToSpace", "CRD", (2, 3), 1),
        (0, 3, 5, 1, 2, 4): ("SpaceToDepth", None, (3, 5), 1),
    }

    def find(self, node: ir.Node) -> Region | str | None:
        turn = g.producer(node.inputs[0], "Transpose")
        before = None if turn is None else g.producer(turn.inputs[0], "Reshape")
        if turn is None or before is None:
            return None
        form = self.forms.get(tuple(g.attribute(turn, "perm", ())))
        x = before.inputs[0]
        shape, split, out = _dims(x), _dims(before.outputs[0]), _dims(node.outputs[0])
        if (
            form is None
            or x is None
            or shape is None
            or split is None
            or out is None
            or len(shape) != 4
            or len(out) != 4
        ):
            return None
        op_type, mode, (first, second), channels = form
        b, c = split[first], split[channels]
        if not isinstance(b, int) or b != split[second] or b < 2 or not isinstance(c, int):
            return None
        if split[0] != shape[0] or out[0] != shape[0]:
            return None
        if op_type == "DepthToSpace":
            # What is left of the shapes follows from the number of elements.
            good = shape[1] == c * b * b and out[1] == c and split[4:] == shape[2:] and _grown(shape, out, b)
            return (
                Region((turn, before, node), call("DepthToSpace", x, blocksize=b, mode=mode))
                if good
                else None
            )
        good = (
            shape[1] == c
            and out[1] == c * b * b
            and (split[2], split[4]) == out[2:]
            and _grown(out, shape, b)
        )
        return Region((turn, before, node), call("SpaceToDepth", x, blocksize=b)) if good else None


def _grown(small: g.Shape, large: g.Shape, b: int) -> bool:
    pairs = zip(small[2:], large[2:], strict=True)
    return all(isinstance(s, str) or (isinstance(t, int) and t == s * b) for s, t in pairs)


class ConcatenatedSlices(RegionRule):
    """Concat of all x[:, :, i::b, j::b] over the channels -> SpaceToDepth(x, b), channels permuted back"""

    ops = ("Concat",)

    def find(self, node: ir.Node) -> Region | str | None:
        b = math.isqrt(len(node.inputs))
        if b < 2 or b * b != len(node.inputs) or g.attribute(node, "axis") != 1:
            return None
        offsets: list[tuple[int, int]] = []
        nodes: list[ir.Node] = []
        source: ir.Value | None = None
        for value in node.inputs:
            found = _strided(value, b)
            if found is None or (source is not None and found[0] is not source):
                return None
            source = found[0]
            offsets.append(found[1])
            nodes.extend(found[2])
        shape = g.dims(source)
        every = [(i, j) for i in range(b) for j in range(b)]
        if source is None or shape is None or len(shape) != 4 or sorted(offsets) != every:
            return None
        if not all(isinstance(d, int) and d % b == 0 for d in shape[2:]) or not isinstance(shape[1], int):
            return "the sides are not known to be multiples of the block"
        order = [i * b + j for i, j in offsets]
        channels = shape[1]

        def make(op: Builder) -> Any:
            blocks = op.SpaceToDepth(source, blocksize=b)
            if order == sorted(order):
                return blocks
            index = np.concatenate([np.arange(k * channels, (k + 1) * channels) for k in order])
            return op.Gather(blocks, op.constant(index.astype(np.int64), hint="channels"), axis=1)

        return Region((*dict.fromkeys(nodes), node), make)


def _strided(value: ir.Value | None, b: int) -> tuple[ir.Value, tuple[int, int], list[ir.Node]] | None:
    """`value` as x[:, :, i::b, j::b] by one Slice or two: x, (i, j) and the Slices."""
    start, step = [0, 0, 0, 0], [1, 1, 1, 1]
    nodes: list[ir.Node] = []
    while (made := g.producer(value, "Slice")) is not None and len(nodes) < 2:
        starts, ends, axes, steps = (g.constant(v, 8) for v in (*made.inputs[1:], None, None)[:4])
        shape = g.dims(made.inputs[0])
        if starts is None or ends is None or shape is None or len(shape) != 4:
            return None
        axes = np.arange(len(starts)) if axes is None else axes % 4
        steps = np.ones(len(starts)) if steps is None else steps
        for s, e, a, t in zip(starts, ends, axes, steps, strict=True):
            size = shape[int(a)]
            whole = e >= (size if isinstance(size, int) else 1 << 30)
            if s < 0 or not whole or t < 1 or (step[int(a)] != 1 and (s, t) != (0, 1)):
                return None
            if (s, t) != (0, 1):
                start[int(a)], step[int(a)] = int(s), int(t)
        nodes.append(made)
        value = made.inputs[0]
    if not nodes or value is None or step != [1, 1, b, b] or any(start[:2]) or max(start) >= b:
        return None
    return value, (start[2], start[3]), nodes


class PermutedChannels(NodeRule):
    """Conv(Gather(x, p, axis=1), W) -> Conv(x, W'), W'[:, p] = W, p a permutation and one group"""

    ops = ("Conv",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        gather = g.producer(node.inputs[0], "Gather")
        if gather is None or g.attribute(gather, "axis", 0) != 1 or not g.is_constant(node.inputs[1]):
            return None
        x, w, index = gather.inputs[0], node.inputs[1], g.constant(gather.inputs[1], 1 << 16)
        shape, channels = g.static_dims(w), g.dims(x)
        if x is None or w is None or shape is None or channels is None or index is None or index.ndim != 1:
            return None
        order = np.argsort(index % len(index), kind="stable")
        if channels[1] != len(index) or sorted((index % len(index)).tolist()) != list(range(len(index))):
            return None
        if g.attribute(node, "group", 1) != 1:
            return "the convolution is grouped"
        if g.only_use(gather.outputs[0]) is not node:
            return f"'{gather.outputs[0].name}' is read elsewhere"
        tensor, dtype = w.const_value, w.dtype
        assert tensor is not None and dtype is not None
        op.covers([gather, node])
        weight = g.add_lazy_constant(
            op.graph, shape, dtype, lambda: tensor.numpy()[:, order], w.name or "weight"
        )
        return op.node(
            "Conv", [x, weight, *node.inputs[2:]], {k: v.value for k, v in node.attributes.items()}
        )[0]


UPSAMPLING = Rewrite(
    "upsampling", (RepeatedPixels(), ShuffledBlocks(), ConcatenatedSlices(), PermutedChannels())
)
