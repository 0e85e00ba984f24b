"""A graph as the search for axis orders sees it: members that pick a mode, tensors that cost copies.

Every node that is no view picks an order; a root tensor is stored as its producer makes it, and once more for
each other sequence of atoms in which someone reads it. The cost of a root is its bytes for each such copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import onnx_ir as ir

from tapeout.passes.layout.freedom import Operator, Order, Port, identity
from tapeout.passes.layout.operators import describe
from tapeout.passes.layout.views import Form, Group, Root, View, Views, flat


class Mode(NamedTuple):
    """What a node picks: the order of its space, and for a matrix the sequence of the factors of its rows."""

    order: Order
    rows: Group | None = None


@dataclass(slots=True, eq=False)
class Use:
    """A place where a root is made or read, as `view` of it, by `member` (None: a graph's input or
    output)."""

    member: Member | None
    view: View
    value: ir.Value
    port: Port | None
    index: int = -1  # of the node's inputs or outputs
    made: bool = False
    forms: dict[Mode, Form] = field(default_factory=dict)

    def form(self, mode: Mode | None) -> Form:
        """How the tensor is stored here."""
        if mode is None or self.port is None:
            return self.view.form
        found = self.forms.get(mode)
        if found is None:
            own = self.view.form
            found = tuple(() if a is None else own[a] for a in self.port.pick(mode.order))
            if self.port.rows and mode.rows is not None:
                found = (*found[:-1], mode.rows)
            self.forms[mode] = found
        return found


@dataclass(slots=True, eq=False)
class Member:
    """A node that is no view."""

    node: ir.Node
    operator: Operator | None
    uses: list[Use] = field(default_factory=list)
    start: Mode | None = None

    @property
    def anchor(self) -> bool:
        """True where there is nothing to choose, and it is not the source's order."""
        o = self.operator
        return (
            o is not None and o.orders is not None and len(o.orders) == 1 and o.orders[0] != identity(o.rank)
        )

    @property
    def free(self) -> bool:
        o = self.operator
        return o is not None and (
            o.orders is None or len(o.orders) > 1 or any(p and p.rows for p in o.inputs)
        )


@dataclass(slots=True, eq=False)
class Tensor:
    """A root with its maker (None for a constant, which has any form for nothing) and its readers."""

    root: Root
    maker: Use | None = None
    readers: list[Use] = field(default_factory=list)


Modes = dict[Member, Mode | None]


class Problem:
    """One graph as members and tensors; `constants` hold no say. `modes` is the assignment so far."""

    def __init__(self, graph: ir.Graph, axis_last: frozenset[str]) -> None:
        self.graph = graph
        self.views = Views(graph)
        self.tensors: dict[Root, Tensor] = {}
        self.members: dict[ir.Node, Member] = {}
        self.outputs: list[Use] = []
        self._axis_last = axis_last
        for value in graph.inputs:
            self._use(None, value, None, made=True)
        for node in graph:
            if node not in self.views.aliases:
                self._member(node)
        for value in graph.outputs:
            use = self._use(None, value, None)
            if use is not None:
                self.outputs.append(use)
        self.modes: Modes = {m: m.start for m in self.members.values()}
        count = 4 + sum(len(t.readers) for t in self.tensors.values())
        self._copy = 2 * count  # one Transpose more is worse than all possible Reshapes
        self._byte = self._copy * count  # one byte more is worse than all of these

    def _use(
        self, member: Member | None, value: ir.Value, port: Port | None, index: int = -1, made: bool = False
    ) -> Use | None:
        view = self.views.of(value)
        if view is None:
            return None
        tensor = self.tensors.get(view.root)
        if tensor is None:
            tensor = self.tensors[view.root] = Tensor(view.root)
            if not view.root.constant and not made:  # of an outer graph
                root = view.root.value
                tensor.maker = Use(None, self.views.of(root) or view, root, None, made=True)
        use = Use(member, view, value, port, index, made)
        if made:
            tensor.maker = use
        elif not view.root.constant:
            tensor.readers.append(use)
        if member is not None:
            member.uses.append(use)
        return use

    def _member(self, node: ir.Node) -> None:
        operator = describe(node, self._axis_last)
        member = self.members[node] = Member(node, operator)
        if operator is not None:
            member.start = Mode(operator.start())
        inputs = operator.inputs if operator is not None else (None,) * len(node.inputs)
        outputs = operator.outputs if operator is not None else (None,) * len(node.outputs)
        for i, (value, port) in enumerate(zip(node.inputs, inputs, strict=True)):
            if value is not None:
                self._use(member, value, port, i)
        for value in captured(node, self.graph):
            self._use(member, value, None)
        for i, value in enumerate(node.outputs):
            self._use(member, value, outputs[i] if i < len(outputs) else None, i, made=True)

    # --- cost ---

    def cost(self, tensor: Tensor, modes: Modes) -> int:
        """Of the copies of one tensor; the bytes first, then their number, then Reshapes."""
        maker = tensor.maker
        if maker is None or not tensor.readers:
            return 0
        own = maker.form(modes[maker.member] if maker.member is not None else None)
        forms = {u.form(modes[u.member] if u.member is not None else None) for u in tensor.readers}
        forms.discard(own)
        if not forms:
            return 0
        sequences = {flat(f) for f in forms}
        sequences.discard(flat(own))
        return len(sequences) * self.weight(tensor) + len(forms)

    def weight(self, tensor: Tensor) -> int:
        """What one more copy of `tensor` costs."""
        return tensor.root.bytes * self._byte + self._copy

    def total(self, modes: Modes) -> int:
        return sum(self.cost(t, modes) for t in self.tensors.values())

    def copies(self, modes: Modes) -> Iterator[tuple[Tensor, set[Group]]]:
        """The tensors that are stored in more than one sequence, with the further sequences."""
        for tensor in self.tensors.values():
            maker = tensor.maker
            if maker is None:
                continue
            own = flat(maker.form(modes[maker.member] if maker.member is not None else None))
            read = {
                flat(u.form(modes[u.member] if u.member is not None else None)) for u in tensor.readers
            } - {own}
            if read:
                yield tensor, read

    def bytes_moved(self, modes: Modes) -> int:
        return sum(t.root.bytes * len(read) for t, read in self.copies(modes))


def captured(node: ir.Node, graph: ir.Graph) -> list[ir.Value]:
    """The values of `graph` that the subgraphs of `node` read."""
    found: dict[ir.Value, None] = {}
    for each in inner_graphs(node):
        for value in (*each.outputs, *(v for n in each for v in n.inputs)):
            if value is not None and value.graph is graph:
                found[value] = None
    return list(found)


def inner_graphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The subgraphs of `node` and theirs."""
    for a in node.attributes.values():
        if a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            for sub in (a.value,) if a.type == ir.AttributeType.GRAPH else a.value:
                yield sub
                yield from sub.subgraphs()
