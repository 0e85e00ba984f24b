"""Operators over any axis or order of channels, in terms of those over the usual one.

Softmax(x, axis=a)           -> Transpose(Softmax(Transpose(x)))       likewise LogSoftmax, Hardmax
DepthToSpace(x, b, "CRD")    -> DepthToSpace(channels of x reordered, b, "DCR")
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.rewriting import Builder, NodeRule


class SoftmaxOnLastAxis(NodeRule):
    """Softmax(x, axis=a) -> Transpose(Softmax(Transpose(x))), likewise LogSoftmax, Hardmax"""

    ops = ("Softmax", "LogSoftmax", "Hardmax")

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        rank = g.rank(node.inputs[0])
        if rank is None:
            return "the rank is not known"
        axis = g.attribute(node, "axis", -1) % max(rank, 1)
        if axis == rank - 1 or rank == 0:
            return None
        perm = [i for i in range(rank) if i != axis] + [axis]
        turned = op.Transpose(node.inputs[0], perm=perm)
        made = op.node(node.op_type, [turned], {"axis": -1})[0]
        return op.Transpose(made, perm=[perm.index(i) for i in range(rank)])


class DepthToSpaceByColumns(NodeRule):
    """DepthToSpace(x, b, "CRD") -> DepthToSpace(Gather(x, order), b, "DCR"), order over the channels.
    A convolution that makes x and is read by nobody else takes the order into its weights."""

    ops = ("DepthToSpace",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        if g.attribute(node, "mode", "DCR") != "CRD":
            return None
        x, shape, b = node.inputs[0], g.dims(node.inputs[0]), g.attribute(node, "blocksize")
        if x is None or shape is None or not isinstance(shape[1], int):
            return "the number of channels is not known"
        order = np.arange(shape[1]).reshape(-1, b * b).T.reshape(-1)
        conv = g.producer(x, "Conv")
        fixed = conv is not None and all(g.is_constant(v) for v in conv.inputs[1:] if v is not None)
        if conv is not None and fixed and g.only_use(x) is node and g.attribute(conv, "group", 1) == 1:
            op.covers([conv, node])
            made = [_picked(op, v, order) for v in conv.inputs[1:]]
            attributes = {k: v.value for k, v in conv.attributes.items()}
            return op.DepthToSpace(op.node("Conv", [conv.inputs[0], *made], attributes)[0], blocksize=b)
        return op.DepthToSpace(op.Gather(x, order.astype(np.int64), axis=1), blocksize=b)


def _picked(op: Builder, value: ir.Value | None, order: np.ndarray[Any, Any]) -> ir.Value | None:
    """A constant whose first axis is `value`'s in another order."""
    if value is None:
        return None
    tensor, shape, dtype = value.const_value, g.static_dims(value), value.dtype
    assert tensor is not None and shape is not None and dtype is not None
    return g.add_lazy_constant(op.graph, shape, dtype, lambda: tensor.numpy()[order], value.name or "weight")
