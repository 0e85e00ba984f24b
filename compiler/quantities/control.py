"""Quantities of loops."""

from __future__ import annotations

from typing import Any

from tapeout.compiler import loops
from tapeout.compiler.ir import graph as g
from tapeout.compiler.operators import Call
from tapeout.compiler.quantities.registry import own


@own("loop.bounded", "a bound on the number of trips")
def _(call: Call) -> Any:
    """True where a Loop says how often it runs at most, as a number or an input below 2^31-1; for devices that
    must know that a model comes to an end."""
    return loops.bounded(call.node) if _loop(call) else None


@own("loop.ends", "an end: a bound, or a condition that is computed")
def _(call: Call) -> Any:
    """True where something ends a Loop: a bound, a condition that its body computes, or one that is false or
    not known at the start."""
    if not _loop(call):
        return None
    start = call.node.inputs[1]
    decided = start is not None and not g.scalar(start)
    return call.node.inputs[0] is not None or loops.conditional(call.node) or decided


@own("loop.filled", "states that do not grow from nothing")
def _(call: Call) -> Any:
    """True where no state of a Loop starts without elements and has another shape after a trip."""
    return loops.growing_from_nothing(call.node) is None if _loop(call) else None


def _loop(call: Call) -> bool:
    return call.node.op_type == "Loop" and call.node.domain == ""
