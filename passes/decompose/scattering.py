"""Scattering in terms of comparisons, reductions and Gather.

ScatterElements(x, i, u)             -> Reshape(ScatterND(flat x, positions, flat u))
ScatterND(x, i, u, reduction=max)    -> Max(x, ReduceMax over updates of Where(place == i, u, x)), min likewise
ScatterND(x, i, u, reduction=mul)    -> Mul(x, ReduceProd over updates of Where(place == i, u, 1))
TensorScatter(cache, u, start)       -> Where(place - start within u, Gather(u, place - start), cache)
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.rewriting import Builder, NodeRule, Rule
from tapeout.passes.decompose.indexing import INT64, Result, from_start, linear, vector

# Places times updates that are compared, at most: every update is held against every place.
COMPARED = 1 << 22


class ScatterInElements(NodeRule):
    """ScatterElements(x, i, u) -> Reshape(ScatterND(flat x, positions, flat u))"""

    ops = ("ScatterElements",)

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        data, indices, updates = node.inputs
        assert data is not None and indices is not None
        found = linear(op, data, indices, g.attribute(node, "axis", 0))
        if isinstance(found, str):
            return found
        places = op.Reshape(found, vector(-1, 1))
        flat = op.ScatterND(
            op.Reshape(data, vector(-1)), places, op.Reshape(updates, vector(-1)),
            reduction=g.attribute(node, "reduction", "none"),
        )  # fmt: skip
        shape = g.static_dims(data)
        return op.Reshape(flat, op.Shape(data) if shape is None else vector(*shape))


class ScatterReduced(NodeRule):
    """ScatterND(x, i, u, reduction=max|min|mul) -> the reduction over all updates of those that are for a place"""

    ops = ("ScatterND",)

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        reduction = g.attribute(node, "reduction", "none")
        if reduction not in ("max", "min", "mul"):
            return None
        x, indices, updates = node.inputs
        assert x is not None and x.dtype is not None and indices is not None
        shape, extent = g.static_dims(x), g.static_dims(indices)
        if shape is None or extent is None:
            return f"reduction {reduction}, and a size is not known"
        depth, count = extent[-1], math.prod(extent[:-1])
        places, size = math.prod(shape[:depth]), math.prod(shape[depth:])
        if not count or count * places * size > COMPARED:
            return f"reduction {reduction} of {count} updates at {places} places of {size} elements"
        strides = np.array([math.prod(shape[i + 1 : depth]) for i in range(depth)], np.int64)
        whole = from_start(op, indices, np.array(shape[:depth], np.int64))
        place = op.ReduceSum(op.Mul(whole, strides), vector(-1), keepdims=0)
        mine = op.Equal(
            op.Reshape(place, vector(count, 1, 1)), np.arange(places, dtype=np.int64)[None, :, None]
        )
        flat = op.Reshape(x, vector(1, places, size))
        drawn = op.Reshape(updates, vector(count, 1, size))
        if reduction == "mul":
            spread = op.Where(mine, drawn, np.ones((), x.dtype.numpy()))
            made = op.Mul(flat, op.ReduceProd(spread, vector(0), keepdims=1))
        else:
            reduce, pair = (op.ReduceMax, op.Max) if reduction == "max" else (op.ReduceMin, op.Min)
            made = pair(flat, reduce(op.Where(mine, drawn, flat), vector(0), keepdims=1))
        return op.Reshape(made, vector(*shape))


class CacheScatter(NodeRule):
    """TensorScatter(cache, u, start) -> Where(0 <= p < size of u, Gather(u, p), cache), p = place - start, modulo
    the size of the cache where it is circular"""

    ops = ("TensorScatter",)

    def rewrite(self, op: Builder, node: ir.Node) -> Result:
        cache, update, start = (*node.inputs, None)[:3]
        assert cache is not None and update is not None
        shape, given = g.static_dims(cache), g.static_dims(update)
        if shape is None or given is None:
            return "a size is not known"
        rank = len(shape)
        axis = g.attribute(node, "axis", -2) % rank
        size, length = shape[axis], given[axis]
        if not length:
            return "the update has no elements"
        place = np.arange(size, dtype=np.int64).reshape([-1 if i == axis else 1 for i in range(rank)])
        behind = op.constant(np.broadcast_to(place, (shape[0], *place.shape[1:])).copy())
        if start is not None:
            wide = start if start.dtype == INT64 else op.Cast(start, to=INT64)
            behind = op.Sub(place, op.Reshape(wide, vector(-1, *[1] * (rank - 1))))
        if g.attribute(node, "mode", "linear") == "circular":
            behind = op.Mod(behind, np.array(size, np.int64))
        zero, end = np.array(0, np.int64), np.array(length, np.int64)
        within = op.And(op.GreaterOrEqual(behind, zero), op.Less(behind, end))
        source = op.Max(op.Min(behind, np.array(length - 1, np.int64)), zero)
        taken = op.GatherElements(update, op.Expand(source, vector(*shape)), axis=axis)
        return op.Where(within, taken, cache)


SCATTERING: tuple[Rule, ...] = (ScatterInElements(), ScatterReduced(), CacheScatter())
