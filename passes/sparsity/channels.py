"""Reads off a graph which channels, heads and neurons can be removed, and what goes with each.

One rule for each kind of operator says how the atoms of its inputs carry over to its outputs (`atoms.Ties`); an
operator without a rule needs its inputs whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.passes.quantization.walk import reads
from tapeout.passes.sparsity.atoms import Axes, Ties
from tapeout.passes.sparsity.products import (
    attention,
    broadcast,
    conv,
    gemm,
    initializer,
    matmul,
    sizes,
    vector,
    why_whole,
)

Rule = Callable[[Ties, ir.Node], bool]

SAME = (
    "Abs", "Cast", "Ceil", "Celu", "Clip", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish",
    "Identity", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign",
    "Sin", "Cos", "Softplus", "Softsign", "Sqrt", "Swish", "Tanh", "ThresholdedRelu", "Dropout",
)  # fmt: skip
BROADCAST = (
    "Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "PRelu", "Where", "Mean", "Sum", "Equal", "Greater", "Less",
    "And", "Or",
)  # fmt: skip
POOLS = (
    "MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool",
    "InstanceNormalization",
)  # fmt: skip
WHOLE_AXIS = ("Softmax", "LogSoftmax", "Hardmax", "ArgMax", "ArgMin", "LpNormalization")
REDUCE = "Reduce"


def analyse(graph: ir.Graph) -> Ties:
    """The ties of `graph`, whose inputs and outputs keep their shapes."""
    ties = Ties()
    for node in graph:
        rule = RULES.get(node.op_type) if node.domain == "" and not g.has_subgraph(node) else None
        if rule is None or not rule(ties, node):
            _whole(ties, node)
    for value in graph.outputs:
        ties.keep(value, f"the model's output '{value.name}' keeps its shape")
    return ties


def _whole(ties: Ties, node: ir.Node) -> None:
    for value in reads(node):
        ties.keep(value, why_whole(node))
        ties.keep(initializer(value), why_whole(node))


def _elementwise(ties: Ties, node: ir.Node) -> bool:
    values = [v for v in node.inputs if v is not None]
    axes = broadcast(ties, [ties.axes(v) for v in values], [sizes(v) for v in values], why_whole(node))
    ties.put(node.outputs[0], axes)
    return True


def _same(ties: Ties, node: ir.Node) -> bool:
    value = node.inputs[0]
    if g.is_constant(value):
        return True  # a stored half: the weight behind it is looked at where it is read
    ties.put(node.outputs[0], ties.axes(value))
    return True


def _windows(ties: Ties, node: ir.Node) -> bool:
    """Pools and their like: channels pass, the other axes stay."""
    x = ties.axes(node.inputs[0])
    if len(x) < 2:
        return False
    if x[1] is not None:
        for index in range(1, len(node.inputs)):
            vector(ties, node, index, x[1])
    for value in node.outputs:
        ties.put(value, [None, x[1], *[None] * (len(x) - 2)])
    return True


def _batch_norm(ties: Ties, node: ir.Node) -> bool:
    x = ties.axes(node.inputs[0])
    if len(x) > 1 and x[1] is not None:
        for index in range(1, 5):
            vector(ties, node, index, x[1])
    ties.put(node.outputs[0], x)
    return True


def _along_axis(ties: Ties, node: ir.Node) -> bool:
    """What looks at one axis as a whole."""
    x = ties.axes(node.inputs[0])
    axis = int(g.attribute(node, "axis", 0 if node.op_type.startswith("Arg") else -1))
    if not -len(x) <= axis < len(x):
        return False
    ties.pin(x[axis], why_whole(node))
    if node.op_type.startswith("Arg") and not g.attribute(node, "keepdims", 1):
        x = [a for i, a in enumerate(x) if i != axis % len(x)]
    ties.put(node.outputs[0], x)
    return True


def _layer_norm(ties: Ties, node: ir.Node) -> bool:
    x = ties.axes(node.inputs[0])
    axis = int(g.attribute(node, "axis", -1)) % max(len(x), 1)
    for atoms in x[axis:]:
        ties.pin(atoms, why_whole(node))
    ties.put(node.outputs[0], x)
    return True


def _reduce(ties: Ties, node: ir.Node) -> bool:
    x = ties.axes(node.inputs[0])
    given = g.constant(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if len(node.inputs) > 1 and node.inputs[1] is not None and given is None:
        return False
    over = {int(a) % len(x) for a in given} if given is not None and given.size else set(range(len(x)))
    for axis in over:
        ties.pin(x[axis], why_whole(node))
    kept: Axes = [None if i in over else a for i, a in enumerate(x)]
    if not g.attribute(node, "keepdims", 1):
        kept = [a for i, a in enumerate(kept) if i not in over]
    ties.put(node.outputs[0], kept)
    return True


def _transpose(ties: Ties, node: ir.Node) -> bool:
    x = ties.axes(node.inputs[0])
    order = g.attribute(node, "perm", tuple(reversed(range(len(x)))))
    ties.put(node.outputs[0], [x[i] for i in order])
    return True


def _concat(ties: Ties, node: ir.Node) -> bool:
    values = [v for v in node.inputs if v is not None]
    parts = [ties.axes(v) for v in values]
    axis = int(g.attribute(node, "axis", 0)) % len(parts[0])
    result: Axes = []
    for i in range(len(parts[0])):
        if i != axis:
            tied = parts[0][i]
            for part in parts[1:]:
                tied = ties.tie(tied, part[i], why_whole(node))
            result.append(tied)
            continue
        joined = [p[i] for p in parts]
        shapes = [g.dims(v) for v in values]
        for k, (atoms, size) in enumerate(zip(joined, shapes, strict=True)):
            if atoms is None and size is not None and isinstance(size[i], int):
                joined[k] = ties.fresh(int(size[i]))
                ties.pin(joined[k], why_whole(node))
        known = [a for a in joined if a is not None]
        result.append(np.concatenate(known) if len(known) == len(joined) else None)
        if result[-1] is None:
            for atoms in known:
                ties.pin(atoms, why_whole(node))
    ties.put(node.outputs[0], result)
    return True


def _split(ties: Ties, node: ir.Node) -> bool:
    x = ties.axes(node.inputs[0])
    axis = int(g.attribute(node, "axis", 0)) % max(len(x), 1)
    shapes = [g.dims(v) for v in node.outputs]
    given = node.inputs[1] if len(node.inputs) > 1 else None
    if (
        given is None
        or not g.is_constant(given)
        or any(s is None or not isinstance(s[axis], int) for s in shapes)
    ):
        return False
    start = 0
    for index, (value, shape) in enumerate(zip(node.outputs, shapes, strict=True)):
        assert shape is not None
        size = int(shape[axis])
        whole = x[axis]
        part = None if whole is None else whole[start : start + size]
        ties.put(value, [part if i == axis else a for i, a in enumerate(x)])
        if part is not None:
            ties.shapes.append((node, 1, index, part))
        start += size
    return True


def _reshape(ties: Ties, node: ir.Node) -> bool:
    """Axes are merged and split in runs of equal size; in a run whose first axis counts channels, each element of
    the merged axis goes with its channel."""
    value, made = node.inputs[0], node.outputs[0]
    before, after = g.dims(value), g.dims(made)
    x = ties.axes(value)
    if before is None or after is None:
        return False
    axes: Axes = [None] * len(after)
    i = j = 0
    while i < len(before) or j < len(after):
        run, end = _run(before, after, i, j)
        if run is None or end is None:
            for atoms in x[i:]:
                ties.pin(atoms, why_whole(node))
            break
        _carry(ties, node, x[i:run], before[i:run], after[j:end], axes, j)
        i, j = run, end
    if node.op_type == "Reshape":
        target = g.constant(node.inputs[1])
        for axis, atoms in enumerate(axes):
            if atoms is not None and (target is None or target.ndim != 1):
                ties.pin(atoms, why_whole(node))
            elif atoms is not None and target is not None and int(target[axis]) > 0:
                ties.shapes.append((node, 1, axis, atoms))
    ties.put(made, axes)
    return True


def _run(before: g.Shape, after: g.Shape, i: int, j: int) -> tuple[int | None, int | None]:
    """The shortest run of axes from i and from j that hold the same elements."""
    left, right = i, j
    a: list[object] = []
    b: list[object] = []
    while True:
        names = [d for d in a if isinstance(d, str)] == [d for d in b if isinstance(d, str)]
        sizes = [math.prod(d for d in part if isinstance(d, int)) for part in (a, b)]
        if (a or b) and names and sizes[0] == sizes[1]:
            return left, right
        if left < len(before) and (sizes[0] <= sizes[1] or right == len(after)):
            a.append(before[left])
            left += 1
        elif right < len(after):
            b.append(after[right])
            right += 1
        else:
            return None, None


def _carry(ties: Ties, node: ir.Node, x: Axes, before: g.Shape, after: g.Shape, axes: Axes, at: int) -> None:
    """Carry the atoms of one run over to the axes of the result from `at` on."""
    wide = [k for k, d in enumerate(before) if d != 1]
    into = [k for k, d in enumerate(after) if d != 1]
    tracked = [k for k in wide if x[k] is not None]
    if not tracked:
        return
    first = tracked[0]
    atoms = x[first]
    assert atoms is not None
    alone = len(tracked) == 1 and first == wide[0]
    if alone and len(wide) == 1 and len(into) == 1:
        axes[at + into[0]] = atoms
    elif alone and len(into) == 1 and all(isinstance(before[k], int) for k in wide):
        axes[at + into[0]] = np.repeat(atoms, math.prod(int(before[k]) for k in wide[1:]))
    elif alone and len(wide) == 1 and into and all(isinstance(after[k], int) for k in into):
        # Heads: all that belongs to one stays or goes together.
        parts = atoms.reshape(int(after[into[0]]), -1)
        for part in parts:
            ties.together(part)
        axes[at + into[0]] = parts[:, 0].copy()
    else:
        for k in tracked:
            ties.pin(x[k], why_whole(node))


def _gather(ties: Ties, node: ir.Node) -> bool:
    data, indices = node.inputs
    assert data is not None and indices is not None
    source = initializer(data)
    rank = g.rank(indices)
    x = (
        [ties.weight(source, i) for i in range(g.rank(data) or 0)]
        if g.is_constant(source)
        else ties.axes(data)
    )
    if rank is None or not x:
        return False
    axis = int(g.attribute(node, "axis", 0)) % len(x)
    ties.pin(x[axis], why_whole(node))
    ties.put(node.outputs[0], [*x[:axis], *[None] * rank, *x[axis + 1 :]])
    return True


def _resize(ties: Ties, node: ir.Node) -> bool:
    x = ties.axes(node.inputs[0])
    scales = g.constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if scales is None or g.attribute(node, "axes") or len(scales) != len(x) or scales[1] != 1:
        return False
    ties.put(node.outputs[0], [None, x[1], *[None] * (len(x) - 2)])
    return True


def _pad(ties: Ties, node: ir.Node) -> bool:
    x, pads = ties.axes(node.inputs[0]), g.constant(node.inputs[1])
    if pads is None or len(node.inputs) > 3 or len(pads) != 2 * len(x):
        return False
    kept: Axes = []
    for axis, atoms in enumerate(x):
        moved = pads[axis] or pads[axis + len(x)]
        if moved:
            ties.pin(atoms, why_whole(node))
        kept.append(None if moved else atoms)
    ties.put(node.outputs[0], kept)
    return True


RULES: dict[str, Rule] = {
    "Conv": conv, "ConvTranspose": conv, "Gemm": gemm, "MatMul": matmul, "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm, "RMSNormalization": _layer_norm, "Transpose": _transpose,
    "Concat": _concat, "Split": _split, "Gather": _gather, "Attention": attention, "Resize": _resize, "Pad": _pad,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(SAME, _same), **dict.fromkeys(BROADCAST, _elementwise), **dict.fromkeys(POOLS, _windows),
    **dict.fromkeys(WHOLE_AXIS, _along_axis),
    **dict.fromkeys(
        (REDUCE + k for k in ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "SumSquare")), _reduce
    ),
}  # fmt: skip
