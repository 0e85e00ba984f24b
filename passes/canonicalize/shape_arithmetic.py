"""Shapes are stated: what a graph computes about its own sizes becomes constants, with one free dimension as
well.

    Reshape(x, [Shape(x)[0], 12, 64]) -> Reshape(x, [-1, 12, 64])
    Reshape(Squeeze(Reshape(x))) -> Reshape(x, shape)       Reshape(x, shape of x) -> x
    Flatten(x) -> Reshape(x, shape)                         Squeeze(Unsqueeze(x)) -> Reshape(x, shape)
    Expand(x, [Shape(x)[0], 5]) -> Expand(x, [1, 5])
    Slice(x, 0, Shape(x)[0]) -> Slice(x, 0, maximum)        Slice(x, 0, Shape(x)[0] - 2) -> Slice(x, 0, -2)
    Resize(x, sizes=[.., 2 * Shape(x)[2], ..]) -> Resize(x, scales=[.., 2, ..])

A shape is stated as numbers where it has them, a single symbolic dimension as -1; of several, those that x
has at the same place as 0. A lone Squeeze or Unsqueeze stays what it is, for it says which axes it means.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.dimensions import Expr, Undecided, exact_divide
from tapeout.compiler.ir.shapes import dims_of, known_value
from tapeout.compiler.rewriting import Builder, NodeRule, Rule
from tapeout.passes.canonicalize.identities import same_shape

RESHAPES = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")
WHOLE = 2**63 - 1


def stated(x: ir.Value | None, y: ir.Value | None) -> list[int] | None:
    """The constant that makes Reshape(x, constant) of the shape of y, or None where there is none."""
    have, want = dims_of(x), dims_of(y)
    if have is None or want is None or None in want:
        return None
    free = [i for i, d in enumerate(want) if isinstance(d, Expr)]
    shape = [d if isinstance(d, int) else 0 for d in want]
    if 0 in (d for d in want if isinstance(d, int)):
        return None  # a 0 would be read as "the same", and -1 beside it has no meaning
    if not free:
        return shape
    elsewhere = [i for i in free if i >= len(have) or have[i] != want[i]]
    if len(elsewhere) > 1:
        return None
    shape[(elsewhere or free)[0]] = -1
    return shape


class StateReshape(NodeRule):
    """A Reshape, or a chain of what only changes the shape, becomes one Reshape to a stated shape, or
    nothing."""

    ops = RESHAPES

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | str | None:
        x, y = node.inputs[0], node.outputs[0]
        inner = g.producer(x, *RESHAPES)
        chain = inner is not None and inner.inputs[0] is not None
        if chain:
            assert inner is not None
            x = inner.inputs[0]
        if x is None:
            return None
        if same_shape(x, y):
            return x
        if node.op_type in ("Squeeze", "Unsqueeze") and not chain:
            return None
        shape = stated(x, y)
        if shape is None:
            return "the shape has more than one free dimension" if chain else None
        if node.op_type == "Reshape" and not chain:
            current = g.constant(node.inputs[1], limit=64)
            if current is not None and current.tolist() == shape and not g.attribute(node, "allowzero", 0):
                return None
        return op.Reshape(x, np.array(shape, dtype=np.int64))  # type: ignore[no-any-return]


class StateExpand(NodeRule):
    """The sizes of Expand that x already has are stated as 1."""

    ops = ("Expand",)

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | None:
        x, y = node.inputs[0], node.outputs[0]
        have, want, target = dims_of(x), dims_of(y), known_value(node.inputs[1])
        if x is None or have is None or want is None or target is None or g.is_constant(node.inputs[1]):
            return None
        padded = (1,) * (len(want) - len(have)) + have
        shape = [1 if h is not None and h == w else w for h, w in zip(padded, want, strict=True)]
        if not all(isinstance(d, int) for d in shape):
            return None
        return op.Expand(x, np.array(shape, dtype=np.int64))  # type: ignore[no-any-return]


class StateSlice(NodeRule):
    """Starts and ends that are the size of the axis, or the size less a number, are stated from the end."""

    ops = ("Slice",)

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | None:
        x = node.inputs[0]
        have = dims_of(x)
        if x is None or have is None or all(g.is_constant(v) for v in node.inputs[1:3]):
            return None
        starts, ends, axes, steps = (
            known_value(node.inputs[i]) if i < len(node.inputs) else None for i in range(1, 5)
        )
        if (
            starts is None
            or ends is None
            or (len(node.inputs) > 3 and node.inputs[3] is not None and axes is None)
        ):
            return None
        over = [a % len(have) for a in axes.tolist()] if axes is not None else list(range(len(starts)))
        if steps is not None and any(isinstance(s, Expr) or s < 0 for s in steps.tolist()):
            return None
        first = [self._from_end(s, have[a], 0) for s, a in zip(starts.tolist(), over, strict=True)]
        last = [self._from_end(e, have[a], WHOLE) for e, a in zip(ends.tolist(), over, strict=True)]
        if None in first or None in last:
            return None
        made = [np.array(v, dtype=np.int64) for v in (first, last, over)]
        step = [] if steps is None else [np.array(steps.tolist(), dtype=np.int64)]
        return op.Slice(x, *made, *step)  # type: ignore[no-any-return]

    def _from_end(self, at: int | Expr, size: int | Expr | None, whole: int) -> int | None:
        if isinstance(at, int):
            return at
        if size is None:
            return None
        try:
            away = at - size
        except Undecided:
            return None
        if not isinstance(away, int) or away > 0 or (away == 0 and whole == 0):
            return None
        return whole if away == 0 else away


class StateResize(NodeRule):
    """Sizes that are whole multiples of the input's are stated as scales."""

    ops = ("Resize",)

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | None:
        x, sizes = node.inputs[0], node.inputs[3] if len(node.inputs) > 3 else None
        have, want = dims_of(x), known_value(sizes)
        if x is None or have is None or want is None or g.is_constant(sizes):
            return None
        axes = g.attribute(node, "axes")
        over = [a % len(have) for a in axes] if axes else list(range(len(have)))
        scales = [_ratio(w, have[a]) for w, a in zip(want.tolist(), over, strict=True)]
        if None in scales or g.attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
            return None
        attributes = {k: a for k, a in node.attributes.items() if k != "keep_aspect_ratio_policy"}
        stated_scales = op.constant(np.array(scales, dtype=np.float32), hint="scales")
        return op.node("Resize", [x, node.inputs[1], stated_scales], attributes)[0]


def _ratio(want: int | Expr, have: int | Expr | None) -> int | None:
    if have is None:
        return None
    try:
        ratio = exact_divide(want, have)
    except Undecided:
        return None
    return ratio if isinstance(ratio, int) and ratio > 0 else None


class StateVector(NodeRule):
    """A Concat of sizes that are known but for one: left to the node that reads it, unless that reads the
    whole shape of some tensor, [Shape(x)[0], Shape(x)[1]] -> Shape(x)."""

    ops = ("Concat",)

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | None:
        known = known_value(node.outputs[0])
        if known is None or not any(isinstance(d, Expr) for d in known.reshape(-1).tolist()):
            return None
        wanted = tuple(known.reshape(-1).tolist())
        for x in _measured(node.inputs):
            if dims_of(x) == wanted:
                return op.Shape(x)  # type: ignore[no-any-return]
        return None


def _measured(values: Sequence[ir.Value | None]) -> list[ir.Value]:
    """The tensors whose shapes go into `values`."""
    found: dict[ir.Value, None] = {}
    stack = [(v, 0) for v in values]
    while stack:
        value, depth = stack.pop()
        node = None if value is None else value.producer()
        if node is None or depth > 8:
            continue
        if node.op_type == "Shape" and node.domain == "" and node.inputs[0] is not None:
            found[node.inputs[0]] = None
        else:
            stack.extend((v, depth + 1) for v in node.inputs)
    return list(found)


SHAPES: tuple[Rule, ...] = (StateReshape(), StateExpand(), StateSlice(), StateResize(), StateVector())
