"""Operators over the spatial axes of images: most want the channels last and become functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.passes.layout import functions
from tapeout.passes.layout.freedom import (
    Edit,
    Operator,
    Order,
    Port,
    full,
    identity,
    set_input,
)

FUNCTIONS = functions.RANKS


def function(node: ir.Node) -> Operator | None:
    rank = g.rank(node.inputs[0])
    if rank is None or rank not in functions.RANKS[node.op_type] or g.rank(node.outputs[0]) != rank:
        return None
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]) or g.attribute(
        node, "storage_order", 0
    ):
        return None

    def rewrite(node: ir.Node, edit: Edit) -> None:
        functions.convert(edit.model, node, rank)
        node.resize_outputs(1)

    weights = functions.WEIGHTS.get(node.op_type)
    operands = [None] * (len(node.inputs) - 1) if weights is None else [Port(order=weights[rank]), None]
    ports = (full(rank), *operands[: len(node.inputs) - 1])
    return Operator(rank, ports, (full(rank),), rewrite, (functions.LAST[rank],))


def resize(node: ir.Node) -> Operator | None:
    """Resize of images: over axes 2 and 3 of four it wants NHWC, over 1 and 2 it has it."""
    rank = g.rank(node.inputs[0])
    if not rank or g.attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return None
    axes = g.attribute(node, "axes")
    listed = identity(rank) if axes is None else tuple(a % rank for a in axes)
    operands = [v for v in node.inputs[1:] if v is not None and not _empty(v)]
    if not all(g.is_constant(v) for v in operands) and listed != identity(rank):
        return None
    moved = _resized(node, rank, listed)
    orders: tuple[Order, ...] | None = None
    if rank == 4 and moved:
        orders = tuple(o for o in (functions.LAST[4], identity(4)) if moved <= {o[1], o[2]}) or None

    def rewrite(node: ir.Node, edit: Edit) -> None:
        for index, name in ((1, "roi"), (2, "scales"), (3, "sizes")):
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is None or _empty(value):
                continue
            order = [*edit.order, *(a + rank for a in edit.order)] if name == "roi" else list(edit.order)
            array = g.constant(value)
            if array is None:
                _gather_before(node, index, order, edit)
            elif listed == identity(rank):
                set_input(node, index, array[order], edit, name)
            else:  # in the stored order of the axes that it lists
                position = {edit.position[a]: i for i, a in enumerate(listed)}
                kept = [position[a] for a in sorted(position)]
                set_input(node, index, array.reshape(-1, len(listed))[:, kept].reshape(-1), edit, name)
        if axes is not None:
            node.attributes["axes"] = ir.AttrInt64s("axes", sorted(edit.position[a] for a in listed))

    ports = (full(rank), *(None for _ in node.inputs[1:]))
    return Operator(rank, ports, (full(rank),), rewrite, orders)


def _empty(value: ir.Value) -> bool:
    return g.is_constant(value) and value.const_value is not None and value.const_value.size == 0


def _resized(node: ir.Node, rank: int, listed: Sequence[int]) -> set[int]:
    """The axes that a Resize changes, or may change."""
    before, after = g.dims(node.inputs[0]), g.dims(node.outputs[0])
    assert before is not None and after is not None
    moved = {a for a in listed if before[a] != after[a] or before[a] == "?"}
    scales = g.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if scales is not None and scales.size == len(listed):
        moved = {a for a, s in zip(listed, scales.tolist(), strict=True) if s != 1}
    return moved


def _gather_before(node: ir.Node, index: int, order: Sequence[int], edit: Edit) -> None:
    """Let input `index`, known at run time only, be read in another order."""
    value = node.inputs[index]
    assert value is not None
    indices = g.add_constant(edit.graph, np.asarray(order, np.int64), "order")
    made = ir.node("Gather", [value, indices], {"axis": 0}, name=g.fresh(edit.graph, "gather"))
    made.metadata_props.update(node.metadata_props)
    made.outputs[0].name, made.outputs[0].type = g.fresh(edit.graph, value.name or "sizes"), value.type
    made.outputs[0].shape = ir.Shape([len(order)])
    edit.graph.insert_before(node, made)
    node.replace_input_with(index, made.outputs[0])


def global_pool(op_type: str) -> Callable[[ir.Node], Operator | None]:
    def describe(node: ir.Node) -> Operator | None:
        rank = g.rank(node.inputs[0])
        if rank is None or rank < 3:
            return None

        def rewrite(node: ir.Node, edit: Edit) -> None:
            node.op_type = op_type
            node.version = None
            node.attributes["keepdims"] = ir.AttrInt64("keepdims", 1)
            set_input(node, 1, sorted(edit.position[2:]), edit, "axes")

        return Operator(rank, (full(rank),), (full(rank),), rewrite)

    return describe
