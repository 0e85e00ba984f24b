"""Transposed convolutions as TFLite has them: no dilation, one group, no cropping but SAME's.

ConvTranspose(x, W, dilations=d)      -> ConvTranspose(x, W with d-1 zeros between its elements)
ConvTranspose(x, W, group=n)          -> Concat over the groups
ConvTranspose(x, W, output_padding=p) -> ConvTranspose(x, W with zeros at its end)
ConvTranspose(x, W, pads=p)           -> Slice(ConvTranspose(x, W)), cut by p
auto_pad, output_shape                -> pads, where sizes are known
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from tapeout.sdk import Builder, NodeRule, Rewrite
from tapeout.sdk import graph as g
from tapeout.targets.tflite.legalize.windows import attributes

Array = np.ndarray[Any, Any]
_END = np.iinfo(np.int64).max


class Groups(NodeRule):
    """ConvTranspose(x, W, group=n) -> Concat(ConvTranspose(x_i, W_i))"""

    ops: ClassVar = ("ConvTranspose",)

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | str | None:
        group = g.attribute(node, "group", 1)
        if group == 1 or g.rank(node.inputs[0]) != 4:
            return None
        x, w, b = (*node.inputs, None)[:3]
        shape = g.static_dims(w)
        if x is None or w is None or shape is None:
            return "the shape of the weight is not known"
        parts = _split(op, x, group, shape[0] // group, 1)
        weights = _split(op, w, group, shape[0] // group, 0)
        biases = [None] * group if b is None else _split(op, b, group, shape[1], 0)
        made = [
            op.node("ConvTranspose", [v for v in inputs if v is not None], attributes(node, group=None))[0]
            for inputs in zip(parts, weights, biases, strict=True)
        ]
        joined: ir.Value = op.Concat(*made, axis=1)
        return joined


def _split(op: Builder, value: ir.Value, count: int, each: int, axis: int) -> list[ir.Value]:
    """`value` in `count` equal parts along `axis`; a constant along its first axis when it is written."""
    tensor = value.const_value
    if tensor is None or not g.is_constant(value) or axis != 0:
        sizes = op.constant(np.full(count, each, np.int64), hint="split")
        return list(op.Split(value, sizes, axis=axis, _outputs=count))

    def part(begin: int) -> ir.Value:
        rest = [int(d) for d in tensor.shape][1:]  # type: ignore[arg-type]
        return g.add_lazy_constant(
            op.graph,
            (each, *rest),
            tensor.dtype,
            lambda: tensor.numpy()[begin : begin + each],
            value.name or "weight",
        )

    return [part(i * each) for i in range(count)]


class Plain(NodeRule):
    """ConvTranspose(x, W, dilations, output_padding, pads) -> Slice(ConvTranspose(x, W'))"""

    ops: ClassVar = ("ConvTranspose",)

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | str | None:
        x, w, *rest = node.inputs
        shape, tensor = g.static_dims(w), None if w is None else w.const_value
        dims = g.dims(x)
        if dims is None or len(dims) != 4 or shape is None or w is None or g.attribute(node, "group", 1) != 1:
            return None
        strides = g.attribute(node, "strides") or (1, 1)
        dilations = g.attribute(node, "dilations") or (1, 1)
        extra = g.attribute(node, "output_padding") or (0, 0)
        reach = tuple((k - 1) * d + 1 for k, d in zip(shape[2:], dilations, strict=True))
        totals = _totals(node, dims[2:], strides, reach, extra)
        if isinstance(totals, str):
            return totals
        # A result longer than the convolution's is zeros (and bias) behind it.
        extra = tuple(e + max(-t, 0) for e, t in zip(extra, totals, strict=True))
        pads = _pads(node, [max(t, 0) for t in totals])
        longer = tuple(max(e - p, 0) for e, p in zip(extra, pads[2:], strict=True))
        cut = (*pads[:2], *(max(p - e, 0) for e, p in zip(extra, pads[2:], strict=True)))
        kernel = tuple(r + more for r, more in zip(reach, longer, strict=True))
        stated = any(g.attribute(node, name) for name in ("output_padding", "output_shape", "auto_pad"))
        same_kernel = kernel == shape[2:]
        native = not any(cut) or cut == same_pads(dims[2:], strides, kernel)
        if native and same_kernel and not stated:
            return None
        if not same_kernel:
            if tensor is not None and g.is_constant(w):
                w = g.add_lazy_constant(
                    op.graph,
                    (*shape[:2], *kernel),
                    tensor.dtype,
                    lambda: _spread(tensor.numpy(), dilations, kernel),
                    w.name or "weight",
                )
            elif max(dilations) == 1:
                ends = [0] * 6 + [k - n for k, n in zip(kernel, shape[2:], strict=True)]
                w = op.Pad(w, op.constant(np.array(ends, np.int64), hint="pads"))
            else:
                return "the weight is computed, and dilated"
        changed = {"dilations": None, "output_padding": None, "output_shape": None, "auto_pad": None}
        kept = attributes(
            node, **{**changed, "kernel_shape": kernel, "strides": strides, "pads": cut if native else None}
        )
        (made,) = op.node("ConvTranspose", [x, w, *rest], kept)
        if native:
            return made
        ends = [-c if c else _END for c in cut[2:]]
        cropped: ir.Value = op.Slice(
            made, *(op.constant(np.array(v, np.int64)) for v in (cut[:2], ends, (2, 3)))
        )
        return cropped


def same_pads(
    size: tuple[int | str, ...], strides: tuple[int, ...], kernel: tuple[int, ...]
) -> tuple[int, ...] | None:
    """What TFLite's SAME cuts off the full result: down to size * stride, the odd element at the end.

    None where the kernel is shorter than the stride, as nothing is cut then.
    """
    totals = [k - s for k, s in zip(kernel, strides, strict=True)]
    if min(totals) < 0:
        return None
    return (*(t // 2 for t in totals), *(t - t // 2 for t in totals))


def _totals(
    node: ir.Node,
    size: tuple[int | str, ...],
    strides: tuple[int, ...],
    reach: tuple[int, ...],
    extra: tuple[int, ...],
) -> list[int] | str:
    """What is cut off on each axis, both ends together, as the ONNX operator defines it; negative: added."""
    wanted = g.attribute(node, "output_shape")
    if wanted:
        if not all(isinstance(n, int) for n in size):
            return "output_shape of an unknown size"
        lengths = zip(size, strides, extra, reach, wanted[-2:], strict=True)
        return [s * (int(n) - 1) + e + r - o for n, s, e, r, o in lengths]
    if g.attribute(node, "auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        return [e + r - s for s, e, r in zip(strides, extra, reach, strict=True)]
    pads = g.attribute(node, "pads") or (0, 0, 0, 0)
    return [max(pads[0] + pads[2], 0), max(pads[1] + pads[3], 0)]


def _pads(node: ir.Node, totals: list[int]) -> tuple[int, ...]:
    """Begins and ends of what is cut off."""
    auto_pad = g.attribute(node, "auto_pad", "NOTSET")
    if not g.attribute(node, "output_shape") and auto_pad in ("NOTSET", "VALID"):
        return g.attribute(node, "pads") or (0, 0, 0, 0)
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return (*small, *large) if auto_pad == "SAME_UPPER" else (*large, *small)


def _spread(weight: Array, dilations: tuple[int, ...], kernel: tuple[int, ...]) -> Array:
    """The elements of a kernel at their dilated places, zeros between and behind."""
    made = np.zeros((*weight.shape[:2], *kernel), weight.dtype)
    reach = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    made[:, :, : reach[0] : dilations[0], : reach[1] : dilations[1]] = weight
    return made


Transposed = Rewrite("tflite-transposed-convolution", (Groups(), Plain()))
