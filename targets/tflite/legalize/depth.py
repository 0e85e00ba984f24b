"""Convolutions over three axes as convolutions over two, for there is no integer kernel for three.

Conv3d(x[N,C,D,H,W], W[O,C,K,KH,KW]) -> Conv(concat over k of x[.., k + i*stride, ..] along the channels,
                                             W'[O,K*C,KH,KW]), its results over D folded into the batch

Exact; the input of the convolution is K times as large.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from tapeout.sdk import Builder, NodeRule, Rewrite
from tapeout.sdk import graph as g
from tapeout.targets.tflite.legalize.windows import pad, results, window


class ConvOverThree(NodeRule):
    """Conv3d(x, W, B) -> Conv(slices of x over D, side by side, W', B)"""

    ops: ClassVar = ("Conv",)

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | str | None:
        x, weight, *rest = node.inputs
        if x is None or weight is None or g.rank(x) != 5:
            return None
        if g.attribute(node, "group", 1) != 1:
            return "it has groups"
        shape, kernel, tensor = g.static_dims(x), g.static_dims(weight), weight.const_value
        if shape is None or kernel is None or tensor is None or not g.is_constant(weight):
            return "a size or the kernel is not known"
        w = window(node)
        if isinstance(w, str) or w.pads is None:
            return w if isinstance(w, str) else "the padding is not known"
        counts = results(w, ceil=False)
        assert counts is not None
        n, c, _, height, width = shape
        depth, steps, holes = w.kernel[0], w.strides, w.dilations
        begin, end = w.pads[0], w.pads[3]
        if begin or end:
            x = pad(op, x, (begin, 0, 0, end, 0, 0))
        parts = [self._part(op, x, k * holes[0], steps[0], counts[0]) for k in range(depth)]
        wide = parts[0] if depth == 1 else op.Concat(*parts, axis=1)  # [N, K*C, D', H, W]
        flat = self._reshape(
            op, op.Transpose(wide, perm=(0, 2, 1, 3, 4)), (n * counts[0], depth * c, height, width)
        )
        packed = (kernel[0], depth * c, *kernel[3:])
        turned = g.add_lazy_constant(
            op.graph,
            packed,
            tensor.dtype,
            lambda: np.ascontiguousarray(tensor.numpy().transpose(0, 2, 1, 3, 4)).reshape(packed),
            weight.name or "weight",
        )
        plane = (*w.pads[1:3], *w.pads[4:])
        (made,) = op.node(
            "Conv", [flat, turned, *rest], {"strides": steps[1:], "dilations": holes[1:], "pads": plane}
        )
        folded = self._reshape(op, made, (n, counts[0], kernel[0], *counts[1:]))
        result: ir.Value = op.Transpose(folded, perm=(0, 2, 1, 3, 4))
        return result

    def _part(self, op: Builder, x: ir.Value, start: int, step: int, count: int) -> ir.Value:
        """The slices start, start + step, ... of `x` over D."""

        def one(value: int, hint: str) -> ir.Value:
            return op.constant(np.array([value], np.int64), hint=hint)

        ends = one(start + step * (count - 1) + 1, "ends")
        made: ir.Value = op.Slice(x, one(start, "starts"), ends, one(2, "axes"), one(step, "steps"))
        return made

    def _reshape(self, op: Builder, x: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        made: ir.Value = op.Reshape(x, op.constant(np.array(shape, np.int64), hint="shape"))
        return made


OverDepth = Rewrite("tflite-over-depth", (ConvOverThree(),))
