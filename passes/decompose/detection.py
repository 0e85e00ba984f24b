"""NonMaxSuppression of one class in one picture, its boxes in falling order of their scores.

NonMaxSuppression(boxes, scores)     -> Concat over pictures and classes of (picture, class, Gather(order, S)), where
    values, order = TopK(scores of the class)
    S = NonMaxSuppression(Gather(boxes, order), N, N-1 .. 1; 0 where values <= threshold)
boxes by their centers               -> by their corners; without extent -> somewhere apart

Kernels differ in which of two equal scores they take first. The standard takes the first box, TopK does too, and the
numbers that it is replaced by are all different.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.rewriting import Builder, NodeRule, Rule

INT64, FLOAT = ir.DataType.INT64, ir.DataType.FLOAT
ORDERED = "tapeout.ordered"  # on a node whose scores are all different
# Pictures times classes that are written out.
WRITTEN_OUT = 128


def _vector(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


class OneClass(NodeRule):
    """NonMaxSuppression(boxes, scores) -> one for each class of each picture, of ordered boxes"""

    ops = ("NonMaxSuppression",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        if ORDERED in node.metadata_props:
            return None
        boxes, scores, most, overlap, threshold = (*node.inputs, None, None, None)[:5]
        dims = g.dims(scores)
        if most is None:
            return "no box is asked for"
        if boxes is None or dims is None or not isinstance(dims[0], int) or not isinstance(dims[1], int):
            return "the number of pictures or classes is not known"
        if not 0 < dims[0] * dims[1] <= WRITTEN_OUT:
            return f"{dims[0]} pictures of {dims[1]} classes"
        corners = _corners(op, boxes) if g.attribute(node, "center_point_box", 0) else boxes
        most = op.Reshape(most if most.dtype == INT64 else op.Cast(most, to=INT64), _vector(1))
        limit = None if threshold is None else op.Reshape(threshold, _vector(1))
        known = 0.0 if overlap is None else g.scalar(overlap)
        share = op.Reshape(overlap, _vector(1)) if known is None else np.array([known], np.float32)
        corners = _apart(op, corners, share)
        found = []
        for picture in range(dims[0]):
            mine = op.Gather(corners, np.array(picture, np.int64), axis=0)
            all_scores = op.Gather(scores, np.array(picture, np.int64), axis=0)
            for kind in range(dims[1]):
                places = self._one(
                    op, mine, op.Gather(all_scores, np.array(kind, np.int64), axis=0), most, share, limit
                )
                column = op.Pad(op.Reshape(places, _vector(-1, 1)), _vector(0, 2, 0, 0))
                found.append(op.Add(column, np.array([[picture, kind, 0]], np.int64)))
        return op.Concat(*found, axis=0) if len(found) > 1 else found[0]

    def _one(self, op: Builder, boxes: Any, scores: Any, most: Any, share: Any, limit: Any) -> Any:
        """The places of the boxes [N,4] that are kept, by their scores [N]."""
        count = op.Shape(scores)
        values, order = op.TopK(scores, count, axis=-1, largest=1, sorted=1, _outputs=2)
        number = op.Squeeze(count, _vector(0))
        ranks = op.Cast(op.Range(number, np.array(0, np.int64), np.array(-1, np.int64)), to=FLOAT)
        if limit is not None:
            ranks = op.Where(op.Greater(values, limit), ranks, np.zeros(1, np.float32))
        kept = op.NonMaxSuppression(
            op.Unsqueeze(op.Gather(boxes, order, axis=0), _vector(0)), op.Reshape(ranks, _vector(1, 1, -1)),
            op.Min(most, count), share, np.array([0.5], np.float32),
        )  # fmt: skip
        kept.producer().metadata_props[ORDERED] = "1"
        return op.Gather(order, op.Gather(kept, np.array(2, np.int64), axis=1), axis=0)


def _apart(op: Builder, boxes: Any, share: Any) -> Any:
    """Boxes [B,N,4] by corners; those without extent, which overlap nothing, get one each, away from all others:
    LiteRT gives wrong places where there is one. A share of 1 or more is not exceeded: so all of them then."""
    y, x, far_y, far_x = (op.Slice(boxes, _vector(i), _vector(i + 1), _vector(2)) for i in range(4))
    area = op.Mul(op.Abs(op.Sub(far_y, y)), op.Abs(op.Sub(far_x, x)))
    alone = op.Not(op.Greater(area, np.zeros(1, np.float32)))
    if not (isinstance(share, np.ndarray) and share[0] < 1):
        alone = op.Or(alone, op.Not(op.Less(share, np.ones(1, np.float32))))
    count = op.Squeeze(op.Shape(boxes, start=1, end=2), _vector(0))
    steps = op.Cast(op.Range(np.array(0, np.int64), count, np.array(1, np.int64)), to=FLOAT)
    line = op.Reshape(steps, _vector(1, -1, 1))
    low, none = op.Add(op.Mul(line, 2.0), 2.0), op.Mul(line, 0.0)
    unit = op.Add(op.ReduceMax(op.Abs(boxes), keepdims=1), 1.0)
    places = op.Mul(op.Concat(low, none, op.Add(low, 1.0), op.Add(none, 1.0), axis=2), unit)
    return op.Where(alone, places, boxes)


def _corners(op: Builder, boxes: ir.Value) -> Any:
    """(x, y, width, height) of the center as two corners (y, x)."""
    x, y, w, h = (op.Slice(boxes, _vector(i), _vector(i + 1), _vector(2)) for i in range(4))
    half_w, half_h = op.Mul(w, 0.5), op.Mul(h, 0.5)
    sides = (op.Sub(y, half_h), op.Sub(x, half_w), op.Add(y, half_h), op.Add(x, half_w))
    return op.Concat(*sides, axis=2)


DETECTION: tuple[Rule, ...] = (OneClass(),)
