"""Cuts a legalized graph into parts that run one after another, some on a device and some on the host.

A node lies in the earliest part of its side that comes after all that it reads, or the latest before all that
reads it: of both cuts the one with fewer parts, then fewer bytes across, is taken. A device part is accepted by
the target's rows as a graph of its own; what is not goes to the host.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from tapeout.compiler.declaration import Acceptance, Declaration, Refusal, Row, Violation
from tapeout.compiler.errors import UnsupportedError, UsageError
from tapeout.compiler.explanation import refusal_error
from tapeout.compiler.ir import graph as g
from tapeout.compiler.operators import DEQUANTIZE, Functions, operator_name


@dataclass(frozen=True)
class Limits:
    """The fewest operators that are worth a part on the device, and the most bytes that may go into or out of
    one (free sizes counted as 1); None for any number."""

    smallest: int = 1
    largest: int | None = None

    def __post_init__(self) -> None:
        if self.smallest < 1:
            raise UsageError(f"--smallest-island {self.smallest}: expected at least 1 operator")
        if self.largest is not None and self.largest < 0:
            raise UsageError(f"--largest-transfer {self.largest}: expected a number of bytes")


@dataclass(frozen=True)
class Part:
    """Nodes that run together: what they read from before and what is read of them later, in the graph's order."""

    host: bool
    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]

    @property
    def transfer(self) -> int:
        """Bytes that go in and out."""
        return sum(map(nbytes, (*self.inputs, *self.outputs)))


def partition(model: ir.Model, rows: Declaration, limits: Limits = Limits()) -> tuple[list[Part], Acceptance]:
    """The parts of `model` in the order in which they run, and what is the device's in them: what a limit gives
    to the host counts as refused, with the limit as the constraint. Raises UnsupportedError where nothing is left
    for the device."""
    acceptance = rows.accept(model)
    owner = outermost(model)
    refused = {owner[r.node]: r for r in acceptance.refused}
    while True:
        parts = cut(model, set(refused))
        device = [p for p in parts if not p.host]
        moved = next((found for p in device if (found := _beyond(p, limits, rows, model.functions))), {})
        if not moved:
            for part in device:
                names = {n.name: n for n in part.nodes}
                again = rows.accept(extract(model, part)).refused
                moved |= {names[r.node.name]: r for r in again if r.node.name in names}
        if not device:
            error = refusal_error(replace(acceptance, refused=list(refused.values())))
            raise UnsupportedError(f"nothing is left for the device: {error.message}", nodes=error.nodes)
        if not moved:
            break
        refused |= {node: replace(r, node=node) for node, r in moved.items()}
    whole = {owner[n] for n in acceptance.order if owner[n] in refused}
    placed = [(n, row) for n, row in acceptance.placed if owner[n] not in whole]
    others = [r for r in acceptance.refused if owner[r.node] is not r.node]
    return parts, replace(acceptance, placed=placed, refused=[*refused.values(), *others])


def _beyond(part: Part, limits: Limits, rows: Declaration, functions: Functions) -> dict[ir.Node, Refusal]:
    """The nodes of a device part that is not worth the way there, refused for that."""
    operators = sum(operator_name(n) not in DEQUANTIZE and n.op_type != "QuantizeLinear" for n in part.nodes)
    if operators < limits.smallest:
        broken = Violation(
            "operators of the island",
            f"at least {limits.smallest}",
            str(operators),
            "lower --smallest-island",
        )
    elif limits.largest is not None and part.transfer > limits.largest:
        broken = Violation(
            "bytes to and from the island", f"at most {limits.largest}", str(part.transfer),
            "raise --largest-transfer",
        )  # fmt: skip
    else:
        return {}
    found = {}
    for node in part.nodes:
        row = rows.match(node, functions)
        if isinstance(row, Row):
            found[node] = Refusal(node, operator_name(node), rows.label, row, (broken,))
    return found


def cut(model: ir.Model, host: set[ir.Node]) -> list[Part]:
    """The parts where the nodes `host` are the host's and all others the device's."""
    main = _values(model)
    sources = {n: _sources(n, main) for n in model.graph if not _follows(n)}
    wanted = {*model.graph.outputs}
    for node in reversed(list(sources)):  # what nothing reads is no part's
        if wanted.isdisjoint(node.outputs):
            del sources[node]
        else:
            wanted.update(sources[node])
    found = [_parts(model, sources, _levels(sources, host, late)) for late in (False, True)]
    return min(found, key=lambda parts: (len(parts), sum(p.transfer for p in parts)))


def _follows(node: ir.Node) -> bool:
    """A DequantizeLinear is no node of a part: each part that reads it has a copy, so that clusters stay whole."""
    return operator_name(node) in DEQUANTIZE and not any(v.is_graph_output() for v in node.outputs)


def reads(node: ir.Node) -> list[ir.Value]:
    """What `node` reads, its subgraphs included."""
    every = [v for v in node.inputs if v is not None]
    for body in _bodies(node):
        for inner in ir.traversal.RecursiveGraphIterator(body):
            every += [v for v in inner.inputs if v is not None]
            every += [v for deeper in _bodies(inner) for v in list(deeper.outputs)]
        every += list(body.outputs)
    return list(dict.fromkeys(every))


def _bodies(node: ir.Node) -> list[ir.Graph]:
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.value)
        elif attribute.type == ir.AttributeType.GRAPHS:
            found += attribute.value
    return found


def _sources(node: ir.Node, main: set[ir.Value]) -> list[ir.Value]:
    """What `node` reads of the main graph that is not a constant, through DequantizeLinear."""
    found: list[ir.Value] = []
    for value in reads(node):
        made = value.producer()
        if value in main and made is not None and _follows(made):
            found += _sources(made, main)
        elif value in main:
            found.append(value)
    return list(dict.fromkeys(found))


def _values(model: ir.Model) -> set[ir.Value]:
    """What nodes of the main graph make, and its inputs."""
    return {*model.graph.inputs, *(v for n in model.graph for v in n.outputs)}


Sources = Mapping[ir.Node, list[ir.Value]]  # what each node of the cut reads, in the graph's order


def _levels(sources: Sources, host: set[ir.Node], late: bool) -> dict[ir.Node, int]:
    """The part of each node: even ones are the device's, odd ones the host's."""
    level: dict[ir.Node, int] = {}
    readers: dict[ir.Node, list[ir.Node]] = {}
    for node in sources:
        side = int(node in host)
        least = side
        for value in sources[node]:
            made = value.producer()
            if made is None:
                continue
            readers.setdefault(made, []).append(node)
            least = max(least, level[made] if int(made in host) == side else level[made] + 1)
        level[node] = least
    if late:
        last = max(level.values(), default=0)
        for node in reversed(list(sources)):
            side = int(node in host)
            most = last if last % 2 == side else last - 1
            for reader in readers.get(node, ()):
                most = min(most, level[reader] if int(reader in host) == side else level[reader] - 1)
            if readers.get(node):
                level[node] = max(most, level[node])
    return level


def _parts(model: ir.Model, sources: Sources, level: Mapping[ir.Node, int]) -> list[Part]:
    groups: dict[int, list[ir.Node]] = {}
    for node, number in level.items():
        groups.setdefault(number, []).append(node)
    place = {v: n for node, n in level.items() for v in node.outputs}
    into: dict[int, dict[ir.Value, None]] = {n: {} for n in groups}
    out: dict[int, dict[ir.Value, None]] = {n: {} for n in groups}
    for node, number in level.items():
        for value in sources[node]:
            if place.get(value) == number:
                continue
            into[number][value] = None
            if value in place:
                out[place[value]][value] = None
    for value in model.graph.outputs:
        if value in place:
            out[place[value]][value] = None
    return [
        Part(n % 2 == 1, tuple(groups[n]), tuple(into[n]), tuple(out[n])) for n in sorted(groups) if groups[n]
    ]


def extract(model: ir.Model, part: Part) -> ir.Model:
    """`part` as a model of its own; its weights are those of `model`, not copies."""
    made = model.clone()
    graph = made.graph
    values = {v.name: v for v in graph.inputs} | {v.name: v for n in graph for v in n.outputs}
    outputs = [values[v.name] for v in part.outputs]
    graph.outputs.clear()
    inputs = []
    for value in part.inputs:
        old = values[value.name]
        if old.producer() is None:
            inputs.append(old)
            continue
        name, old.name = old.name, g.fresh(graph, "cut")
        new = ir.Value(name=name, type=old.type, shape=old.shape)
        new.metadata_props.update(old.metadata_props)
        old.replace_all_uses_with(new)
        inputs.append(new)
    graph.outputs.extend(outputs)
    graph.inputs.clear()
    graph.inputs.extend(inputs)
    _keep_only(graph, outputs)
    return made


def _keep_only(graph: ir.Graph, outputs: Iterable[ir.Value]) -> None:
    """Remove what `outputs` are not computed from. Readers inside the subgraphs of what goes still count as
    readers of what stays, so that uses do not tell."""
    wanted = set(outputs)
    for node in reversed(list(graph)):
        if wanted.isdisjoint(node.outputs):
            graph.remove(node)
        else:
            wanted.update(reads(node))
    for name in [n for n, v in graph.initializers.items() if v not in wanted]:
        del graph.initializers[name]


def outermost(model: ir.Model) -> dict[ir.Node, ir.Node]:
    """The node of the main graph that each node is or lies in."""
    return {
        inner: node
        for node in model.graph
        for inner in (node, *(n for body in _bodies(node) for n in ir.traversal.RecursiveGraphIterator(body)))
    }


def nbytes(value: ir.Value) -> int:
    """The bytes of a value, free sizes counted as 1."""
    sizes = [d if isinstance(d, int) else 1 for d in g.dims(value) or ()]
    width = value.dtype.itemsize if value.dtype is not None and value.dtype != ir.DataType.STRING else 8
    return math.ceil(math.prod(sizes) * width)


def piece_of(model: ir.Model, nodes: set[ir.Node]) -> Part:
    """Some nodes of the main graph as a part: what they read of others, and what others read of them."""
    main = _values(model)
    sources = {n: _sources(n, main) for n in model.graph}
    inside = [n for n in sources if n in nodes]
    made = {v for n in inside for v in n.outputs}
    inputs = dict.fromkeys(v for n in inside for v in sources[n] if v not in made)
    wanted = {v for n, read in sources.items() if n not in nodes for v in read} | {*model.graph.outputs}
    return Part(
        False, tuple(inside), tuple(inputs), tuple(v for n in inside for v in n.outputs if v in wanted)
    )
