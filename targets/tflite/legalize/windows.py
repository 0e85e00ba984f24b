"""The geometry of convolutions and pools: windows, strides, and the padding that TFLite calls SAME."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tapeout.sdk import Builder
from tapeout.sdk import graph as g


@dataclass(frozen=True)
class Window:
    """A window that slides over the spatial axes of a channels-first tensor.

    `pads` holds the begins, then the ends; None where they follow from an unknown size (`auto_pad` says how).
    `size` holds the spatial sizes, symbolic ones included.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    size: tuple[int | str, ...]
    auto_pad: str
    pads: tuple[int, ...] | None

    @property
    def reach(self) -> tuple[int, ...]:
        """The extent of the dilated window on each axis."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def same(self) -> tuple[int, ...] | None:
        """TFLite's SAME: as many results as ceil(size / stride), the odd element of padding at the end."""
        totals = self._same_totals()
        return None if totals is None else (*(t // 2 for t in totals), *(t - t // 2 for t in totals))

    def _same_totals(self) -> list[int] | None:
        totals = []
        for n, stride, reach in zip(self.size, self.strides, self.reach, strict=True):
            if stride == 1:
                totals.append(reach - 1)
            elif isinstance(n, int):
                totals.append(max((-(-n // stride) - 1) * stride + reach - n, 0))
            else:
                return None
        return totals

    @property
    def native(self) -> bool:
        """True where TFLite's VALID or SAME is this padding."""
        if self.pads is None:
            return self.auto_pad == "SAME_UPPER"
        return not any(self.pads) or self.pads == self.same


def window(node: ir.Node) -> Window | str:
    """The window of a Conv, MaxPool or AveragePool, or the reason why it is not known."""
    shape = g.dims(node.inputs[0])
    if shape is None or len(shape) < 3:
        return "the rank of the input is not known"
    rank = len(shape) - 2
    kernel = g.attribute(node, "kernel_shape")
    if kernel is None:
        weight = g.static_dims(node.inputs[1]) if len(node.inputs) > 1 else None
        if weight is None:
            return "the shape of the kernel is not known"
        kernel = weight[2:]
    strides = g.attribute(node, "strides") or (1,) * rank
    dilations = g.attribute(node, "dilations") or (1,) * rank
    auto_pad = g.attribute(node, "auto_pad", "NOTSET")
    pads: tuple[int, ...] | None = g.attribute(node, "pads") or (0,) * (2 * rank)
    if auto_pad != "NOTSET":
        pads = (0,) * (2 * rank)
    made = Window(tuple(kernel), tuple(strides), tuple(dilations), shape[2:], auto_pad, pads)
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        same = made.same
        if same is not None and auto_pad == "SAME_LOWER":
            same = (*same[rank:], *same[:rank])
        made = Window(made.kernel, made.strides, made.dilations, made.size, auto_pad, same)
    return made


def results(w: Window, ceil: bool) -> list[int] | None:
    """How many results the window gives on each axis, None where a size is not known."""
    if w.pads is None:
        return None
    counts = []
    for i, (n, stride, reach) in enumerate(zip(w.size, w.strides, w.reach, strict=True)):
        if not isinstance(n, int):
            return None
        padded = n + w.pads[i] + w.pads[i + len(w.size)] - reach
        count = (-(-padded // stride) if ceil else padded // stride) + 1
        if ceil and (count - 1) * stride >= n + w.pads[i]:
            count -= 1  # the last window would start behind the tensor and its front padding
        counts.append(count)
    return counts


def pad(op: Builder, x: ir.Value, pads: Sequence[int], value: float = 0.0) -> ir.Value:
    """`x` with explicit padding of its spatial axes."""
    half = len(pads) // 2
    full = np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64)
    assert x.dtype is not None
    filler = op.constant(np.array(value, x.dtype.numpy()), hint="pad_value")
    padded: ir.Value = op.Pad(x, op.constant(full, hint="pads"), filler, mode="constant")
    return padded


def attributes(node: ir.Node, **changed: object) -> dict[str, object]:
    """The attributes of `node` with some changed; None removes one."""
    found = {name: g.attribute(node, name) for name in node.attributes}
    return {k: v for k, v in {**found, **changed}.items() if v is not None}
