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
from tapeout.passes.sparsity.atoms import Atoms, Axes, Ties

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


def _why(node: ir.Node) -> str:
    return f"{node.op_type} '{node.name}' needs all of them"


def _whole(ties: Ties, node: ir.Node) -> None:
    for value in reads(node):
        ties.keep(value, _why(node))
        ties.keep(_initializer(value), _why(node))


def _conv(ties: Ties, node: ir.Node) -> bool:
    weight = node.inputs[1]
    shape = g.static_dims(weight)
    if weight is None or shape is None or not _stored(weight):
        return False
    stored, x = _initializer(weight), ties.axes(node.inputs[0])
    groups = int(g.attribute(node, "group", 1))
    turned = node.op_type == "ConvTranspose"
    if len(x) < 2 or (turned and groups != 1):
        return False
    made, why = ties.weight(stored, 1 if turned else 0), _why(node)
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
    _vector(ties, node, 2, made)
    ties.put(node.outputs[0], [None, made, *[None] * (len(shape) - 2)])
    return True


def _vector(ties: Ties, node: ir.Node, index: int, atoms: Atoms) -> None:
    """The parameter [C] or [1, C] at an input goes with `atoms`."""
    value = node.inputs[index] if len(node.inputs) > index else None
    if value is not None and (g.static_dims(value) or (1,))[-1] > 1:
        axes = ties.axes(value)
        ties.tie(axes[-1], atoms, _why(node))


def _stored(weight: ir.Value) -> bool:
    return g.is_constant(_initializer(weight))


def _initializer(weight: ir.Value) -> ir.Value:
    """The constant behind a weight: itself, or the half that a Cast widens."""
    cast = g.producer(weight, "Cast")
    inner = None if cast is None else cast.inputs[0]
    return weight if inner is None else inner


def _gemm(ties: Ties, node: ir.Node) -> bool:
    weight, x = node.inputs[1], ties.axes(node.inputs[0])
    if weight is None or not _stored(weight) or g.attribute(node, "transA", 0) or len(x) != 2:
        return False
    turned = int(g.attribute(node, "transB", 0))
    stored = _initializer(weight)
    ties.tie(ties.weight(stored, turned), x[1], _why(node))
    made = ties.weight(stored, 1 - turned)
    if made is not None:
        _vector(ties, node, 2, made)
    ties.put(node.outputs[0], [x[0], made])
    return True


def _matmul(ties: Ties, node: ir.Node) -> bool:
    left, right = node.inputs
    assert left is not None and right is not None
    a = ties.axes(left)
    b = (
        [ties.weight(_initializer(right), i) for i in range(g.rank(right) or 0)]
        if _stored(right)
        else ties.axes(right)
    )
    if len(a) < 2 or len(b) < 2:
        return False
    ties.tie(a[-1], b[-2], _why(node))
    batch = _broadcast(ties, [a[:-2], b[:-2]], [_sizes(left)[:-2], _sizes(right)[:-2]], _why(node))
    ties.put(node.outputs[0], [*batch, a[-2], b[-1]])
    return True


def _sizes(value: ir.Value) -> list[object]:
    return list(g.dims(value) or ())


def _broadcast(ties: Ties, operands: list[Axes], sizes: list[list[object]], why: str) -> Axes:
    """The axes of what operands make together; an operand of size one along an axis follows the others."""
    rank = max(map(len, operands))
    result: Axes = []
    for axis in range(-rank, 0):
        tied: Atoms | None = None
        first = True
        for atoms, size in zip(operands, sizes, strict=True):
            if len(atoms) < -axis or size[axis] == 1:
                continue
            tied = atoms[axis] if first else ties.tie(tied, atoms[axis], why)
            first = False
        result.append(tied)
    return result


def _elementwise(ties: Ties, node: ir.Node) -> bool:
    values = [v for v in node.inputs if v is not None]
    axes = _broadcast(ties, [ties.axes(v) for v in values], [_sizes(v) for v in values], _why(node))
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
            _vector(ties, node, index, x[1])
    for value in node.outputs:
        ties.put(value, [None, x[1], *[None] * (len(x) - 2)])
    return True


def _batch_norm(ties: Ties, node: ir.Node) -> bool:
    x = ties.axes(node.inputs[0])
    if len(x) > 1 and x[1] is not None:
        for index in range(1, 5):
            _vector(ties, node, index, x[1])
    ties.put(node.outputs[0], x)
    return True


def _along_axis(ties: Ties, node: ir.Node) -> bool:
    """What looks at one axis as a whole."""
    x = ties.axes(node.inputs[0])
    axis = int(g.attribute(node, "axis", 0 if node.op_type.startswith("Arg") else -1))
    if not -len(x) <= axis < len(x):
        return False
    ties.pin(x[axis], _why(node))
    if node.op_type.startswith("Arg") and not g.attribute(node, "keepdims", 1):
        x = [a for i, a in enumerate(x) if i != axis % len(x)]
    ties.put(node.outputs[0], x)
    return True


def _layer_norm(ties: Ties, node: ir.Node) -> bool:
    x = ties.axes(node.inputs[0])
    axis = int(g.attribute(node, "axis", -1)) % max(len(x), 1)
    for atoms in x[axis:]:
        ties.pin(atoms, _why(node))
    ties.put(node.outputs[0], x)
    return True


def _reduce(ties: Ties, node: ir.Node) -> bool:
    x = ties.axes(node.inputs[0])
    given = g.constant(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if len(node.inputs) > 1 and node.inputs[1] is not None and given is None:
        return False
    over = {int(a) % len(x) for a in given} if given is not None and given.size else set(range(len(x)))
    for axis in over:
        ties.pin(x[axis], _why(node))
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
                tied = ties.tie(tied, part[i], _why(node))
            result.append(tied)
            continue
        joined = [p[i] for p in parts]
        sizes = [g.dims(v) for v in values]
        for k, (atoms, size) in enumerate(zip(joined, sizes, strict=True)):
            if atoms is None and size is not None and isinstance(size[i], int):
                joined[k] = ties.fresh(int(size[i]))
                ties.pin(joined[k], _why(node))
        known = [a for a in joined if a is not None]
        result.append(np.concatenate(known) if len(known) == len(joined) else None)
        if result[-1] is None:
            for atoms in known:
                ties.pin(atoms, _why(node))
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
                ties.pin(atoms, _why(node))
            break
        _carry(ties, node, x[i:run], before[i:run], after[j:end], axes, j)
        i, j = run, end
    if node.op_type == "Reshape":
        target = g.constant(node.inputs[1])
        for axis, atoms in enumerate(axes):
            if atoms is not None and (target is None or target.ndim != 1):
                ties.pin(atoms, _why(node))
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
            ties.pin(x[k], _why(node))


def _gather(ties: Ties, node: ir.Node) -> bool:
    data, indices = node.inputs
    assert data is not None and indices is not None
    source = _initializer(data)
    rank = g.rank(indices)
    x = (
        [ties.weight(source, i) for i in range(g.rank(data) or 0)]
        if g.is_constant(source)
        else ties.axes(data)
    )
    if rank is None or not x:
        return False
    axis = int(g.attribute(node, "axis", 0)) % len(x)
    ties.pin(x[axis], _why(node))
    ties.put(node.outputs[0], [*x[:axis], *[None] * rank, *x[axis + 1 :]])
    return True


def _attention(ties: Ties, node: ir.Node) -> bool:
    values = node.inputs[:3]
    parts = [ties.axes(v) for v in values]
    if any(len(p) != 4 for p in parts) or len([v for v in node.outputs if v.uses()]) > 1:
        return False
    why = _why(node)
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
            ties.pin(atoms, _why(node))
        kept.append(None if moved else atoms)
    ties.put(node.outputs[0], kept)
    return True


RULES: dict[str, Rule] = {
    "Conv": _conv, "ConvTranspose": _conv, "Gemm": _gemm, "MatMul": _matmul, "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm, "RMSNormalization": _layer_norm, "Transpose": _transpose,
    "Concat": _concat, "Split": _split, "Gather": _gather, "Attention": _attention, "Resize": _resize, "Pad": _pad,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(SAME, _same), **dict.fromkeys(BROADCAST, _elementwise), **dict.fromkeys(POOLS, _windows),
    **dict.fromkeys(WHOLE_AXIS, _along_axis),
    **dict.fromkeys(
        (REDUCE + k for k in ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "SumSquare")), _reduce
    ),
}  # fmt: skip
