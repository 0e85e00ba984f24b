"""Reshaping, slicing and padding in their plainest forms.

Flatten(x)                  -> Reshape(x, [product, -1])
Slice along computed axes   -> Slice along all axes, starts and ends put in place by a comparison
Pad by constant amounts     -> Slice (where negative), then Pad (constant, reflect); edge and wrap -> Gather
Pad by computed amounts     -> edge and wrap: Gather of computed places
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.shapes import known_value
from tapeout.compiler.rewriting import Builder, NodeRule, Rule

INT64 = ir.DataType.INT64

Result = Any  # values, a reason, or None: see NodeRule.rewrite


def _vector(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


class Flatten(NodeRule):
    """Flatten(x, axis) -> Reshape(x, [product of the dimensions before axis, -1])"""

    ops = ("Flatten",)

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        x = node.inputs[0]
        dims = g.dims(x)
        if dims is None:
            return "the rank is not known"
        axis = g.attribute(node, "axis", 1)
        axis = axis + len(dims) if axis < 0 else axis
        front, back = dims[:axis], dims[axis:]
        if all(isinstance(d, int) for d in (*front, *back)):
            shape: Any = _vector(int(np.prod(front)), int(np.prod(back)))  # type: ignore[arg-type]
            return op.Reshape(x, shape, allowzero=1)
        if all(isinstance(d, int) for d in front):
            shape = _vector(int(np.prod(front)), -1)  # type: ignore[arg-type]
        elif all(isinstance(d, int) for d in back):
            shape = _vector(-1, int(np.prod(back)))  # type: ignore[arg-type]
        elif axis == 1:
            shape = _vector(0, -1)
        else:
            product = op.ReduceProd(op.Shape(x, start=0, end=axis), _vector(0), keepdims=1)
            shape = op.Concat(product, _vector(-1), axis=0)
        return op.Reshape(x, shape)


class SliceComputedAxes(NodeRule):
    """Slice(x, starts, ends, axes) -> Slice(x, starts', ends') over all axes where the axes are computed:
    v'[axis] = sum over i of (axes[i] == axis) * v[i]; the whole axis where none is equal."""

    ops = ("Slice",)

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        x, starts, ends, axes, steps = (*node.inputs, None, None)[:5]
        rank, count = g.rank(x), g.static_dims(starts)
        if (axes is None or g.is_constant(axes)) or rank is None or not count:
            return None
        strides = None if steps is None else g.constant(steps)
        if steps is not None and (strides is None or np.any(strides != 1)):
            return "computed axes with steps"

        def wide(value: ir.Value) -> ir.Value:
            return value if value.dtype == INT64 else op.Cast(value, to=INT64)

        assert starts is not None and ends is not None
        column = op.Reshape(wide(axes), _vector(-1, 1))
        column = op.Where(
            op.Less(column, np.asarray(0, np.int64)), op.Add(column, np.asarray(rank, np.int64)), column
        )
        mine = op.Cast(op.Equal(column, np.arange(rank, dtype=np.int64)[None, :]), to=INT64)

        def spread(value: ir.Value, otherwise: int) -> ir.Value:
            placed = op.ReduceSum(
                op.Mul(mine, op.Reshape(wide(value), _vector(-1, 1))), _vector(0), keepdims=0
            )
            taken = op.ReduceMax(mine, _vector(0), keepdims=0)
            rest = op.Mul(op.Add(op.Neg(taken), np.asarray(1, np.int64)), np.asarray(otherwise, np.int64))
            made: ir.Value = op.Add(placed, rest)
            return made

        return op.Slice(x, spread(starts, 0), spread(ends, np.iinfo(np.int32).max))


class PlainPad(NodeRule):
    """Pad(x) -> Pad(Slice(x)) where amounts are negative; edge, wrap, high ranks -> Gather per axis"""

    ops = ("Pad",)

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        x, pads, value, axes = (*node.inputs, None, None)[:4]
        dims, amounts, chosen = g.dims(x), g.constant(pads), g.constant(axes)
        mode = g.attribute(node, "mode", "constant")
        if dims is None or amounts is None or (axes is not None and chosen is None):
            if mode in ("constant", "reflect"):
                return None
            return self._computed(op, node, mode) or "the amounts are not known"
        rank = len(dims)
        at = range(rank) if chosen is None else [int(a) % rank for a in chosen]
        table = np.zeros((rank, 2), np.int64)
        table[list(at)] = amounts.reshape(2, -1).T
        if mode == "constant":
            if np.all(table >= 0):
                return None
            cut = np.minimum(table, 0)
            starts, ends = -cut[:, 0], np.where(cut[:, 1] < 0, cut[:, 1], np.iinfo(np.int64).max)
            inner = op.Slice(x, starts, ends, np.arange(rank, dtype=np.int64))
            return op.Pad(inner, np.maximum(table, 0).T.reshape(-1), value, mode=mode)
        moved = [i for i in range(rank) if table[i].any()]
        sizes = [dims[i] for i in moved]
        if mode == "reflect" and np.all(table >= 0) and rank <= 5:
            return None
        if not all(isinstance(s, int) for s in sizes):
            return f"mode {mode} along an axis of unknown size"
        for i, size in zip(moved, sizes, strict=True):
            x = op.Gather(x, _source(int(size), int(table[i, 0]), int(table[i, 1]), mode), axis=i)
        return x

    def _computed(self, op: Builder, node: ir.Node, mode: str) -> Result:
        """Edge and wrap by amounts that are computed: what stands at each place is computed too."""
        x, pads, _, axes = (*node.inputs, None, None)[:4]
        dims, known, chosen = g.dims(x), known_value(pads), g.constant(axes)
        if x is None or pads is None or dims is None or (axes is not None and chosen is None):
            return None
        at = list(range(len(dims))) if chosen is None else [int(a) % len(dims) for a in chosen]
        wide = pads if pads.dtype == INT64 else op.Cast(pads, to=INT64)
        whole, one = op.Shape(x), np.array(1, np.int64)
        y: Any = x
        for i, axis in enumerate(at):
            sides = (i, i + len(at))
            if known is not None and all(isinstance(known[j], int) and known[j] == 0 for j in sides):
                continue
            before, after = (op.Gather(wide, np.array(j, np.int64), axis=0) for j in sides)
            size = op.Gather(whole, np.array(axis, np.int64), axis=0)
            place = op.Range(op.Neg(before), op.Add(size, after), one)
            if mode == "edge":
                source = op.Max(op.Min(place, op.Sub(size, one)), np.array(0, np.int64))
            else:
                source = op.Mod(place, size)
            y = op.Gather(y, source, axis=axis)
        return op.Identity(y) if y is x else y


def _source(size: int, before: int, after: int, mode: str) -> np.ndarray[Any, Any]:
    """Which element of an axis stands at each place of the padded one."""
    place = np.arange(-before, size + after, dtype=np.int64)
    if mode == "edge":
        return np.clip(place, 0, size - 1)
    if mode == "wrap":
        return place % size
    period = max(2 * (size - 1), 1)
    place %= period
    return np.minimum(place, period - place) if size > 1 else place * 0


SHAPING: tuple[Rule, ...] = (Flatten(), SliceComputedAxes(), PlainPad())
