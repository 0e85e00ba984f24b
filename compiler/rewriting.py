"""Rewrite rules (before, condition with reason, after) and the pass that applies them to a fixpoint.

A rule states an algebra of the graph:

    class GeluErf(PatternRule):
        '''0.5 * x * (1 + erf(x / sqrt(2))) -> Gelu(x)'''

        def before(self, op, x):
            return op.Mul(op.Mul(x, 0.5), op.Add(op.Erf(op.Div(x, 2**0.5)), 1.0))

        def condition(self, m):
            return None if m.x.dtype == ir.DataType.FLOAT else "only float32 is fused"

        def after(self, op, m):
            return op.Gelu(m.x)

`before` is called once; its parameters after `op` are variables. A number matches a one-element constant of
that value, `_` keywords name things: `op.Conv(x, w, _node="conv", _rest=True)` binds the node as `m.conv` and
leaves further inputs free. Commutative operators match in either order, and so do `op.any("Add", "Sub")(a, b)`.
What a rule computes from matched values is up to the Python in `condition` and `after`.
"""

from __future__ import annotations

import inspect
import itertools
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import onnx_ir as ir

from tapeout.compiler.errors import InternalError
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.origin import merged_origin, set_origin
from tapeout.compiler.ir.shapes import infer_node

COMMUTATIVE = frozenset({"Add", "Mul", "And", "Or", "Xor", "Equal", "Max", "Min", "Sum"})


class Declined(NamedTuple):
    """A rule that recognised its pattern at `node` and left it, with the reason."""

    rule: str
    node: str
    reason: str


@dataclass(frozen=True)
class Changes:
    """What a pass did: how many edits, and what it recognised and left."""

    count: int
    declined: tuple[Declined, ...] = ()


class Builder:
    """Makes nodes: `op.Mul(a, b)`, `op.Concat(a, b, axis=1)`.

    Inputs are values, None for an absent optional input, arrays, or Python numbers, which become constants of the
    first value input's dtype. `_outputs=n` makes a node with n outputs and returns a tuple, `_domain` names the
    domain, `_name` hints the names of what is made. Types and shapes of the outputs are inferred at once.
    """

    def __init__(self, place: ir.Node | ir.Graph, origins: tuple[str, ...]) -> None:
        """Make nodes before the node `place`, or at the end of the graph `place` (a subgraph being built)."""
        graph = place if isinstance(place, ir.Graph) else place.graph
        assert isinstance(graph, ir.Graph)
        self.graph = graph
        self.nodes: list[ir.Node] = []
        self.origins = origins
        self._anchor = None if isinstance(place, ir.Graph) else place

    def constant(self, array: Any, dtype: ir.DataType | None = None, hint: str = "constant") -> ir.Value:
        """A new initializer holding `array`, converted to `dtype` where given."""
        array = np.asarray(array)
        return g.add_constant(self.graph, array if dtype is None else array.astype(dtype.numpy()), hint)

    def covers(self, nodes: Iterable[ir.Node]) -> None:
        """What is made from here on computes for `nodes`: a `NodeRule` that replaces more than its root says so."""
        self.origins = merged_origin(nodes)

    def node(
        self,
        op_type: str,
        inputs: Sequence[Any],
        attributes: Mapping[str, Any],
        outputs: int = 1,
        domain: str = "",
        hint: str | None = None,
    ) -> tuple[ir.Value, ...]:
        like = next((v.dtype for v in inputs if isinstance(v, ir.Value)), None)
        values = [
            v if v is None or isinstance(v, ir.Value)
            else self.constant(v) if isinstance(v, np.ndarray | list | tuple)
            else self.constant(v, like)
            for v in inputs
        ]  # fmt: skip
        hint = hint or op_type.lower()
        node = ir.node(
            op_type,
            values,
            {k: v for k, v in attributes.items() if v is not None},
            domain=domain,
            num_outputs=outputs,
            name=g.fresh(self.graph, hint),
        )
        for value in node.outputs:
            value.name = g.fresh(self.graph, hint)
        set_origin(node, self.origins)
        self.adopt(node)
        infer_node(node)
        return tuple(node.outputs)

    def adopt(self, node: ir.Node) -> None:
        """Put a finished node (a copy of another, say) where this makes its nodes."""
        if self._anchor is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(self._anchor, node)
        self.nodes.append(node)

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        if op_type.startswith("_"):
            raise AttributeError(op_type)

        def make(
            *inputs: Any, _outputs: int = 1, _domain: str = "", _name: str | None = None, **attributes: Any
        ) -> Any:
            made = self.node(op_type, inputs, attributes, _outputs, _domain, _name)
            return made[0] if _outputs == 1 else made

        return make


class Rule(ABC):
    """Rewrites one node, seen from its root: `ops` lists the root's op types (standard domain unless "domain::Op")."""

    @property
    @abstractmethod
    def ops(self) -> Sequence[str]: ...

    @property
    def name(self) -> str:
        return type(self).__name__

    @abstractmethod
    def apply(self, node: ir.Node) -> ir.Node | str | None:
        """Rewrite at `node` and return the node that was made there (or `node` itself if it was edited in place),
        a reason if the pattern is there but does not qualify, or None if it is not there."""


class NodeRule(Rule):
    """A rule written as one function of the root node.

    `rewrite(op, node)` returns the value (or tuple of values) that replaces the node's outputs, a reason (str), or
    None. Nodes made before it declines are removed again.
    """

    ops: ClassVar[Sequence[str]] = ()

    @abstractmethod
    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | Sequence[ir.Value] | str | None: ...

    def apply(self, node: ir.Node) -> ir.Node | str | None:
        op = Builder(node, merged_origin([node]))
        result = self.rewrite(op, node)
        return _finish(op, node, result)


# --- patterns -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variable:
    """Stands for any value; the same variable twice stands for the same value twice."""

    name: str


@dataclass(frozen=True)
class Constant:
    """Stands for a one-element constant with this number, within float32 rounding."""

    number: float


@dataclass(frozen=True, eq=False)
class Operation:
    """Stands for one output of a node with these op types, inputs and attributes."""

    op_types: tuple[str, ...]
    inputs: tuple[Any, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    node: str | None = None
    rest: bool = False
    domain: str = ""


class _PatternBuilder:
    def any(self, *op_types: str) -> Callable[..., Operation]:
        def make(
            *inputs: Any, _node: str | None = None, _rest: bool = False, _domain: str = "", **attributes: Any
        ) -> Operation:
            terms = tuple(
                v if isinstance(v, Variable | Constant | Operation) or v is None else Constant(float(v))
                for v in inputs
            )
            return Operation(op_types, terms, attributes, _node, _rest, _domain)

        return make

    def __getattr__(self, op_type: str) -> Callable[..., Operation]:
        if op_type.startswith("_"):
            raise AttributeError(op_type)
        return self.any(op_type)


@dataclass
class Match:
    """What a pattern bound: variables and named nodes as attributes, `nodes` all matched nodes, root first."""

    bound: dict[str, Any] = field(default_factory=dict)
    nodes: list[ir.Node] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["bound"][name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def root(self) -> ir.Node:
        return self.nodes[0]


class PatternRule(Rule):
    """A rule as before / condition / after. Values inside the match may be read by nobody outside it."""

    @abstractmethod
    def before(self, op: Any, *variables: Any) -> Operation: ...

    def condition(self, m: Match) -> str | None:
        """The reason why the match does not qualify, or None."""
        return None

    @abstractmethod
    def after(self, op: Builder, m: Match) -> ir.Value | Sequence[ir.Value] | str | None: ...

    @cached_property
    def pattern(self) -> Operation:
        names = list(inspect.signature(self.before).parameters)[1:]
        return self.before(_PatternBuilder(), *(Variable(n) for n in names))

    @property
    def ops(self) -> Sequence[str]:
        prefix = f"{self.pattern.domain}::" if self.pattern.domain else ""
        return [prefix + op for op in self.pattern.op_types]

    def matches(self, node: ir.Node) -> Iterator[Match]:
        """Every way in which the pattern fits with `node` as its root."""
        for bound, nodes in _match_node(self.pattern, node, {}, ()):
            yield Match(dict(bound), list(nodes))

    def apply(self, node: ir.Node) -> ir.Node | str | None:
        reason: str | None = None
        for m in self.matches(node):
            inside = {id(n) for n in m.nodes}
            leak = next(
                (v for n in m.nodes[1:] for v in n.outputs
                 if v.is_graph_output() or any(id(u.node) not in inside for u in v.uses())),
                None,
            )  # fmt: skip
            why = (
                f"'{leak.name}' inside the pattern is read elsewhere"
                if leak is not None
                else self.condition(m)
            )
            if why is not None:
                reason = reason or why
                continue
            op = Builder(node, merged_origin(reversed(m.nodes)))
            done = _finish(op, node, self.after(op, m))
            if not isinstance(done, str):
                return done
            reason = reason or done
        return reason


def _match_node(
    pattern: Operation, node: ir.Node, bound: dict[str, Any], nodes: tuple[ir.Node, ...]
) -> Iterator[tuple[dict[str, Any], tuple[ir.Node, ...]]]:
    if node.domain != pattern.domain or node.op_type not in pattern.op_types:
        return
    if any(not _same_attribute(g.attribute(node, k), v) for k, v in pattern.attributes.items()):
        return
    actual = list(node.inputs)
    while actual and actual[-1] is None:
        actual.pop()
    if len(actual) < len(pattern.inputs) or (len(actual) > len(pattern.inputs) and not pattern.rest):
        return
    if pattern.node is not None:
        bound = {**bound, pattern.node: node}
    actual = actual[: len(pattern.inputs)]
    orders: list[Sequence[ir.Value | None]] = [actual]
    if len(actual) == 2 and node.op_type in COMMUTATIVE and actual[0] is not actual[1]:
        orders.append(actual[::-1])
    for order in orders:
        yield from _match_inputs(list(zip(pattern.inputs, order, strict=True)), bound, (*nodes, node))


def _match_inputs(
    pairs: list[tuple[Any, ir.Value | None]], bound: dict[str, Any], nodes: tuple[ir.Node, ...]
) -> Iterator[tuple[dict[str, Any], tuple[ir.Node, ...]]]:
    if not pairs:
        yield bound, nodes
        return
    (term, value), rest = pairs[0], pairs[1:]
    if term is None:
        if value is None:
            yield from _match_inputs(rest, bound, nodes)
    elif isinstance(term, Variable):
        known = bound.get(term.name)
        if value is not None and (known is None or known is value):
            yield from _match_inputs(rest, {**bound, term.name: value}, nodes)
    elif isinstance(term, Constant):
        number = g.scalar(value)
        if number is not None and math.isclose(number, term.number, rel_tol=1e-6, abs_tol=1e-12):
            yield from _match_inputs(rest, bound, nodes)
    else:
        made = None if value is None else value.producer()
        if made is not None:
            for b, n in _match_node(term, made, bound, nodes):
                yield from _match_inputs(rest, b, n)


def _same_attribute(actual: Any, wanted: Any) -> bool:
    if isinstance(actual, float) and isinstance(wanted, int | float):
        return math.isclose(actual, wanted, rel_tol=1e-6)
    return bool(actual == (tuple(wanted) if isinstance(wanted, list) else wanted))


def _finish(op: Builder, node: ir.Node, result: Any) -> ir.Node | str | None:
    graph = op.graph
    if result is None or isinstance(result, str):
        for made in reversed(op.nodes):
            graph.remove(made, safe=True)
        g.remove_dead(graph, ())
        return result
    values = (result,) if isinstance(result, ir.Value) else tuple(result)
    for old, new in zip(node.outputs, values, strict=True):
        g.replace(graph, old, new)
    g.remove_dead(graph, [node])
    last = [v.producer() for v in values] + op.nodes[::-1]
    return next((n for n in last if n is not None and n.graph is graph), node)


# --- the pass -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rewrite:
    """Applies rules, indexed by op type, until none applies. `rules` are tried in order at each node."""

    name: str
    rules: tuple[Rule, ...]

    def __call__(self, model: ir.Model) -> Changes:
        index: dict[str, list[Rule]] = {}
        for rule in self.rules:
            for op in rule.ops:
                index.setdefault(op, []).append(rule)
        count, declined = 0, dict[tuple[str, str], Declined]()
        for graph in list(g.graphs(model)):
            count += self._run(graph, index, declined)
            g.remove_dead(graph)
        return Changes(count, tuple(declined.values()))

    def _run(
        self, graph: ir.Graph, index: Mapping[str, list[Rule]], declined: dict[tuple[str, str], Declined]
    ) -> int:
        queue = deque(graph)
        queued = {id(n) for n in queue}
        # Each rewrite should bring the graph nearer to its normal form; a rule set that does not is a fault of ours.
        count, limit = 0, 100 * (len(queue) + 100)
        while queue:
            node = queue.popleft()
            queued.discard(id(node))
            if node.graph is not graph:
                continue
            key = node.op_type if not node.domain else f"{node.domain}::{node.op_type}"
            for rule in index.get(key, ()):
                name = node.name or ""
                around = [n for n in (*node.predecessors(), *node.successors()) if n.graph is graph]
                result = rule.apply(node)
                if isinstance(result, str):
                    declined[rule.name, name] = Declined(rule.name, name, result)
                if result is None or isinstance(result, str):
                    continue
                count += 1
                if count > limit:
                    raise InternalError(
                        f"pass {self.name}: rule {rule.name} does not come to an end at node '{name}'"
                    )
                here = [n for n in (node, result) if n.graph is graph]
                near = itertools.chain(around, here, *((*n.predecessors(), *n.successors()) for n in here))
                for n in near:
                    if n.graph is graph and id(n) not in queued:
                        queue.append(n)
                        queued.add(id(n))
                break
        return count
