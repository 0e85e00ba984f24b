"""What a region of arithmetic computes, as a polynomial: one rule then covers every spelling of a formula.

`Reader` reads a value as a sum of products of atoms, `{monomial: coefficient}`. Atoms are the values at
which reading stops, reciprocals and reciprocal square roots; one-element constants are coefficients, larger
ones atoms.

    x * (1 + T) * 0.5   ->   {x: 0.5, x*T: 0.5}
    (x - m) / sqrt(s)   ->   {x*rsqrt(s): 1, m*rsqrt(s): -1}
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.rewriting import Builder, NodeRule

Atom = tuple[str, ir.Value]  # "value", "recip" (1/value) or "rsqrt" (value**-0.5)
Monomial = tuple[Atom, ...]
Polynomial = dict[Monomial, float]

ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Neg", "Pow", "Reciprocal"})
TERMS, DEPTH = 12, 12


class Opaque(Exception):
    """The region is not a small polynomial."""


def monomial(*atoms: ir.Value | Atom) -> Monomial:
    """The product of atoms (values stand for themselves), in canonical order."""
    full = [a if isinstance(a, tuple) else ("value", a) for a in atoms]
    return tuple(sorted(full, key=lambda a: (a[0], id(a[1]))))


class Reader:
    """Reads values as polynomials, never past `stops`. `nodes` collects what was read through."""

    def __init__(self, stops: Iterable[ir.Value]) -> None:
        self.stops = {id(v) for v in stops}
        self.nodes: dict[ir.Node, None] = {}

    def read(self, value: ir.Value | None) -> Polynomial | None:
        """`value` as a polynomial, or None where it is no small one."""
        try:
            return self._value(value, 0)
        except Opaque:
            return None

    def _value(self, value: ir.Value | None, depth: int) -> Polynomial:
        if value is None or depth > DEPTH:
            raise Opaque
        number = g.scalar(value)
        if number is not None:
            return {(): float(number)}
        node = value.producer()
        if id(value) in self.stops or node is None or node.domain != "" or node.op_type not in ARITHMETIC:
            return {monomial(value): 1.0}
        first, second = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
        self.nodes[node] = None
        if node.op_type == "Reciprocal":
            return self._inverse(first, depth + 1)
        if node.op_type == "Neg":
            return _times(self._value(first, depth + 1), {(): -1.0})
        if node.op_type == "Pow":
            return self._power(value, node, depth)
        left = self._value(first, depth + 1)
        if node.op_type == "Div":
            return _times(left, self._inverse(second, depth + 1))
        right = self._value(second, depth + 1)
        if node.op_type == "Mul":
            return _times(left, right)
        return _plus(left, right if node.op_type == "Add" else _times(right, {(): -1.0}))

    def _power(self, value: ir.Value, node: ir.Node, depth: int) -> Polynomial:
        base, exponent = node.inputs[0], g.scalar(node.inputs[1])
        if exponent in (2, 3):
            factor = self._value(base, depth + 1)
            square = _times(factor, factor)
            return square if exponent == 2 else _times(square, factor)
        if exponent == -0.5 and base is not None:
            return {monomial(("rsqrt", base)): 1.0}
        if exponent == -1:
            return self._inverse(base, depth + 1)
        del self.nodes[node]
        return {monomial(value): 1.0}

    def _inverse(self, value: ir.Value | None, depth: int) -> Polynomial:
        number = g.scalar(value)
        if number is not None:
            if number == 0:
                raise Opaque
            return {(): 1.0 / float(number)}
        root = g.producer(value, "Sqrt")
        power = g.producer(value, "Pow")
        if power is not None and g.scalar(power.inputs[1]) == 0.5:
            root = power
        if root is not None and id(value) not in self.stops and root.inputs[0] is not None:
            self.nodes[root] = None
            return {monomial(("rsqrt", root.inputs[0])): 1.0}
        if value is None or g.is_constant(value):
            raise Opaque
        return {monomial(("recip", value)): 1.0}


def _plus(a: Polynomial, b: Polynomial) -> Polynomial:
    total = dict(a)
    for key, number in b.items():
        total[key] = total.get(key, 0.0) + number
    if len(total) > TERMS:
        raise Opaque
    return {k: v for k, v in total.items() if v != 0.0}


def _times(a: Polynomial, b: Polynomial) -> Polynomial:
    if len(a) * len(b) > TERMS * TERMS:
        raise Opaque
    total: Polynomial = {}
    for left, x in a.items():
        for right, y in b.items():
            key = monomial(*left, *right)
            total[key] = total.get(key, 0.0) + x * y
    if len(total) > TERMS:
        raise Opaque
    return {k: v for k, v in total.items() if v != 0.0}


def equal(found: Polynomial | None, wanted: Mapping[Monomial, float]) -> bool:
    """Whether both have the same terms, coefficients equal within float32 rounding."""
    return (
        found is not None
        and found.keys() == wanted.keys()
        and all(math.isclose(found[k], v, rel_tol=2e-6) for k, v in wanted.items())
    )


def upstream(value: ir.Value | None, through: frozenset[str] = ARITHMETIC, limit: int = 24) -> list[ir.Node]:
    """The nodes reached backward from `value` through nodes of the types `through`, nearest first; the nodes
    at which the walk ends are in the list too."""
    found: dict[ir.Node, None] = {}
    queue = [value]
    for v in queue:
        node = None if v is None else v.producer()
        if node is None or node in found or len(found) >= limit:
            continue
        found[node] = None
        if node.domain == "" and node.op_type in through:
            queue.extend(node.inputs)
    return list(found)


def candidates(value: ir.Value | None) -> list[ir.Value]:
    """Values that `value` may be a formula of: itself and what its arithmetic reads, nearest first."""
    inside = [n for n in upstream(value, limit=12) if n.op_type in ARITHMETIC]
    values = [value, *(v for n in inside for v in n.inputs)]
    return list(dict.fromkeys(v for v in values if v is not None and not g.is_constant(v)))


@dataclass(frozen=True)
class Region:
    """A recognised formula: the nodes that compute it and how to make its fused form."""

    nodes: tuple[ir.Node, ...]
    make: Callable[[Builder], Any]


def call(op_type: str, *inputs: Any, **attributes: Any) -> Callable[[Builder], Any]:
    """Makes one node of the standard domain."""
    return lambda op: op.node(op_type, inputs, attributes)[0]


class RegionRule(NodeRule):
    """A rule that recognises what a region computes. `find` answers for one root; values inside the region
    may be read by nobody outside it."""

    @abstractmethod
    def find(self, node: ir.Node) -> Region | str | None: ...

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        region = self.find(node)
        if region is None or isinstance(region, str):
            return region
        leak = leaking(node, region.nodes)
        if leak is not None:
            return f"'{leak.name}' inside the pattern is read elsewhere"
        op.covers([*reversed([n for n in region.nodes if n is not node]), node])
        return region.make(op)


def leaking(root: ir.Node, nodes: Iterable[ir.Node]) -> ir.Value | None:
    """A value made by `nodes` without `root` that is read outside of them, if there is one."""
    inside = {id(n) for n in nodes} | {id(root)}
    for n in nodes:
        for v in () if n is root else n.outputs:
            if v.is_graph_output() or any(id(u.node) not in inside for u in v.uses()):
                return v
    return None
