"""The freedom of a node: in which axis orders it can work, and how it is edited for one of them.

An operator works over a *space* of axes, usually those of its output. In the *order* s its stored tensors
have their axes sorted by s: stored axis i is space axis s[i]. A port says which of its own axes lies on each
axis of the space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g

Order = tuple[int, ...]


class Port(NamedTuple):
    """`axes[s]` is the port's own axis on space axis s, None where it has none; `ones`: a missing axis is
    stored as a dimension of 1 (broadcasting), else not at all (a reduced axis). `order` fixes the stored
    order instead."""

    axes: tuple[int | None, ...] = ()
    ones: bool = False
    order: Order | None = None
    rows: bool = (
        False  # the last axis is contracted with a constant matrix: its factors may come in any sequence
    )

    def pick(self, order: Order) -> tuple[int | None, ...]:
        """The port's own axis of each stored dimension; None is a dimension of 1."""
        if self.order is not None:
            return self.order
        picked = [self.axes[s] for s in order]
        if not self.ones:
            return tuple(a for a in picked if a is not None)
        missing = sum(a is None for a in picked)
        while missing and picked and picked[0] is None:
            del picked[0]
        return tuple(picked)


class Edit(NamedTuple):
    """Given to an operator's `rewrite`: the model, the graph, the order and where each space axis went."""

    model: ir.Model
    graph: ir.Graph
    order: Order
    position: tuple[int, ...]


Rewriter = Callable[[ir.Node, Edit], None]


@dataclass(frozen=True)
class Operator:
    """One node's freedom. `orders`: the only orders allowed, all if None; `last`: space axis that must come
    last; ports that are None keep the source's order. `rewrite` adapts the node, which by then reads its new
    inputs."""

    rank: int
    inputs: tuple[Port | None, ...]
    outputs: tuple[Port | None, ...]
    rewrite: Rewriter | None = None
    orders: tuple[Order, ...] | None = None
    last: tuple[int, ...] = ()

    def allows(self, order: Order) -> bool:
        if self.orders is not None:
            return order in self.orders
        return not self.last or order[-len(self.last) :] == self.last

    def start(self) -> Order:
        """The source's order where allowed, else the nearest to it."""
        if self.orders is not None:
            return self.orders[0]
        return (*(a for a in range(self.rank) if a not in self.last), *self.last)


def identity(rank: int) -> Order:
    return tuple(range(rank))


def full(rank: int) -> Port:
    return Port(identity(rank))


def axis_of(node: ir.Node, rank: int, default: int = -1, name: str = "axis") -> int:
    axis = int(g.attribute(node, name, default))
    return axis + rank if axis < 0 else axis


def constants(node: ir.Node, first: int) -> bool:
    """True where all operands from input `first` on are constants or absent."""
    return all(v is None or g.is_constant(v) for v in node.inputs[first:])


def integers(value: ir.Value | None) -> tuple[int, ...] | None:
    array = g.constant(value, limit=64)
    return None if array is None else tuple(int(i) for i in array.reshape(-1))


def set_input(node: ir.Node, index: int, array: Sequence[int] | np.ndarray, edit: Edit, hint: str) -> None:
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    constant = np.asarray(array) if isinstance(array, np.ndarray) else np.asarray(array, np.int64)
    node.replace_input_with(index, g.add_constant(edit.graph, constant, hint))


def move_axis(default: int = -1, name: str = "axis") -> Rewriter:
    def rewrite(node: ir.Node, edit: Edit) -> None:
        rank = len(edit.order)
        node.attributes[name] = ir.AttrInt64(name, edit.position[axis_of(node, rank, default, name)])

    return rewrite


def permute_input(index: int) -> Rewriter:
    def rewrite(node: ir.Node, edit: Edit) -> None:
        array = g.constant(node.inputs[index])
        assert array is not None
        set_input(node, index, array[list(edit.order)], edit, "per_axis")

    return rewrite
