"""Quantities of the plan's rows."""

from __future__ import annotations

from typing import Any

from tapeout.compiler.ir.dimensions import parse, symbols
from tapeout.sdk import Call, Quantity, quantity
from tapeout.sdk import graph as g


@quantity("size.known", "sizes that follow from the inputs")
def known(call: Call) -> Any:
    """True where every dimension of every result is a number or an expression of the inputs' free sizes."""
    graph = call.node.graph
    if graph is None:
        return None
    free = {s for v in graph.inputs for d in g.dims(v) or () if isinstance(d, str) for s in symbols(parse(d))}
    shapes = [g.dims(v) for v in call.node.outputs]
    return all(
        s is not None and all(isinstance(d, int) or symbols(parse(d)) <= free for d in s) for s in shapes
    )


@quantity("pad.within", "pads within the tensor")
def within(call: Call) -> Any:
    """True where no pad is negative, or longer than what a border can be taken from once: all of a known axis, for
    reflect one element less."""
    pads, shape = g.constant(call.value("pads"), limit=64), g.dims(call.value("data"))
    axes = g.constant(call.value("axes"), limit=64) if call.value("axes") is not None else None
    if pads is None or shape is None:
        return None
    order = range(len(shape)) if axes is None else [int(a) % len(shape) for a in axes]
    less = int(call.attribute("mode") == "reflect")
    for axis, pad in zip([*order, *order], pads.tolist(), strict=True):
        size = shape[axis]
        if pad < 0 or (
            pad and call.attribute("mode") != "edge" and isinstance(size, int) and pad > size - less
        ):
            return False
        if pad and not isinstance(size, int):
            return None
    return True


@quantity("attention.plain", "lengths that fit")
def plain(call: Call) -> Any:
    """True where the size of a head is known and the mask, if there is one, is as long as the keys."""
    q, k, v = (g.dims(call.value(p)) for p in "QKV")
    if q is None or k is None or v is None or not all(isinstance(s[-1], int) for s in (q, k, v)):
        return None
    mask = call.value("attn_mask")
    shape = g.dims(mask) if mask is not None else (k[-2],)
    return shape is not None and len(shape) <= 4 and shape[-1] == k[-2]


QUANTITIES: tuple[Quantity, ...] = (known, within, plain)
