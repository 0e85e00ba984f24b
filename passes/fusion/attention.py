"""Attention and rotary embedding that exporters spell out, as one operator.

    softmax(c Q K' + M) V                     -> Attention(Q, K, V, M, scale=c)  batch, heads, length, size
    M a constant causal mask                  -> is_causal=1, no mask
    where(B, c Q K', -inf)                    -> the boolean mask B
    K, V repeated for groups of heads         -> Attention of fewer K, V heads
    x cos + concat(-x2, x1) sin               -> RotaryEmbedding(x, cos, sin)        x = concat(x1, x2)

K' is K with its last two axes swapped. c is collected from wherever numbers multiply: Q, K, the scores. A
mask that fills in a finite number by `where` is no sum and stays spelled out. Rows that are masked whole give
NaN in the spelled form; what Attention gives there is the runtime's choice.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.rewriting import Builder, Rewrite
from tapeout.passes.fusion.algebra import Region, RegionRule

# Constant masks and caches of up to this many elements are looked at.
LIMIT = 1 << 24


def _peel(value: ir.Value | None, nodes: list[ir.Node]) -> tuple[ir.Value | None, float]:
    """`value` = number * result, through Mul and Div by numbers, which go into `nodes`."""
    factor = 1.0
    while (node := g.producer(value, "Mul", "Div")) is not None:
        left, right = node.inputs
        number, other = g.scalar(right), left
        if number is None and node.op_type == "Mul":
            number, other = g.scalar(left), right
        if number is None or number == 0 or g.rank(other) != g.rank(value):
            break
        factor = factor * number if node.op_type == "Mul" else factor / number
        nodes.append(node)
        value = other
    return value, factor


class Attention(RegionRule):
    """softmax(c Q K' + M) V -> Attention(Q, K, V, M, scale=c)"""

    ops = ("MatMul",)

    def find(self, node: ir.Node) -> Region | str | None:
        softmax = g.producer(node.inputs[0], "Softmax")
        if softmax is None or g.rank(node.inputs[0]) != 4:
            return None
        if g.attribute(softmax, "axis", -1) not in (-1, 3):
            return None
        nodes = [softmax]
        scores, mask, why = _unmask(softmax.inputs[0], nodes)
        scores, factor = _peel(scores, nodes)
        product = g.producer(scores, "MatMul")
        if product is None:
            return None
        if why is not None:
            return why
        nodes.append(product)
        query, query_factor = _peel(product.inputs[0], nodes)
        key, key_factor = _peel(product.inputs[1], nodes)
        value = node.inputs[1]
        if any(g.rank(v) != 4 for v in (query, key, value)) or query is None or key is None or value is None:
            return None
        scale = factor * query_factor * key_factor
        if scale <= 0:
            return f"the scale is {scale:g}"
        swapped = g.producer(key, "Transpose")
        shared: list[ir.Node] = []
        repeated = None
        if swapped is not None and g.attribute(swapped, "perm") == (0, 1, 3, 2):
            inner, inner_factor = _peel(swapped.inputs[0], shared)
            repeated = _repeated(inner)
            scale *= inner_factor
            nodes.extend([swapped, *shared])
            key = inner
            transposed = False
        else:
            transposed = True
        groups = _repeated(value)
        if repeated is not None and groups is not None and repeated[1] == groups[1]:
            nodes.extend([*repeated[2], *groups[2]])
            key, value = repeated[0], groups[0]
        shapes = [g.dims(v) for v in (query, key, value)]
        if any(s is None or "?" in s[:2] for s in shapes):
            return "the shapes are not known"
        q, k, v = shapes
        assert q is not None and k is not None and v is not None
        if (
            q[0] != k[0]
            or q[0] != v[0]
            or k[1] != v[1]
            or not isinstance(q[1], int)
            or not isinstance(k[1], int)
        ):
            return "batch or heads of Q, K and V differ"
        if int(q[1]) % int(k[1]):
            return "the heads of Q are no multiple of those of K"
        causal, kept = _causal(mask)
        if kept is not None and kept.dtype != query.dtype and kept.dtype != ir.DataType.BOOL:
            return "the mask has another type than Q"
        if kept is not None and (g.rank(kept) not in (2, 3, 4) or not _fits(kept, q, k, transposed)):
            return "the mask does not broadcast into the scores"
        shape = g.dims(kept)
        rows = None if shape is None or shape[-2] == q[2] else q[2]
        if isinstance(rows, str):
            return "the mask has one row for a length that is not known"
        size = q[3]
        default = isinstance(size, int) and math.isclose(scale, 1 / math.sqrt(size), rel_tol=1e-7)

        def make(op: Builder) -> Any:
            turned = op.Transpose(key, perm=[0, 1, 3, 2]) if transposed else key
            mask = kept
            if rows is not None and shape is not None:  # ONNX Runtime takes no single row for all of Q
                mask = op.Expand(mask, np.array([*[1] * (len(shape) - 2), rows, 1], np.int64))
            return op.Attention(
                query, turned, value, mask,
                scale=None if default else scale, is_causal=1 if causal else None,
            )  # fmt: skip

        return Region((*nodes, node), make)


def _unmask(
    value: ir.Value | None, nodes: list[ir.Node]
) -> tuple[ir.Value | None, ir.Value | None, str | None]:
    """`value` as scores and a mask: (scores, mask or None, why the mask is none that Attention takes)."""
    add = g.producer(value, "Add")
    if add is not None:
        for scores, mask in (add.inputs, add.inputs[::-1]):
            found, _ = _peel(scores, [])
            if g.producer(found, "MatMul") is not None and g.rank(scores) == 4 and _same(scores, value):
                nodes.append(add)
                return scores, mask, None
    where = g.producer(value, "Where")
    if where is not None:
        keep, scores, fill = where.inputs
        found, _ = _peel(scores, [])
        if g.producer(found, "MatMul") is not None and _same(scores, value):
            nodes.append(where)
            number = g.scalar(fill)
            if number is None or not (math.isinf(number) and number < 0):
                return scores, None, f"the mask fills in {number}, not minus infinity"
            return scores, keep, None
    return value, None, None


def _same(a: ir.Value | None, b: ir.Value | None) -> bool:
    first, second = g.dims(a), g.dims(b)
    return first is not None and first == second


def _fits(mask: ir.Value, q: g.Shape, k: g.Shape, transposed: bool) -> bool:
    """Whether the mask has a known shape of [..., 1 or L, S]: a row shorter than S would be filled with -inf,
    not broadcast."""
    shape = g.dims(mask)
    return shape is not None and shape[-1] == (k[3] if transposed else k[2]) and shape[-2] in (1, q[2])


def _causal(mask: ir.Value | None) -> tuple[bool, ir.Value | None]:
    """Whether `mask` is a constant that hides exactly what comes later, and the mask that is left to add."""
    array = g.constant(mask, LIMIT)
    if array is None or array.ndim < 2 or array.size != array.shape[-1] * array.shape[-2]:
        return False, mask
    rows = array.reshape(array.shape[-2:])
    lower = np.tri(*rows.shape) != 0
    if rows.shape[0] < 2 or rows.shape[0] != rows.shape[1]:
        return False, mask
    if array.dtype == np.bool_:
        return (True, None) if np.array_equal(rows, lower) else (False, mask)
    hidden = np.isneginf(rows.astype(np.float32))
    if np.array_equal(hidden, ~lower) and not np.any(rows[lower]):
        return True, None
    return False, mask


def _repeated(value: ir.Value | None) -> tuple[ir.Value, int, list[ir.Node]] | None:
    """Reshape(Expand(Unsqueeze(x, 2), [B, KV, n, S, D]), [B, KV n, S, D]) as (x, n, its nodes)."""
    outer = g.producer(value, "Reshape")
    spread = None if outer is None else g.producer(outer.inputs[0], "Expand", "Tile")
    inner = None if spread is None else g.producer(spread.inputs[0], "Unsqueeze", "Reshape")
    if outer is None or spread is None or inner is None:
        return None
    x = inner.inputs[0]
    shape, one, many, out = (g.dims(v) for v in (x, inner.outputs[0], spread.outputs[0], outer.outputs[0]))
    if x is None or shape is None or one is None or many is None or out is None or "?" in shape:
        return None
    if len(shape) != 4 or one != (*shape[:2], 1, *shape[2:]) or len(many) != 5:
        return None
    times = many[2]
    if many != (*shape[:2], times, *shape[2:]) or not isinstance(times, int) or not isinstance(shape[1], int):
        return None
    if out != (shape[0], shape[1] * times, *shape[2:]):
        return None
    return x, times, [outer, spread, inner]


class RotaryEmbedding(RegionRule):
    """x cos + concat(-x2, x1) sin -> RotaryEmbedding(x, cos, sin), x of batch, heads, length, size"""

    ops = ("Add",)

    def find(self, node: ir.Node) -> Region | str | None:
        for straight, turned in (node.inputs, node.inputs[::-1]):
            first, second = g.producer(straight, "Mul"), g.producer(turned, "Mul")
            if first is None or second is None:
                continue
            for x, cos in (first.inputs, first.inputs[::-1]):
                for half, sin in (second.inputs, second.inputs[::-1]):
                    nodes = _rotated(half, x)
                    if nodes is not None and x is not None and cos is not None and sin is not None:
                        return self._embedding(node, x, cos, sin, (*nodes, first, second, node))
        return None

    def _embedding(
        self, node: ir.Node, x: ir.Value, cos: ir.Value, sin: ir.Value, nodes: tuple[ir.Node, ...]
    ) -> Region | str | None:
        shape = g.dims(x)
        if shape is None or len(shape) != 4 or shape != g.dims(node.outputs[0]) or "?" in shape:
            return "x has not four known dimensions"
        batch, _, length, size = shape
        if not isinstance(size, int) or not isinstance(batch, int):
            return "batch or size are not numbers"
        halves = [_half(c, length, size) for c in (cos, sin)]
        for why in halves:
            if isinstance(why, str):
                return why

        def make(op: Builder) -> Any:
            caches = []
            for c in (cos, sin):
                array = g.constant(c, LIMIT)
                assert array is not None
                table = array.reshape(array.shape[-2:])[:, : size // 2]
                caches.append(
                    op.constant(np.broadcast_to(table, (batch, *table.shape)), x.dtype, hint="cache")
                )
            return op.RotaryEmbedding(x, *caches)

        return Region(nodes, make)


def _half(cache: ir.Value, length: int | str, size: int) -> str | None:
    """Why `cache` is no constant [length, size] whose halves are equal, or None."""
    array = g.constant(cache, LIMIT)
    if array is None:
        return "cosines and sines are computed"
    if (
        array.ndim < 2
        or array.shape[-2:] != (length, size)
        or array.size != array.shape[-1] * array.shape[-2]
    ):
        return "cosines and sines are not of shape [length, size]"
    if not np.array_equal(array[..., : size // 2], array[..., size // 2 :]):
        return "the halves of cosines and sines differ"
    return None


def _rotated(value: ir.Value | None, x: ir.Value | None) -> list[ir.Node] | None:
    """The nodes of concat(-x[..., n/2:], x[..., :n/2]) over the last axis, if `value` is that."""
    concat, shape = g.producer(value, "Concat"), g.dims(x)
    if concat is None or len(concat.inputs) != 2 or shape is None or not isinstance(shape[-1], int):
        return None
    if g.attribute(concat, "axis") not in (-1, len(shape) - 1) or shape[-1] % 2:
        return None
    negative = g.producer(concat.inputs[0], "Neg")
    if negative is None:
        return None
    half = shape[-1] // 2
    upper, lower = (
        g.producer(negative.inputs[0], "Slice", "Split"),
        g.producer(concat.inputs[1], "Slice", "Split"),
    )
    if upper is None or lower is None or upper.inputs[0] is not x or lower.inputs[0] is not x:
        return None
    if upper is lower and upper.op_type == "Split":
        whole = [g.dims(v) for v in upper.outputs]
        last = g.attribute(upper, "axis", 0) in (-1, len(shape) - 1)
        order = negative.inputs[0] is upper.outputs[1] and concat.inputs[1] is upper.outputs[0]
        even = len(whole) == 2 and all(w is not None and w[-1] == half for w in whole)
        return [concat, negative, upper] if last and order and even else None
    if _range(upper, len(shape)) == (half, shape[-1]) and _range(lower, len(shape)) == (0, half):
        return [concat, negative, upper, lower]
    return None


def _range(node: ir.Node, rank: int) -> tuple[int, int] | None:
    """What a Slice takes of the last axis, where it takes the others whole."""
    if node.op_type != "Slice" or node.inputs[0] is None:
        return None
    starts, ends, axes, steps = (g.constant(v, 8) for v in (*node.inputs[1:], None, None)[:4])
    size = (g.dims(node.inputs[0]) or ("?",))[-1]
    if starts is None or ends is None or starts.size != 1 or not isinstance(size, int):
        return None
    if axes is None or int(axes[0]) % rank != rank - 1 or (steps is not None and steps[0] != 1):
        return None
    start, end = int(starts[0]), int(ends[0])
    return (start + size if start < 0 else start), min(end + size if end < 0 else end, size)


ATTENTION = Rewrite("attention", (RotaryEmbedding(), Attention()))
