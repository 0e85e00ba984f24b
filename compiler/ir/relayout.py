"""Inputs and outputs in the axis order that the user asks for: `x: NCHW` becomes `x: NHWC -> Transpose`."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from tapeout.compiler.errors import UsageError
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.origin import merged_origin, set_origin

# By rank: the order ONNX uses, and the one with the channels last.
ORDERS = {3: ("NCL", "NLC"), 4: ("NCHW", "NHWC"), 5: ("NCDHW", "NDHWC")}


def permutation(rank: int, layout: str, name: str) -> tuple[int, ...]:
    """The perm that makes `layout` of ONNX's own order; raises UsageError where the letters do not fit."""
    if rank not in ORDERS:
        raise UsageError(
            f"'{name}' has rank {rank}: a layout can be asked for ranks {', '.join(map(str, ORDERS))}"
        )
    first, last = ORDERS[rank]
    letters = layout.upper().replace("W", "L") if rank == 3 else layout.upper()
    if letters not in (first, last):
        raise UsageError(f"layout '{layout}' of '{name}': expected {first} or {last} for rank {rank}")
    return tuple(first.index(c) for c in letters)


def set_layout(model: ir.Model, layouts: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Give the inputs and outputs named the layouts asked for; returns the perms that were applied.

    `perm` makes the new tensor from the source's: new = Transpose(source, perm).
    """
    graph = model.graph
    known = {v.name: v for v in (*graph.inputs, *graph.outputs)}
    perms: dict[str, tuple[int, ...]] = {}
    for name, layout in layouts.items():
        value = known.get(name)
        if value is None:
            raise UsageError(
                f"no input or output is called '{name}'; there are {', '.join(map(repr, known))}"
            )
        perm = permutation(g.rank(value) or 0, layout, name)
        if perm == tuple(range(len(perm))):
            continue
        perms[name] = perm
        if any(v is value for v in graph.inputs):
            _input(graph, value, perm)
        if any(v is value for v in graph.outputs):
            _output(graph, value, perm)
    return perms


def _input(graph: ir.Graph, value: ir.Value, perm: tuple[int, ...]) -> None:
    name = value.name or ""
    shape = value.shape
    assert shape is not None
    new = ir.Value(name=name, type=value.type, shape=ir.Shape([shape[i] for i in perm]))
    readers = [u.node for u in value.uses()]
    value.name = g.fresh(graph, name)
    back = tuple(sorted(range(len(perm)), key=lambda i: perm[i]))
    node = _transpose(graph, new, back, readers)
    graph.insert_before(graph[0], node) if len(graph) else graph.append(node)
    made = node.outputs[0]
    made.name, made.type, made.shape = value.name, value.type, shape
    value.replace_all_uses_with(made, replace_graph_outputs=True)
    graph.inputs[[v is value for v in graph.inputs].index(True)] = new
    new.metadata_props["tapeout.layout"] = f"{name}:{','.join(map(str, perm))}"


def _output(graph: ir.Graph, value: ir.Value, perm: tuple[int, ...]) -> None:
    name = value.name or ""
    shape = value.shape
    assert shape is not None
    maker = value.producer()
    node = _transpose(graph, value, perm, [maker] if maker is not None else [])
    graph.append(node)
    made = node.outputs[0]
    value.name = g.fresh(graph, name)
    made.name, made.type, made.shape = name, value.type, ir.Shape([shape[i] for i in perm])
    made.metadata_props["tapeout.layout"] = f"{name}:{','.join(map(str, perm))}"
    graph.outputs[[v is value for v in graph.outputs].index(True)] = made


def _transpose(graph: ir.Graph, value: ir.Value, perm: tuple[int, ...], near: list[ir.Node]) -> ir.Node:
    node = ir.node("Transpose", [value], {"perm": perm}, name=g.fresh(graph, "transpose"))
    set_origin(node, merged_origin(near) or (node.name or "",))
    return node
