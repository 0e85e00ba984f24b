"""DepthToSpace in its column order, which TFLite lacks, as the depth order of permuted channels.

    DepthToSpace(Conv(x, W, B), CRD) -> DepthToSpace(Conv(x, W[p], B[p]), DCR)
    DepthToSpace(x, CRD)             -> DepthToSpace(Gather(x, p, axis=1), DCR)     else

p takes channel c*b*b + k, which CRD puts at place k of block c, to k*C + c, where DCR looks for it.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from tapeout.sdk import Builder, NodeRule, Rewrite
from tapeout.sdk import graph as g


class ColumnOrder(NodeRule):
    """DepthToSpace(x, CRD) -> DepthToSpace(x[:, p], DCR)"""

    ops: ClassVar = ("DepthToSpace",)

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | str | None:
        if g.attribute(node, "mode", "DCR") != "CRD":
            return None
        x = node.inputs[0]
        shape, block = g.dims(x), g.attribute(node, "blocksize")
        if x is None or shape is None or not isinstance(shape[1], int):
            return "the number of channels is not known"
        order = np.arange(shape[1]).reshape(-1, block * block).T.reshape(-1)
        conv = g.producer(x, "Conv")
        moved = None
        if conv is not None and g.only_use(x) is node:
            moved = self._convolution(op, conv, order)
            if moved is not None:
                op.covers((conv, node))
                x = op.node("Conv", moved, {k: g.attribute(conv, k) for k in conv.attributes})[0]
        if moved is None:
            x = op.Gather(x, op.constant(order, hint="order"), axis=1)
        made: ir.Value = op.DepthToSpace(x, blocksize=block, mode="DCR")
        return made

    def _convolution(
        self, op: Builder, conv: ir.Node, order: np.ndarray[tuple[int], np.dtype[np.int64]]
    ) -> list[ir.Value | None] | None:
        """The inputs of `conv` with its output channels in `order`."""
        x, w, *rest = conv.inputs
        if w is None or not g.is_constant(w) or g.attribute(conv, "group", 1) != 1:
            return None
        tensor = w.const_value
        assert tensor is not None
        inputs = [
            x,
            g.add_lazy_constant(
                op.graph,
                tensor.shape.numpy(),
                tensor.dtype,
                lambda: tensor.numpy()[order],
                w.name or "weight",
            ),
        ]
        if rest and rest[0] is not None:
            bias = g.constant(rest[0])
            if bias is None:
                return None
            inputs.append(op.constant(bias[order], hint="bias"))
        return inputs


Rearranging = Rewrite("tflite-depth-to-space", (ColumnOrder(),))
