"""Attention and rotary embedding in terms of products, a softmax and slices.

    Attention(Q, K, V, M)  -> softmax(softcap(c Q K') + M) V, batch and heads in front
    RotaryEmbedding(x)     -> concat(x1 cos - x2 sin, x1 sin + x2 cos), x1, x2 the halves (or the even and odd
                              elements) of the rotated part

Heads packed into the last axis, fewer heads of K and V than of Q, past keys and values, boolean masks and
masks shorter than the keys, causal masks and windows, the number of keys that count, and the intermediate
product as an output are written out (ONNX operators Attention-23 to -25, RotaryEmbedding-23).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.rewriting import Builder, NodeRule

# Constant masks of up to this many elements are looked at.
LIMIT = 1 << 24
WHOLE = (
    ir.DataType.BOOL,
    ir.DataType.INT64,
    ir.DataType.INT32,
    ir.DataType.INT16,
    ir.DataType.INT8,
    ir.DataType.UINT8,
)


def _present(values: Any, i: int) -> ir.Value | None:
    return values[i] if i < len(values) else None


class Attention(NodeRule):
    """Attention(Q, K, V, M) -> softmax(c Q K' + M) V"""

    ops = ("Attention",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        query, key, value = node.inputs[:3]
        mask, past_key, past_value, lengths = (_present(node.inputs, i) for i in range(3, 7))
        packed = g.rank(query) == 3
        if query is None or query.dtype is None or g.rank(query) not in (3, 4):
            return "the rank of Q is not known"
        if packed:
            heads, kv_heads = g.attribute(node, "q_num_heads"), g.attribute(node, "kv_num_heads")
            query, key, value = (
                _unpacked(op, query, heads),
                _unpacked(op, key, kv_heads),
                _unpacked(op, value, kv_heads),
            )
        shapes = [g.dims(v) for v in (query, key, value)]
        if any(s is None or len(s) != 4 for s in shapes):
            return "the shapes of Q, K and V are not known"
        q, k, _ = shapes
        assert q is not None and k is not None
        if not isinstance(q[1], int) or not isinstance(k[1], int) or not isinstance(q[3], int):
            return "heads or sizes are not numbers"
        past = 0
        if past_key is not None:
            length = (g.dims(past_key) or ("?",) * 3)[2]
            if not isinstance(length, int):
                return "the length of the past is not a number"
            past = length
            key, value = op.Concat(past_key, key, axis=2), op.Concat(past_value, value, axis=2)
        present = (key, value)
        groups, scale = q[1] // k[1], g.attribute(node, "scale") or 1 / math.sqrt(q[3])
        rows, columns = q[2], g.dims(key)[2]  # type: ignore[index]
        if groups > 1:
            key, value = _repeat(op, key, groups), _repeat(op, value, groups)
        scores = op.MatMul(op.Mul(query, scale), op.Transpose(key, perm=[0, 1, 3, 2]))
        softcap = g.attribute(node, "softcap", 0.0)
        capped = op.Mul(op.Tanh(op.Div(scores, softcap)), softcap) if softcap else scores
        assert query.dtype is not None
        hidden = self._masks(op, node, query.dtype, mask, lengths, rows, columns, past)
        if isinstance(hidden, str):
            return hidden
        biases, emptying = hidden
        biased = capped
        for each in biases:
            biased = op.Add(biased, each)
        weights = _softmax(op, node, biased)
        if emptying:
            most = op.ReduceMax(biased, np.array([-1], np.int64), keepdims=1)
            weights = op.Where(op.Equal(most, -math.inf), op.constant(0, query.dtype), weights)
        shown = (scores, capped, biased, weights)[g.attribute(node, "qk_matmul_output_mode", 0)]
        y = op.MatMul(weights, value)
        if packed:
            y = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), np.array([0, 0, -1], np.int64))
        outputs = [y, *present, shown][: len(node.outputs)]
        return [v if v.producer() is not None else op.Identity(v) for v in outputs]

    def _masks(
        self, op: Builder, node: ir.Node, dtype: ir.DataType, mask: ir.Value | None, lengths: ir.Value | None,
        rows: int | str, columns: int | str, past: int,
    ) -> tuple[list[Any], bool] | str:  # fmt: skip
        """What is added to the scores (the mask as numbers, causal mask and window, the end of the keys), and
        whether a row may be hidden whole: its weights are 0 then, not NaN."""
        found: list[Any] = []
        emptying = False
        infinity, zero = op.constant(-math.inf, dtype), op.constant(0, dtype)
        if mask is not None:
            shape = g.dims(mask)
            if shape is None:
                return "the shape of the mask is not known"
            bias = op.Where(mask, zero, infinity) if mask.dtype == ir.DataType.BOOL else mask
            spread = g.producer(mask, "Expand")
            if spread is not None and bias is mask and g.rank(spread.inputs[0]) == len(shape):
                inner = g.dims(spread.inputs[0])
                if inner is not None and inner[-1] == shape[-1]:
                    bias = spread.inputs[0]  # Add broadcasts by itself
            if isinstance(shape[-1], int) and isinstance(columns, int) and shape[-1] < columns:
                pads = np.zeros(2 * len(shape), np.int64)
                pads[-1] = columns - shape[-1]
                bias = op.Pad(bias, pads, infinity)
            elif shape[-1] != columns:
                return "the length of the mask is not known to be that of the keys"
            found.append(bias)
            emptying = not finite(mask)
        places = self._places(op, node, dtype, lengths, rows, columns, past)
        if isinstance(places, str):
            return places
        return [*found, *places], emptying or lengths is not None

    def _places(
        self, op: Builder, node: ir.Node, dtype: ir.DataType, lengths: ir.Value | None,
        rows: int | str, columns: int | str, past: int,
    ) -> list[Any] | str:  # fmt: skip
        """What the positions hide: keys past the end, later keys, keys outside of the window."""
        causal = g.attribute(node, "is_causal", 0)
        left, right = (g.attribute(node, f"{side}_window_size", -1) for side in ("left", "right"))
        bounded = causal or left >= 0 or right >= 0
        if not bounded and lengths is None:
            return []
        if not isinstance(rows, int) or not isinstance(columns, int):
            return "a causal mask, a window or a number of keys needs lengths that are numbers"
        after = min([0] * bool(causal) + [right] * (right >= 0), default=None)
        distance = np.arange(columns)[None, :] - np.arange(rows)[:, None]
        if lengths is None:
            seen = np.ones((rows, columns), bool)
            if after is not None:
                seen &= distance - past <= after
            if left >= 0:
                seen &= distance - past >= -left
            return [op.constant(np.where(seen, 0.0, -np.inf), dtype, hint="causal")]
        infinity, zero = op.constant(-math.inf, dtype), op.constant(0, dtype)
        ends = op.Reshape(lengths, np.array([-1, 1, 1, 1], np.int64))
        inside = [op.Less(op.constant(np.arange(columns, dtype=np.int64).reshape(1, 1, 1, -1)), ends)]
        offset = op.Sub(ends, rows)
        apart = op.constant(distance.astype(np.int64).reshape(1, 1, rows, columns))
        if after is not None:
            inside.append(op.LessOrEqual(apart, op.Add(offset, after)))
        if left >= 0:
            inside.append(op.GreaterOrEqual(apart, op.Sub(offset, left)))
        return [op.Where(each, zero, infinity) for each in inside]


def _softmax(op: Builder, node: ir.Node, x: Any) -> Any:
    precision = g.attribute(node, "softmax_precision")
    if precision is None or precision == int(x.dtype):
        return op.Softmax(x, axis=-1)
    return op.Cast(op.Softmax(op.Cast(x, to=precision), axis=-1), to=int(x.dtype))


def finite(mask: ir.Value) -> bool:
    """Whether a mask hides no row whole: a constant with a finite number in each row, or products and sums of
    finite constants with what was cast from integers or booleans."""
    if mask.dtype == ir.DataType.BOOL:
        array = g.constant(mask, LIMIT)
        return array is not None and bool(np.all(np.any(array, axis=-1)))
    if g.is_constant(mask):
        array = g.constant(mask, LIMIT)
        return array is not None and bool(np.all(np.any(np.isfinite(array.astype(np.float64)), axis=-1)))
    queue, steps = [mask], 0
    while queue:
        value, steps = queue.pop(), steps + 1
        node = value.producer()
        if steps > 32 or (node is None and not g.is_constant(value)):
            return False
        if node is None:
            array = g.constant(value, LIMIT)
            if array is None or not np.all(np.isfinite(array.astype(np.float64))):
                return False
        elif node.op_type == "Cast" and node.inputs[0] is not None and node.inputs[0].dtype in WHOLE:
            continue
        elif node.op_type in ("Mul", "Add", "Sub", "Neg", "Cast"):
            queue.extend(v for v in node.inputs if v is not None)
        elif (
            node.op_type in ("Expand", "Unsqueeze", "Squeeze", "Reshape", "Transpose")
            and node.inputs[0] is not None
        ):
            queue.append(node.inputs[0])
        elif node.op_type == "Where":
            queue.extend(v for v in node.inputs[1:] if v is not None)
        else:
            return False
    return True


def _unpacked(op: Builder, x: ir.Value | None, heads: int) -> Any:
    """[batch, length, heads * size] -> [batch, heads, length, size]"""
    split = op.Reshape(x, np.array([0, 0, heads, -1], np.int64))
    return op.Transpose(split, perm=[0, 2, 1, 3])


def _repeat(op: Builder, x: Any, times: int) -> Any:
    """Each head `times` times: [B, H, S, D] -> [B, H * times, S, D]"""
    shape = g.dims(x)
    assert shape is not None and isinstance(shape[1], int)
    tiled = op.Tile(op.Unsqueeze(x, np.array([2], np.int64)), np.array([1, 1, times, 1, 1], np.int64))
    sizes = [d if isinstance(d, int) else 0 for d in shape]
    if isinstance(shape[2], str):
        return op.Reshape(tiled, np.array([0, shape[1] * times, -1, sizes[3]], np.int64))
    return op.Reshape(tiled, np.array([0, shape[1] * times, sizes[2], sizes[3]], np.int64))


class RotaryEmbedding(NodeRule):
    """RotaryEmbedding(x, cos, sin) -> concat(x1 cos - x2 sin, x1 sin + x2 cos)"""

    ops = ("RotaryEmbedding",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        x, cos, sin = node.inputs[:3]
        positions = _present(node.inputs, 3)
        shape = g.dims(x)
        if x is None or shape is None or len(shape) not in (3, 4):
            return "the rank is not known"
        packed = len(shape) == 3
        y: Any = _unpacked(op, x, g.attribute(node, "num_heads")) if packed else x
        size = (g.dims(y) or ("?",))[-1]
        if not isinstance(size, int):
            return "the size of the heads is not a number"
        rotated = g.attribute(node, "rotary_embedding_dim", 0) or size
        if positions is not None:
            cos, sin = op.Gather(cos, positions, axis=0), op.Gather(sin, positions, axis=0)
        one = np.array([1], np.int64)
        cos, sin = op.Unsqueeze(cos, one), op.Unsqueeze(sin, one)  # over the heads
        rest = None
        if rotated < size:
            y, rest = _slice(op, y, 0, rotated), _slice(op, y, rotated, size)
        half = rotated // 2
        interleaved = g.attribute(node, "interleaved", 0)
        if interleaved:
            first, second = _slice(op, y, 0, rotated, 2), _slice(op, y, 1, rotated, 2)
        else:
            first, second = _slice(op, y, 0, half), _slice(op, y, half, rotated)
        real = op.Sub(op.Mul(first, cos), op.Mul(second, sin))
        imaginary = op.Add(op.Mul(first, sin), op.Mul(second, cos))
        if interleaved:
            last = np.array([-1], np.int64)
            pairs = op.Concat(op.Unsqueeze(real, last), op.Unsqueeze(imaginary, last), axis=-1)
            full = g.dims(y)
            assert full is not None
            if isinstance(full[1], str):
                return "the number of heads is not a number"
            y = op.Reshape(pairs, np.array([0, full[1], 0, rotated], np.int64))
        else:
            y = op.Concat(real, imaginary, axis=-1)
        if rest is not None:
            y = op.Concat(y, rest, axis=-1)
        if packed:
            y = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), np.array([0, 0, -1], np.int64))
        return y


def _slice(op: Builder, x: Any, start: int, end: int, step: int = 1) -> Any:
    """x[..., start:end:step]"""
    bounds = [np.array([n], np.int64) for n in (start, end, -1, step)]
    return op.Slice(x, *bounds)


ATTENTION = (Attention(), RotaryEmbedding())
