"""Sizes for free dimensions at which a model can run: what its symbolic shapes say about them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.dimensions import Undecided, bind, parse

# Operators whose inputs are broadcast to one shape.
_BROADCAST = frozenset(
    {"Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min"}
    | {"Mul", "Or", "Pow", "Sub", "Sum", "Where"}
)


def fits(model: ir.Model, sizes: Mapping[str, int]) -> bool:
    """False where, at `sizes`, some tensor of the main graph is empty, or tensors that meet do not match.

    What shapes do not tell is taken to fit.
    """
    known: dict[str, int | None] = {}

    def number(dim: int | str) -> int | None:
        if isinstance(dim, int):
            return dim
        if dim not in known:
            try:
                known[dim] = bind(parse(dim), sizes)
            except (Undecided, KeyError, ValueError, SyntaxError, ZeroDivisionError):
                known[dim] = None
        return known[dim]

    return all(_matches(node, number) for node in model.graph)


Number = Callable[[int | str], int | None]


def _matches(node: ir.Node, number: Number) -> bool:
    shapes = [_shape(v, number) for v in node.inputs]
    results = [_shape(v, number) for v in node.outputs]
    free = [v for v in node.outputs if g.static_dims(v) is None]
    for value, shape in zip(node.outputs, results, strict=True):
        if value in free and shape is not None and any(d is not None and d <= 0 for d in shape):
            return False
    found = [s for s in shapes if s is not None]
    if node.op_type == "Concat" and len({len(s) for s in found}) == 1:
        axis = g.attribute(node, "axis", 0) % len(found[0])
        return all(_equal(column) for i, column in enumerate(zip(*found, strict=True)) if i != axis)
    if node.op_type in _BROADCAST:
        return all(_equal([d for d in column if d != 1]) for column in _aligned(found))
    if node.op_type == "MatMul" and len(found) == 2 and min(map(len, found)) > 1:
        return _equal([found[0][-1], found[1][-2]])
    if node.op_type == "Reshape" and shapes[0] is not None and results[0] is not None:
        before, after = _count(shapes[0]), _count(results[0])
        return before is None or after is None or before == after
    return True


def _shape(value: ir.Value | None, number: Number) -> list[int | None] | None:
    dims = g.dims(value)
    return None if dims is None else [number(d) for d in dims]


def _equal(sizes: Sequence[int | None]) -> bool:
    return len({d for d in sizes if d is not None}) <= 1


def _aligned(shapes: Sequence[Sequence[int | None]]) -> Iterator[list[int | None]]:
    """The dimensions that meet, from the last."""
    for i in range(1, max(map(len, shapes), default=0) + 1):
        yield [s[-i] for s in shapes if len(s) >= i]


def _count(shape: Sequence[int | None]) -> int | None:
    known = [d for d in shape if d is not None]
    return math.prod(known) if len(known) == len(shape) else None
