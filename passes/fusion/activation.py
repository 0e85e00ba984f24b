"""Activations that exporters spell out in arithmetic, as one operator; one rule for every spelling.

    x/2 * (1 + erf(x / sqrt(2)))                            -> Gelu(x)
    x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))       -> Gelu(x, approximate="tanh")
    x * sigmoid(a x)                                        -> Swish(x, alpha=a)    (1.702: GELU's third form)
    x * tanh(softplus(x))                                   -> Mish(x)
    clip(x + 3, 0, 6) / 6                                   -> HardSigmoid(x, 1/6, 1/2)
    x * clip(x + 3, 0, 6) / 6                               -> HardSwish(x)
    max(x, 0)                                               -> Relu(x)
    min(max(x, a), b)                                       -> Clip(x, a, b)
    max(x, a x), 0 < a < 1                                  -> LeakyRelu(x, a)
    relu(x) - a relu(-x)                                    -> PRelu(x, a) or LeakyRelu(x, a)

All are equal up to rounding for every finite x. At infinities the spelled form often computes inf * 0 = NaN
where the operator gives the limit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.rewriting import Builder, NodeRule, Rewrite
from tapeout.passes.fusion.algebra import (
    Polynomial,
    Reader,
    Region,
    RegionRule,
    call,
    candidates,
    equal,
    monomial,
    upstream,
)

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def _gates(root: ir.Node, *op_types: str) -> Iterator[tuple[ir.Node, ir.Value]]:
    """Pairs of a node with one of `op_types` above `root` and a value that both may be formulas of."""
    for gate in upstream(root.outputs[0]):
        if gate.domain == "" and gate.op_type in op_types:
            for x in candidates(gate.inputs[0]):
                yield gate, x


def _region(
    root: ir.Node, gate: ir.Node, x: ir.Value, outer: dict[tuple[str, ...], float], inner: dict[int, float]
) -> tuple[ir.Node, ...] | None:
    """The nodes of the region if `root` is the sum of products `outer` of "x" and "t" (the gate's output) and
    the gate's input is the polynomial `inner` in x, by degree."""
    letters = {"x": x, "t": gate.outputs[0]}
    reader = Reader([x, gate.outputs[0]])
    found = reader.read(root.outputs[0])
    if not equal(found, {monomial(*(letters[c] for c in key)): v for key, v in outer.items()}):
        return None
    if not equal(reader.read(gate.inputs[0]), {monomial(*[x] * n): v for n, v in inner.items()}):
        return None
    return (*reader.nodes, gate)


def _same_rank(root: ir.Node, x: ir.Value) -> bool:
    """One-element constants only take part in these formulas: the shapes are equal where the ranks are."""
    return x.dtype in FLOATS and g.rank(x) is not None and g.rank(x) == g.rank(root.outputs[0])


class Gelu(RegionRule):
    """x/2 * (1 + erf(x / sqrt(2))) -> Gelu(x), and the tanh form likewise."""

    ops = ("Mul", "Div", "Add")

    def find(self, node: ir.Node) -> Region | str | None:
        outer = {("x",): 0.5, ("x", "t"): 0.5}
        c = math.sqrt(2 / math.pi)
        for gate, x in _gates(node, "Erf", "Tanh"):
            if gate.op_type == "Erf":
                nodes, form = _region(node, gate, x, outer, {1: math.sqrt(0.5)}), None
            else:
                nodes, form = _region(node, gate, x, outer, {1: c, 3: c * 0.044715}), "tanh"
            if nodes is not None and _same_rank(node, x):
                return Region(nodes, call("Gelu", x, approximate=form))
        return None


class Swish(RegionRule):
    """x * sigmoid(a x) -> Swish(x, alpha=a)"""

    ops = ("Mul", "Div")

    def find(self, node: ir.Node) -> Region | str | None:
        for gate, x in _gates(node, "Sigmoid"):
            reader = Reader([x])
            slope = _slope(reader.read(gate.inputs[0]), x)
            if slope is None:
                continue
            nodes = _region(node, gate, x, {("x", "t"): 1.0}, {1: slope})
            if nodes is not None and _same_rank(node, x):
                alpha = None if slope == 1.0 else slope
                return Region(nodes, call("Swish", x, alpha=alpha))
        return None


def _slope(found: Polynomial | None, x: ir.Value) -> float | None:
    return found[monomial(x)] if found is not None and found.keys() == {monomial(x)} else None


class Mish(RegionRule):
    """x * tanh(softplus(x)) -> Mish(x), softplus spelled as such or as log(1 + exp(x))"""

    ops = ("Mul",)

    def find(self, node: ir.Node) -> Region | str | None:
        for gate in upstream(node.outputs[0]):
            inner = g.producer(gate.inputs[0], "Softplus", "Log") if gate.op_type == "Tanh" else None
            if inner is None:
                continue
            inside, x = [inner], inner.inputs[0]
            if inner.op_type == "Log":
                exp = next((n for n in upstream(inner.inputs[0]) if n.op_type == "Exp"), None)
                reader = Reader([] if exp is None else exp.outputs)
                if exp is None or not equal(
                    reader.read(inner.inputs[0]), {(): 1.0, monomial(exp.outputs[0]): 1.0}
                ):
                    continue
                inside, x = [inner, *reader.nodes, exp], exp.inputs[0]
            reader = Reader([gate.outputs[0]] + ([] if x is None else [x]))
            if x is None or not equal(reader.read(node.outputs[0]), {monomial(x, gate.outputs[0]): 1.0}):
                continue
            if _same_rank(node, x):
                return Region((*reader.nodes, gate, *inside), call("Mish", x))
        return None


def _clipped(gate: ir.Node, x: ir.Value) -> tuple[float, float, float, tuple[ir.Node, ...]] | None:
    """`gate` as c * clip(a x + b, 0, 1): (c, a, b, the nodes read through)."""
    if gate.op_type == "HardSigmoid":
        alpha, beta = g.attribute(gate, "alpha", 0.2), g.attribute(gate, "beta", 0.5)
        return (1.0, alpha, beta, (gate,)) if gate.inputs[0] is x else None
    low, high = (g.scalar(v) for v in (*gate.inputs, None, None)[1:3])
    if low != 0 or high is None or high <= 0 or not math.isfinite(high):
        return None
    reader = Reader([x])
    found = reader.read(gate.inputs[0])
    if found is None or not found.keys() <= {(), monomial(x)} or monomial(x) not in found:
        return None
    return float(high), found[monomial(x)] / high, found.get((), 0.0) / high, (gate, *reader.nodes)


def _near(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=2e-6)


class HardSigmoid(RegionRule):
    """clip(x + 3, 0, 6) / 6 -> HardSigmoid(x, 1/6, 1/2); clip(x/5 + 1/2, 0, 1) -> HardSigmoid(x, 1/5, 1/2)"""

    ops = ("Mul", "Div", "Clip")

    def find(self, node: ir.Node) -> Region | str | None:
        gates = (
            [(node, x) for x in candidates(node.inputs[0])]
            if node.op_type == "Clip"
            else list(_gates(node, "Clip"))
        )
        for gate, x in gates:
            parts = _clipped(gate, x)
            if (
                parts is None
                or not _near(parts[2], 0.5)
                or not (_near(parts[1], 1 / 6) or _near(parts[1], 0.2))
            ):
                continue
            reader = Reader([x, gate.outputs[0]])
            if not equal(
                reader.read(node.outputs[0]), {monomial(gate.outputs[0]): 1 / parts[0]}
            ) or not _same_rank(node, x):
                continue
            alpha = 1 / 6 if _near(parts[1], 1 / 6) else 0.2
            nodes = (*reader.nodes, *parts[3])
            return Region(nodes, call("HardSigmoid", x, alpha=alpha, beta=0.5))
        return None


class HardSwish(RegionRule):
    """x * clip(x + 3, 0, 6) / 6 -> HardSwish(x), and x * HardSigmoid(x, 1/6, 1/2) likewise"""

    ops = ("Mul", "Div")

    def find(self, node: ir.Node) -> Region | str | None:
        for gate, x in _gates(node, "Clip", "HardSigmoid"):
            parts = _clipped(gate, x)
            if parts is None or not _near(parts[1], 1 / 6) or not _near(parts[2], 0.5):
                continue
            reader = Reader([x, gate.outputs[0]])
            wanted = {monomial(x, gate.outputs[0]): 1 / parts[0]}
            if equal(reader.read(node.outputs[0]), wanted) and _same_rank(node, x):
                return Region((*reader.nodes, *parts[3]), call("HardSwish", x))
        return None


def _limit(node: ir.Node) -> tuple[ir.Value, float] | None:
    """A Max or Min of a float value with a number, not growing its rank."""
    if len(node.inputs) != 2:
        return None
    for x, bound in (node.inputs, node.inputs[::-1]):
        number = g.scalar(bound)
        if x is not None and number is not None and not g.is_constant(x) and _same_rank(node, x):
            return x, float(number)
    return None


class ClipFromMinMax(NodeRule):
    """max(x, 0) -> Relu(x); max(x, a) -> Clip(x, a); min(Clip(x, a), b) -> Clip(x, a, b), a <= b"""

    ops = ("Max", "Min")

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        found = _limit(node)
        if found is None:
            return None
        x, number = found
        inner = g.producer(x, "Relu", "Clip")
        if node.op_type == "Max":
            if number == 0 and inner is None:
                return op.Relu(x)
            if inner is None or inner.op_type == "Relu":
                return op.Clip(x, number)
            low, high = _bounds(inner)
            if low is None and high is not None and number <= high and g.only_use(x):
                op.covers([inner, node])
                return op.Clip(inner.inputs[0], number, high)
            return op.Clip(x, number)
        if inner is not None and g.only_use(x):
            low, high = _bounds(inner)
            if low is not None and high is None and low <= number:
                op.covers([inner, node])
                return op.Clip(inner.inputs[0], low, number)
        return op.Clip(x, None, number)


def _bounds(node: ir.Node) -> tuple[float | None, float | None]:
    """The constant bounds of a Relu or Clip; NaN where a bound is computed."""
    if node.op_type == "Relu":
        return 0.0, None
    pair: list[float | None] = [None, None]
    for i, v in enumerate(node.inputs[1:3]):
        number = g.scalar(v)
        pair[i] = None if v is None else math.nan if number is None else number
    return pair[0], pair[1]


class ReluFromClip(NodeRule):
    """Clip(x, 0) -> Relu(x), an upper bound of infinity being none"""

    ops = ("Clip",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        low, high = _bounds(node)
        if (
            low == 0
            and (high is None or high == math.inf)
            and node.inputs[0] is not None
            and node.inputs[0].dtype in FLOATS
        ):
            return op.Relu(node.inputs[0])
        return None


class LeakyReluFromMax(RegionRule):
    """max(x, a x) -> LeakyRelu(x, a) for a number a; -> PRelu(x, a) for a constant a of several; 0 < a < 1"""

    ops = ("Max",)

    def find(self, node: ir.Node) -> Region | str | None:
        if len(node.inputs) != 2:
            return None
        for x, scaled in (node.inputs, node.inputs[::-1]):
            mul = g.producer(scaled, "Mul")
            if mul is None or x is None or x not in mul.inputs or not _same_rank(node, x):
                continue
            slope = mul.inputs[1] if mul.inputs[0] is x else mul.inputs[0]
            array = g.constant(slope, limit=1 << 16)
            if slope is None or array is None or not np.all((array > 0) & (array < 1)):
                return None if array is None else "the slope is not between 0 and 1"
            return Region((mul,), functools.partial(_leaky, x=x, slope=slope))
        return None


class PReluFromRelus(RegionRule):
    """relu(x) - a relu(-x) -> PRelu(x, a), a constant that broadcasts into x"""

    ops = ("Add", "Sub")

    def find(self, node: ir.Node) -> Region | str | None:
        for positive in (g.producer(v, "Relu") for v in node.inputs[:2]):
            x = None if positive is None else positive.inputs[0]
            minus = {} if x is None else {monomial(x): -1.0}
            relus = [r for r in upstream(node.outputs[0]) if r.op_type == "Relu" and r is not positive]
            stop = [] if x is None else [x]
            negative = next((r for r in relus if equal(Reader(stop).read(r.inputs[0]), minus)), None)
            if positive is None or negative is None or x is None:
                continue
            reader = Reader([positive.outputs[0], negative.outputs[0]])
            found = dict(reader.read(node.outputs[0]) or {})
            first = found.pop(monomial(positive.outputs[0]), 0.0)
            if not _near(first, 1.0) or len(found) != 1 or not _same_rank(node, x):
                continue
            (term, number) = next(iter(found.items()))
            rest = [a for a in term if a[1] is not negative.outputs[0]]
            if (
                len(rest) == len(term)
                or len(rest) > 1
                or any(a[0] != "value" or not g.is_constant(a[1]) for a in rest)
            ):
                continue
            sign = Reader([x])
            sign.read(negative.inputs[0])
            nodes = (*reader.nodes, *sign.nodes, positive, negative)
            slope = rest[0][1] if rest else None
            return Region(nodes, functools.partial(_leaky, x=x, slope=slope, factor=-number))
        return None


def _leaky(op: Builder, x: ir.Value, slope: ir.Value | None, factor: float = 1.0) -> Any:
    """The operator with the slope `factor * slope`, or the reason why it does not fit."""
    array = np.asarray(factor) if slope is None else g.constant(slope, limit=1 << 22)
    if array is None:
        return "the slope has more than 4 million elements"
    array = array.astype(np.float64) * (1.0 if slope is None else factor)
    if array.size == 1 or np.all(array == array.reshape(-1)[0]):
        return op.LeakyRelu(x, alpha=float(array.reshape(-1)[0]))
    shape = g.dims(x)
    assert shape is not None
    if any(d not in (1, s) for d, s in zip(array.shape[::-1], shape[::-1], strict=False)):
        return f"the slope of shape {array.shape} does not broadcast into {shape}"
    return op.PRelu(x, op.constant(array, x.dtype, hint="slope"))


ACTIVATION = Rewrite(
    "activation",
    (
        ClipFromMinMax(),
        ReluFromClip(),
        HardSigmoid(),
        HardSwish(),
        Gelu(),
        Swish(),
        Mish(),
        LeakyReluFromMax(),
        PReluFromRelus(),
    ),
)
