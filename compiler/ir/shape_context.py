"""What a shape rule sees of a node, and sums and products of dimensions where some are unknown.

A rule gets a `Context` and returns one (dtype, dims) per output. A dimension is an int, an `Expr`, or None
where it is unknown; dims is None where the rank is unknown. A rule raises `Unknown` to leave the node to
ONNX's inference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.dimensions import Dim, Expr

Dims: TypeAlias = tuple[Dim | None, ...]
Typed: TypeAlias = tuple[ir.DataType | None, Dims | None]
BOOL, INT64 = ir.DataType.BOOL, ir.DataType.INT64


class Unknown(Exception):
    """This rule does not cover the node."""


class Context:
    """A node with the types and shapes of its inputs."""

    __slots__ = ("_shapes", "_values", "node")

    def __init__(
        self, node: ir.Node, shapes: Sequence[Dims | None], values: Callable[[ir.Value], list[Dim] | None]
    ) -> None:
        self.node, self._shapes, self._values = node, shapes, values

    def __len__(self) -> int:
        return len(self._shapes)

    def has(self, i: int) -> bool:
        return i < len(self.node.inputs) and self.node.inputs[i] is not None

    def dtype(self, i: int = 0) -> ir.DataType | None:
        value = self.node.inputs[i]
        return None if value is None else value.dtype

    def shape(self, i: int = 0) -> Dims:
        """The shape of input i; the rule ends where its rank is unknown."""
        found = self._shapes[i] if i < len(self._shapes) else None
        if found is None:
            raise Unknown
        return found

    def shapes(self) -> list[Dims]:
        return [self.shape(i) for i in range(len(self._shapes)) if self.node.inputs[i] is not None]

    def numbers(self, i: int) -> list[Dim]:
        """The elements of integer input i; the rule ends where they are unknown."""
        value = self.node.inputs[i]
        found = None if value is None else self._values(value)
        if found is None:
            raise Unknown
        return found

    def known(self, i: int) -> Sequence[Dim | None]:
        """The elements of integer vector i, None for each where they are unknown."""
        value = self.node.inputs[i]
        found = None if value is None else self._values(value)
        if found is not None:
            return found
        length = g.dims(value)
        if length is None or len(length) != 1 or not isinstance(length[0], int):
            raise Unknown
        return [None] * length[0]

    def integers(self, i: int) -> list[int]:
        found = self.numbers(i)
        if any(isinstance(n, Expr) for n in found):
            raise Unknown
        return [int(n) for n in found]  # type: ignore[arg-type]

    def attr(self, name: str, default: Any = None) -> Any:
        return g.attribute(self.node, name, default)

    def axis(self, axis: int, rank: int) -> int:
        if not -rank <= axis < max(rank, 1):
            raise Unknown
        return axis + rank if axis < 0 else axis


Rule: TypeAlias = Callable[[Context], list[Typed]]


# --- dimensions --------------------------------------------------------------------------------------------


def product(dims: Sequence[Dim | None]) -> Dim | None:
    """The product, None where a factor is unknown (and none is 0)."""
    total: Dim = 1
    unknown = False
    for d in dims:
        if d is None:
            unknown = True
        else:
            total = total * d
    return None if unknown and not (isinstance(total, int) and total == 0) else total


def broadcast(shapes: Sequence[Dims]) -> Dims:
    """The common shape. A symbol against another number than 1 gives that number, for else the graph is not
    valid."""
    if all(s == shapes[0] for s in shapes[1:]):
        return shapes[0]
    rank = max(len(s) for s in shapes)
    result: list[Dim | None] = []
    for axis in range(-rank, 0):
        sizes = {s[axis] for s in shapes if len(s) >= -axis}
        sizes.discard(1)
        if len(sizes) <= 1:
            result.append(next(iter(sizes), 1))
        else:
            numbers = [d for d in sizes if isinstance(d, int)]
            result.append(numbers[0] if len(numbers) == 1 else None)
    return tuple(result)


def minus(a: Dim | None, b: Dim | None) -> Dim | None:
    return None if a is None or b is None else a - b


def plus(a: Dim | None, b: Dim | None) -> Dim | None:
    return None if a is None or b is None else a + b


def first(c: Context, *outputs: Typed) -> list[Typed]:
    """As many of `outputs` as the node has."""
    return list(outputs[: len(c.node.outputs)])
