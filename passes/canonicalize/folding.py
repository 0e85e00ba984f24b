"""Constants are computed: nodes on constants, shapes that are known, branches that are decided. All under a
budget.

    op(c1, c2) -> c3            If(true) { a } { b } -> a            Shape(x)[1] -> 768

Folding never makes the stored model much larger. Small results are computed at once. A large weight that an
operator reshapes, transposes or scales becomes a lazy constant, computed when it is read. What would grow
stays a node: a Cast that widens a large weight (its storage type is a decision), ConstantOfShape, Expand and
Tile past the budget. Random operators are never folded, and DequantizeLinear is not: precision is stated in
the graph.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.errors import ResourceError
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.dimensions import Expr
from tapeout.compiler.ir.evaluate import RANDOM, Declined, evaluate
from tapeout.compiler.ir.shapes import infer_node, known_value
from tapeout.compiler.rewriting import Changes
from tapeout.compiler.rewriting import Declined as Left

NEVER = RANDOM | {"DequantizeLinear"}

# Results of up to this many bytes are computed at once and held; larger ones are lazy.
AT_ONCE = 1 << 16
# A widening Cast of up to this many elements is folded; a larger one keeps the storage type.
WIDENED = 4096


@dataclass(frozen=True)
class FoldConstants:
    """Fold constants. `growth` bounds the bytes by which one result may exceed its inputs, `total` those of
    all."""

    growth: int = 4 << 20
    total: int = 16 << 20
    name: str = "fold_constants"

    def __call__(self, model: ir.Model) -> Changes:
        run = _Run(self.growth, self.total)
        run.graph(model.graph)
        return Changes(run.count, tuple(run.left))


class _Run:
    def __init__(self, growth: int, total: int) -> None:
        self.growth, self.budget = growth, total
        self.count = 0
        self.left: list[Left] = []

    def graph(self, graph: ir.Graph) -> None:
        dead = [node for node in graph if self._visit(graph, node)]
        g.remove_dead(graph, dead)

    def _visit(self, graph: ir.Graph, node: ir.Node) -> bool:
        """Fold at `node`; True where nobody reads it any more."""
        if any(v.shape is None for v in node.outputs):
            infer_node(node)  # what it reads may have got a shape: a branch was decided
        if node.op_type == "If" and node.domain == "" and self._decide(graph, node):
            return True
        if g.has_subgraph(node):
            for attr in node.attributes.values():
                if attr.type == ir.AttributeType.GRAPH:
                    self.graph(attr.as_graph())
                elif attr.type == ir.AttributeType.GRAPHS:
                    for sub in attr.as_graphs():
                        self.graph(sub)
            return False
        if node.domain == "" and self._fold(graph, node):
            self.count += 1
            return True
        return False

    # --- one node
    # ---------------------------------------------------------------------------------------------

    def _fold(self, graph: ir.Graph, node: ir.Node) -> bool:
        if (
            node.op_type in NEVER
            or not node.outputs
            or (all(v.is_graph_output() for v in node.outputs) and (node.op_type == "Identity"))
        ):
            return False
        known = [known_value(v) if v.producer() is node else None for v in node.outputs]
        if all(k is not None and _plain(k) for k in known):
            for value, array in zip(node.outputs, known, strict=True):
                assert array is not None and value.dtype is not None
                _replace(graph, value, array.astype(value.dtype.numpy()))
            return True
        inputs = [v for v in node.inputs if v is not None]
        if not inputs or not all(g.is_constant(v) for v in inputs):
            return False
        try:
            return self._compute(graph, node, inputs)
        except (Declined, ResourceError) as error:
            self.left.append(Left("fold_constants", node.name or "", str(error).split("\n")[0]))
            return False

    def _compute(self, graph: ir.Graph, node: ir.Node, inputs: Sequence[ir.Value]) -> bool:
        stored = sum(_bytes(v) for v in dict.fromkeys(inputs) if all(u.node is node for u in v.uses()))
        size = sum(_bytes(v) for v in node.outputs)
        if (
            node.op_type == "Cast"
            and size > stored
            and math.prod(g.static_dims(node.outputs[0]) or ()) > WIDENED
        ):
            raise Declined("a large weight keeps its storage type")
        bound = min(self.growth, self.budget)
        if size - stored > bound:
            raise Declined(f"{size:,} bytes would be stored instead of {stored:,}")
        known = all(v.dtype is not None and g.static_dims(v) is not None for v in node.outputs)
        if known and size > AT_ONCE:
            tensors = [None if v is None else v.const_value for v in node.inputs]
            detached = _detached(node)
            for i, value in enumerate(node.outputs):
                shape = g.static_dims(value)
                assert shape is not None and value.dtype is not None
                make = functools.partial(_make, detached, tensors, i)
                _take(
                    graph, value, g.add_lazy_constant(graph, shape, value.dtype, make, value.name or "folded")
                )
        else:
            arrays = evaluate(node, [g.constant(v) for v in node.inputs], limit=stored + bound)
            for value, array in zip(node.outputs, arrays, strict=False):
                _replace(graph, value, array)
            size = sum(a.nbytes for a in arrays)
        self.budget -= max(0, size - stored)
        return True

    # --- branches
    # ---------------------------------------------------------------------------------------------

    def _decide(self, graph: ir.Graph, node: ir.Node) -> bool:
        """Put the nodes of the branch that will be taken in place of the If."""
        known = known_value(node.inputs[0])
        if known is None or not _plain(known):
            return False
        chosen = node.attributes["then_branch" if bool(known.reshape(-1)[0]) else "else_branch"].as_graph()
        outputs = list(chosen.outputs)
        chosen.outputs.clear()
        for value in list(chosen.initializers.values()):
            del chosen.initializers[value.name or ""]
            graph.register_initializer(value)
        moved = list(chosen)
        chosen.remove(moved)
        graph.insert_before(node, moved)
        for old, new in zip(node.outputs, outputs, strict=True):
            g.replace(graph, old, new)
        self.count += 1
        for each in moved:  # they stand before the node that the walk has reached
            infer_node(each)
            if self._visit(graph, each):
                g.remove_dead(graph, [each])
        return True


def _plain(known: np.ndarray[Any, Any]) -> bool:
    return not any(isinstance(x, Expr) for x in known.reshape(-1).tolist())


def _bytes(value: ir.Value) -> int:
    if value.const_value is not None and value.producer() is None:
        return value.const_value.nbytes
    shape = g.static_dims(value)
    if shape is None or value.dtype is None:
        return 0
    return math.ceil(math.prod(shape) * value.dtype.itemsize)


def _detached(node: ir.Node) -> ir.Node:
    """The operator alone, without its place in the graph."""
    return ir.Node(
        "", node.op_type, [], node.attributes.values(), num_outputs=len(node.outputs), name=node.name
    )


def _make(node: ir.Node, tensors: Sequence[ir.TensorProtocol | None], index: int) -> np.ndarray[Any, Any]:
    return evaluate(node, [None if t is None else t.numpy() for t in tensors], limit=1 << 40)[index]


def _replace(graph: ir.Graph, value: ir.Value, array: np.ndarray[Any, Any]) -> None:
    if value.uses() or value.is_graph_output():
        if value.dtype is not None and value.dtype.bitwidth < 8:
            raise Declined("a type of less than a byte")
        _take(graph, value, g.add_constant(graph, array, value.name or "folded"))


def _take(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """`new` for `old`, under the name that says what it holds."""
    if not old.is_graph_output() and old.name and "~" not in old.name:
        name = old.name
        old.name = g.fresh(graph, name)
        new.name = name
    g.replace(graph, old, new)
