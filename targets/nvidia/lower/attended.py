"""Attention: one launch, in which no score leaves the chip."""

from __future__ import annotations

import math

import onnx_ir as ir

from tapeout.sdk import graph as g
from tapeout.targets.nvidia.lower.builder import Builder, broadcast, strides
from tapeout.targets.nvidia.plan import expressions as e
from tapeout.targets.nvidia.plan.expressions import Code
from tapeout.targets.nvidia.plan.parts import Value

ONE = e.number(1)


def attention(b: Builder, node: ir.Node) -> None:
    """Attention(Q, K, V, mask), heads in an axis of their own or packed into the last one

    Numbers: batch, heads, heads of K and V, rows, columns; strides over batch, heads and length of Q, K, V and the
    result; with a mask its strides over batch, heads, rows and columns.
    """
    reads = [b.read(v) for v in node.inputs[:3]]
    target = b.output(node.outputs[0])
    heads, kv_heads = g.attribute(node, "q_num_heads", 0), g.attribute(node, "kv_num_heads", 0)
    split = [_heads(b.tensors[t].shape, n) for t, n in zip(reads, (heads, kv_heads, kv_heads), strict=True)]
    (shape, q), (keys, k), (_, v) = split
    batch, count, rows, _ = shape
    _, out = _heads(b.tensors[target].shape, heads)
    numbers = [batch, count, keys[1], rows, keys[2], *q, *k, *v, *out]
    sizes = [_depth(node.inputs[i], n) for i, n in ((0, heads), (2, kv_heads))]
    scale = g.attribute(node, "scale") or 1 / math.sqrt(sizes[0])
    facts: dict[str, Value] = {
        "scale": float(scale), "causal": int(g.attribute(node, "is_causal", 0)), "depth": tuple(sizes),
    }  # fmt: skip
    mask = (*node.inputs, None)[3]
    if mask is not None:
        reads.append(b.read(mask))
        numbers += broadcast(b.tensors[reads[3]].shape, (batch, count, rows, keys[2]))
    b.launch("attention", node, reads, [target], numbers, facts)


def _heads(shape: tuple[Code, ...], heads: int) -> tuple[tuple[Code, ...], list[Code]]:
    """[batch, heads, length, size] and the strides of its first three axes."""
    if len(shape) == 4:
        return shape, strides(shape)[:3]
    batch, length, packed = shape
    size = e.join(e.FLOOR, packed, e.number(heads))
    return (batch, e.number(heads), length, size), [e.product([length, packed]), size, packed]


def _depth(value: ir.Value | None, heads: int) -> int:
    shape = g.dims(value) or (0,)
    return int(shape[-1]) // (heads if len(shape) == 3 else 1)
