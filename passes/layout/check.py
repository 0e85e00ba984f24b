"""Which Transposes of a graph could go, and why the others are needed."""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.origin import origin
from tapeout.passes.layout.operators import LAST_AXIS, describe
from tapeout.passes.layout.problem import Problem
from tapeout.passes.layout.search import solve
from tapeout.passes.layout.views import VIEWS, Group, Root, flat, size_of


class Transposed(NamedTuple):
    """A Transpose node, the bytes that it moves (free dimensions counted as 16), and why it can go or must
    stay."""

    node: str
    bytes: int
    reason: str


def removable_transposes(model: ir.Model, last_axis: tuple[str, ...] = LAST_AXIS) -> list[Transposed]:
    """The Transposes of `model` that another assignment of axis orders makes do without, with the same
    constraints: graph inputs and outputs as they are, operators of the domain `tapeout` as they are.

    Found by four questions: does it move only axes of size 1, is its input a constant, is the same tensor
    already there in this order, and does the cheapest assignment of all orders move fewer bytes, or as many
    in fewer nodes?
    """
    found: list[Transposed] = []
    for graph in g.graphs(model):
        problem = Problem(graph, frozenset(last_axis))
        there: dict[tuple[Root, Group], ir.Node] = {}
        left: list[tuple[ir.Node, tuple[Root, Group]]] = []
        for node in graph:
            if node.op_type != "Transpose" or node.domain != "":
                continue
            source = problem.views.of(node.inputs[0])  # type: ignore[arg-type]
            made = problem.views.of(node.outputs[0])
            if source is None or made is None:
                continue
            key = (made.root, flat(made.form))
            origins = problem.tensors[made.root].maker if made.root in problem.tensors else None
            first = flat(origins.view.form) if origins is not None else None
            reason = None
            if made.root.constant:
                reason = "its input is a constant"
            elif flat(made.form) == flat(source.form):
                reason = "it moves only axes of size 1"
            elif flat(made.form) == first:
                reason = f"'{made.root.value.name}' is there in this order"
            elif key in there:
                reason = f"'{there[key].name}' makes the same"
            if reason is not None:
                found.append(_entry(node, reason))
            else:
                there[key] = node
                left.append((node, key))
        # In the same measure as `after`: where sizes are free, views of a tensor may be told to be of other sizes.
        before = sum(root.bytes for _, (root, _) in left)
        solve(problem)
        copies = {(t.root, s) for t, read in problem.copies(problem.modes) for s in read}
        after = problem.bytes_moved(problem.modes)
        if (after, len(copies)) < (before, len(left)):
            why = (
                f"another assignment moves {after} bytes in {len(copies)} Transposes, "
                f"not {before} in {len(left)}"
            )
            gone = [n for n, key in left if key not in copies] or [n for n, _ in left]
            found += [_entry(n, why) for n in gone]
    return found


def needed_transposes(model: ir.Model, last_axis: tuple[str, ...] = LAST_AXIS) -> list[Transposed]:
    """All Transposes of `model` that `removable_transposes` does not list, each with the reason why it
    stays."""
    removable = {t.node for t in removable_transposes(model, last_axis)}
    found = []
    for graph in g.graphs(model):
        for node in graph:
            if node.op_type == "Transpose" and node.domain == "" and node.name not in removable:
                found.append(_entry(node, _why(node)))
    return found


def _entry(node: ir.Node, reason: str) -> Transposed:
    return Transposed(node.name or "", size_of(node.outputs[0]), reason)


def _why(node: ir.Node) -> str:
    source, made = node.inputs[0], node.outputs[0]
    assert source is not None
    above, below = _sources(source), _readers(made)
    if all(isinstance(s, ir.Value) for s in above):
        names = " and ".join(f"'{s.name}'" for s in above)
        return f"input {names} keeps its layout" if names else "it transposes what is computed from constants"
    if all(isinstance(r, ir.Value) for r in below):
        return f"output {' and '.join(repr(r.name) for r in below)} keeps its layout"
    first = next(s for s in above if isinstance(s, ir.Node))
    last = next(r for r in below if isinstance(r, ir.Node))
    return (
        f"between {_label(first)} and {_label(last)}, which work in different orders; "
        f"it is there for '{', '.join(origin(node))}'"
    )


def _label(node: ir.Node) -> str:
    return f"{node.op_type} '{node.name}'"


def _follows(node: ir.Node) -> bool:
    """True where a node takes any order, so that it is not what asks for a Transpose."""
    if node.domain == "" and node.op_type in VIEWS:
        return True
    operator = describe(node, frozenset())
    return operator is not None and operator.orders is None and not operator.last


def _sources(value: ir.Value) -> list[ir.Node | ir.Value]:
    """The graph inputs and the nodes that keep an order of their own behind `value`."""
    found: dict[ir.Node | ir.Value, None] = {}
    queue, seen = [value], {value}
    while queue:
        value = queue.pop()
        maker = value.producer()
        if maker is None:
            if not g.is_constant(value):
                found[value] = None
        elif not _follows(maker):
            found[maker] = None
        else:
            further = [v for v in maker.inputs if v is not None and v not in seen and g.rank(v)]
            queue += further
            seen.update(further)
    return list(found)


def _readers(value: ir.Value) -> list[ir.Node | ir.Value]:
    """The graph outputs and the nodes that keep an order of their own that read `value`."""
    found: dict[ir.Node | ir.Value, None] = {}
    queue, seen = [value], {value}
    while queue:
        value = queue.pop()
        if value.is_graph_output():
            found[value] = None
        for use in value.uses():
            if not _follows(use.node):
                found[use.node] = None
            else:
                further = [v for v in use.node.outputs if v not in seen]
                queue += further
                seen.update(further)
    return list(found)
