"""Ranges of tensors that only one activation reads, by what quantization does behind it.

    y = f(x):   (lo, hi) = argmin sum over x of (f(Q(x)) - f(x))^2

Where f is flat (Swish and Gelu far below zero, Sigmoid at both ends) values may saturate: levels are spent where
they count. What saturation does behind f stays within `QUANTA` levels of y everywhere, so nothing rare is lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.passes.quantization.ranges import Interval, source_names

Array = np.ndarray[Any, Any]
Function = Callable[[Array], Array]

QUANTA = 1.0
LEVELS = 255
# Ends that are tried, as shares of the measured ones.
TRIED = 1.12 ** -np.arange(48)


class Measured(Protocol):
    def for_range(self, name: str, /) -> Any: ...


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -700, 700))))


def erf(x: Array) -> Array:
    return np.array([math.erf(v) for v in x])


FUNCTIONS: dict[str, Function] = {
    "Sigmoid": sigmoid,
    "Tanh": np.tanh,
    "Swish": lambda x: x * sigmoid(x),
    "Gelu": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))),
    "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "HardSigmoid": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "Elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "Softplus": lambda x: np.logaddexp(0, x),
}


def saturating(model: ir.Model, measured: Measured) -> dict[str, Interval]:
    """Ranges by value name, where they are narrower than what was measured."""
    found: dict[str, Interval] = {}
    for node in model.graph:
        for value in node.outputs:
            function = behind(value)
            if function is None or not value.name:
                continue
            known = next((k for n in source_names(value) if (k := measured.for_range(n)) is not None), None)
            if known is None or known.histogram is None or not known.finite or known.constant:
                continue
            edges = known.histogram.edges()
            chosen = search(
                (edges[:-1] + edges[1:]) / 2, known.histogram.counts, known.min, known.max, function
            )
            if chosen is not None:
                found[value.name] = chosen
    return found


def behind(value: ir.Value) -> Function | None:
    """The function that all readers of `value` compute of it together."""
    if value.is_graph_output():
        return None
    readers = {use.node for use in value.uses()}
    if len(readers) == 1:
        (node,) = readers
        plain = node.domain == "" and not (
            node.op_type == "Gelu" and g.attribute(node, "approximate", "none") != "none"
        )
        if node.op_type in ("Swish", "HardSigmoid", "Elu") and node.attributes:
            return None
        return FUNCTIONS.get(node.op_type) if plain else None
    if len(readers) == 2:
        gate = next((n for n in readers if n.op_type in ("Sigmoid", "HardSigmoid")), None)
        product = next((n for n in readers if n.op_type == "Mul"), None)
        if gate is None or product is None or g.only_use(gate.outputs[0]) is not product or gate.attributes:
            return None
        inner = FUNCTIONS[gate.op_type]
        return lambda x: x * inner(x)
    return None


def search(centres: Array, counts: Array, low: float, high: float, function: Function) -> Interval | None:
    """The best range within [low, high] for the histogram, or None where that one is the best."""
    low, high = min(low, 0.0), max(high, 0.0)
    used = counts > 0
    x, weight = np.clip(centres[used], low, high), counts[used].astype(np.float64)
    wanted = function(x)
    level = float(np.ptp(wanted)) / LEVELS
    if level <= 0:
        return None

    def error(lo: float, hi: float) -> float:
        scale = (hi - lo) / LEVELS
        zero = np.rint(-lo / scale)
        made = function((np.clip(np.rint(x / scale) + zero, 0, LEVELS) - zero) * scale)
        return float((weight * (made - wanted) ** 2).sum())

    def harmless(lo: float, hi: float) -> bool:
        return float(np.abs(function(np.clip(x, lo, hi)) - wanted).max()) <= QUANTA * level

    best, least = (low, high), error(low, high)
    for lower in (True, False):
        start = best
        for share in TRIED[1:]:
            tried = (start[0] * share, start[1]) if lower else (start[0], start[1] * share)
            if tried[1] - tried[0] <= 0 or not harmless(*tried):
                break
            if (found := error(*tried)) < least * 0.99:
                best, least = tried, found
    return None if best == (low, high) else (float(best[0]), float(best[1]))
