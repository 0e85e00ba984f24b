"""How channels pass through products: what reads them, what makes new ones, and what heads share."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.passes.sparsity.atoms import Atoms, Axes, Ties


def why_whole(node: ir.Node) -> str:
    return f"{node.op_type} '{node.name}' needs all of them"


def conv(ties: Ties, node: ir.Node) -> bool:
    weight = node.inputs[1]
    shape = g.static_dims(weight)
    if weight is None or shape is None or not stored_weight(weight):
        return False
    stored, x = initializer(weight), ties.axes(node.inputs[0])
    groups = int(g.attribute(node, "group", 1))
    turned = node.op_type == "ConvTranspose"
    if len(x) < 2 or (turned and groups != 1):
        return False
    made, why = ties.weight(stored, 1 if turned else 0), why_whole(node)
    if made is None:
        made = ties.fresh(1)
        ties.pin(made, why)
    if groups == 1:
        ties.tie(
            ties.weight(stored, 0 if turned else 1) if shape[0 if turned else 1] > 1 else x[1], x[1], why
        )
    elif x[1] is None:
        ties.pin(made, why)
    else:
        for inner, outer in zip(np.split(x[1], groups), np.split(made, groups), strict=True):
            ties.together(np.concatenate([inner, outer]))
        ties.groups.append((node, x[1][:: len(x[1]) // groups]))
    vector(ties, node, 2, made)
    ties.put(node.outputs[0], [None, made, *[None] * (len(shape) - 2)])
    return True


def vector(ties: Ties, node: ir.Node, index: int, atoms: Atoms) -> None:
    """The parameter [C] or [1, C] at an input goes with `atoms`."""
    value = node.inputs[index] if len(node.inputs) > index else None
    if value is not None and (g.static_dims(value) or (1,))[-1] > 1:
        axes = ties.axes(value)
        ties.tie(axes[-1], atoms, why_whole(node))


def stored_weight(weight: ir.Value) -> bool:
    return g.is_constant(initializer(weight))


def initializer(weight: ir.Value) -> ir.Value:
    """The constant behind a weight: itself, or the half that a Cast widens."""
    cast = g.producer(weight, "Cast")
    inner = None if cast is None else cast.inputs[0]
    return weight if inner is None else inner


def gemm(ties: Ties, node: ir.Node) -> bool:
    weight, x = node.inputs[1], ties.axes(node.inputs[0])
    if weight is None or not stored_weight(weight) or g.attribute(node, "transA", 0) or len(x) != 2:
        return False
    turned = int(g.attribute(node, "transB", 0))
    stored = initializer(weight)
    ties.tie(ties.weight(stored, turned), x[1], why_whole(node))
    made = ties.weight(stored, 1 - turned)
    if made is not None:
        vector(ties, node, 2, made)
    ties.put(node.outputs[0], [x[0], made])
    return True


def matmul(ties: Ties, node: ir.Node) -> bool:
    left, right = node.inputs
    assert left is not None and right is not None
    a = ties.axes(left)
    b = (
        [ties.weight(initializer(right), i) for i in range(g.rank(right) or 0)]
        if stored_weight(right)
        else ties.axes(right)
    )
    if len(a) < 2 or len(b) < 2:
        return False
    ties.tie(a[-1], b[-2], why_whole(node))
    batch = broadcast(ties, [a[:-2], b[:-2]], [sizes(left)[:-2], sizes(right)[:-2]], why_whole(node))
    ties.put(node.outputs[0], [*batch, a[-2], b[-1]])
    return True


def sizes(value: ir.Value) -> list[object]:
    return list(g.dims(value) or ())


def broadcast(ties: Ties, operands: list[Axes], dims: list[list[object]], why: str) -> Axes:
    """The axes of what operands make together; an operand of size one along an axis follows the others."""
    rank = max(map(len, operands))
    result: Axes = []
    for axis in range(-rank, 0):
        tied: Atoms | None = None
        first = True
        for atoms, size in zip(operands, dims, strict=True):
            if len(atoms) < -axis or size[axis] == 1:
                continue
            tied = atoms[axis] if first else ties.tie(tied, atoms[axis], why)
            first = False
        result.append(tied)
    return result


def attention(ties: Ties, node: ir.Node) -> bool:
    values = node.inputs[:3]
    parts = [ties.axes(v) for v in values]
    if any(len(p) != 4 for p in parts) or len([v for v in node.outputs if v.uses()]) > 1:
        return False
    why = why_whole(node)
    counts = {None if p[1] is None else len(p[1]) for p in parts}
    if None in counts or len(counts) > 1:
        return False
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        shape = g.dims(node.inputs[3])
        if shape is None or (len(shape) == 4 and shape[1] != 1) or len(shape) == 3:
            return False
    heads = ties.tie(ties.tie(parts[0][1], parts[1][1], why), parts[2][1], why)
    ties.pin(parts[0][3], why)
    ties.pin(parts[1][3], why)
    ties.put(node.outputs[0], [None, heads, None, parts[2][3]])
    return True
