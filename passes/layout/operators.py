"""How operators take other axis orders: what each does to axes, and how its attributes follow.

An operator that is not in the table at the end keeps the source's order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.passes.layout import spatial
from tapeout.passes.layout.freedom import (
    Edit,
    Operator,
    Order,
    Port,
    Rewriter,
    axis_of,
    constants,
    full,
    identity,
    integers,
    move_axis,
    permute_input,
    set_input,
)

# Operators that hardware offers along the last axis only.
LAST_AXIS = ("Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "TopK")


def describe(node: ir.Node, axis_last: frozenset[str]) -> Operator | None:
    """The freedom of `node`, or None where it has none. Operators named in `axis_last` work on the last axis
    only."""
    if node.domain == "tapeout" and node.op_type == "FullyConnected":
        return _matrix(node)
    if node.domain != "":
        return None
    maker = _TABLE.get(node.op_type)
    if maker is None or any(r is None for r in map(g.rank, node.outputs)):
        return None
    found = maker(node)
    if found is not None and node.op_type in axis_last:
        axis = axis_of(node, found.rank)
        found = Operator(found.rank, found.inputs, found.outputs, found.rewrite, found.orders, (axis,))
    return found


# --- elementwise and data movement --------------------------------------------------------------------------


def _elementwise(node: ir.Node, rewrite: Rewriter | None = None, skip: int | None = None) -> Operator | None:
    rank = g.rank(node.outputs[0])
    assert rank is not None
    inputs: list[Port | None] = []
    for i, value in enumerate(node.inputs):
        own = g.rank(value)
        if value is None or i == skip:
            inputs.append(None)
        elif own is None or own > rank:
            return None
        else:
            missing: list[int | None] = [None] * (rank - own)
            inputs.append(Port((*missing, *range(own)), ones=own < rank))
    return Operator(rank, tuple(inputs), tuple(full(rank) for _ in node.outputs), rewrite)


def _along_axis(default: int = -1, limit: int | None = None) -> Callable[[ir.Node], Operator | None]:
    """One tensor in, all outputs of its rank, an `axis` attribute; inputs from `limit` on are operands."""

    def describe(node: ir.Node) -> Operator | None:
        rank = g.rank(node.inputs[0])
        if rank is None or rank == 0 or any(g.rank(v) != rank for v in node.outputs):
            return None
        count = len(node.inputs) if limit is None else min(limit, len(node.inputs))
        if any(g.rank(v) != rank for v in node.inputs[:count]):
            return None
        ports = (*(full(rank) for _ in range(count)), *(None for _ in node.inputs[count:]))
        return Operator(rank, ports, tuple(full(rank) for _ in node.outputs), move_axis(default))

    return describe


def _arg(node: ir.Node) -> Operator | None:
    rank = g.rank(node.inputs[0])
    if not rank:
        return None
    axis, keep = axis_of(node, rank, 0), bool(g.attribute(node, "keepdims", 1))
    return Operator(rank, (full(rank),), (_reduced(rank, (axis,), keep),), move_axis(0))


def _reduced(rank: int, axes: Sequence[int], keep: bool) -> Port:
    if keep:
        return full(rank)
    left = [a for a in range(rank) if a not in axes]
    return Port(tuple(left.index(a) if a in left else None for a in range(rank)))


def _reduce(node: ir.Node) -> Operator | None:
    rank = g.rank(node.inputs[0])
    if not rank or not constants(node, 1):
        return None
    axes = integers(node.inputs[1]) if len(node.inputs) > 1 else None
    if not axes:
        axes = () if g.attribute(node, "noop_with_empty_axes", 0) else identity(rank)
    axes = tuple(a % rank for a in axes)
    keep = bool(g.attribute(node, "keepdims", 1))

    def rewrite(node: ir.Node, edit: Edit) -> None:
        if 0 < len(axes) < rank:
            set_input(node, 1, sorted(edit.position[a] for a in axes), edit, "axes")

    ports = (full(rank), *(None for _ in node.inputs[1:]))
    return Operator(rank, ports, (_reduced(rank, axes, keep),), rewrite)


def _pad(node: ir.Node) -> Operator | None:
    rank = g.rank(node.inputs[0])
    axes_given = len(node.inputs) > 3 and node.inputs[3] is not None
    axes = integers(node.inputs[3]) if axes_given else None
    if not rank or (axes_given and axes is None):
        return None

    def rewrite(node: ir.Node, edit: Edit) -> None:
        pads = g.constant(node.inputs[1])
        listed = identity(rank) if axes is None else tuple(a % rank for a in axes)
        if pads is None:  # known at run time only: the axes say what they belong to
            set_input(node, 3, [edit.position[a] for a in listed], edit, "axes")
            return
        full = np.zeros((2, rank), np.int64)
        full[:, list(listed)] = pads.reshape(2, -1)
        set_input(node, 1, full[:, list(edit.order)].reshape(-1), edit, "pads")
        if axes_given:
            node.resize_inputs(3)

    ports = (full(rank), *(None for _ in node.inputs[1:]))
    return Operator(rank, ports, (full(rank),), rewrite)


def _slice(node: ir.Node) -> Operator | None:
    rank = g.rank(node.inputs[0])
    axes_given = len(node.inputs) > 3 and node.inputs[3] is not None
    axes = integers(node.inputs[3]) if axes_given else None
    if not rank or (axes_given and axes is None):
        return None
    if axes is None:
        starts = g.static_dims(node.inputs[1])
        if starts is None:
            return None
        axes = identity(starts[0])
    listed = tuple(a % rank for a in axes)

    def rewrite(node: ir.Node, edit: Edit) -> None:
        set_input(node, 3, [edit.position[a] for a in listed], edit, "axes")

    ports = (full(rank), *(None for _ in node.inputs[1:]))
    return Operator(rank, ports, (full(rank),), rewrite)


def _tile(node: ir.Node) -> Operator | None:
    rank = g.rank(node.inputs[0])
    if not rank or not constants(node, 1):
        return None
    return Operator(rank, (full(rank), None), (full(rank),), permute_input(1))


def _expand(node: ir.Node) -> Operator | None:
    found = _elementwise(node, skip=1)
    shape = integers(node.inputs[1]) if len(node.inputs) > 1 else None
    if found is None or shape is None or len(shape) > found.rank:
        return None

    def rewrite(node: ir.Node, edit: Edit) -> None:
        padded = (1,) * (found.rank - len(shape)) + shape
        set_input(node, 1, [padded[a] for a in edit.order], edit, "shape")

    return Operator(found.rank, found.inputs, found.outputs, rewrite)


def _gather(node: ir.Node) -> Operator | None:
    rank, indices = g.rank(node.inputs[0]), g.rank(node.inputs[1])
    if not rank or indices not in (0, 1):
        return None
    axis = axis_of(node, rank, 0)
    out = _reduced(rank, (axis,), keep=indices == 1)
    return Operator(rank, (full(rank), None), (out,), move_axis(0))


def _cumsum(node: ir.Node) -> Operator | None:
    rank = g.rank(node.inputs[0])
    axis = integers(node.inputs[1])
    if not rank or axis is None or len(axis) != 1:
        return None

    def rewrite(node: ir.Node, edit: Edit) -> None:
        set_input(node, 1, np.asarray(edit.position[axis[0] % rank], np.int64), edit, "axis")

    return Operator(rank, (full(rank), None), (full(rank),), rewrite)


def _quantize(node: ir.Node) -> Operator | None:
    rank, scale = g.rank(node.inputs[0]), g.rank(node.inputs[1])
    if rank is None or scale not in (0, 1):
        return None
    ports = (full(rank), *(None for _ in node.inputs[1:]))
    return Operator(rank, ports, (full(rank),), move_axis(1) if scale == 1 and rank else None)


def _trailing(node: ir.Node) -> Operator | None:
    """Normalizations over the axes from `axis` on, which stay where they are."""
    rank = g.rank(node.inputs[0])
    if not rank:
        return None
    axis = axis_of(node, rank)
    outputs = tuple(full(rank) if i == 0 else None for i in range(len(node.outputs)))
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return None
    ports = (full(rank), *(None for _ in node.inputs[1:]))
    return Operator(rank, ports, outputs, move_axis(), last=tuple(range(axis, rank)))


def _shape(node: ir.Node) -> Operator | None:
    """The source's shape can be read off any order, which costs nothing."""
    rank = g.rank(node.inputs[0])
    if not rank:
        return None

    def rewrite(node: ir.Node, edit: Edit) -> None:
        start = max(0, min(rank, axis_of(node, rank, 0, "start")))
        end = max(0, min(rank, axis_of(node, rank, rank, "end")))
        node.attributes.clear()
        made = node.outputs[0]
        full = ir.node("Shape", [node.inputs[0]], name=g.fresh(edit.graph, "shape"))
        full.metadata_props.update(node.metadata_props)
        full.outputs[0].name, full.outputs[0].type = g.fresh(edit.graph, "shape"), made.type
        full.outputs[0].shape = ir.Shape([rank])
        edit.graph.insert_before(node, full)
        node.op_type, node.version = "Gather", None
        node.replace_input_with(0, full.outputs[0])
        set_input(node, 1, [edit.position[a] for a in range(start, max(start, end))], edit, "axes")
        node.attributes["axis"] = ir.AttrInt64("axis", 0)

    return Operator(rank, (full(rank),), (None,), rewrite)


def _size(node: ir.Node) -> Operator | None:
    rank = g.rank(node.inputs[0])
    return None if not rank else Operator(rank, (full(rank),), (None,))


# --- matrices -----------------------------------------------------------------------------------------------


def _matrix(node: ir.Node) -> Operator | None:
    """x @ W with a constant W: leading axes in any order; the factors of the contracted axis in any sequence,
    since the rows of W follow."""
    rank, out = g.rank(node.inputs[0]), g.rank(node.outputs[0])
    if not rank or rank < 2 or out != rank or stored_weight(node) is None:
        return None
    if node.op_type == "Gemm" and g.attribute(node, "transA", 0):
        return None
    port = Port(identity(rank), rows=True)
    operands: list[Port | None] = [None] * (len(node.inputs) - 1)
    if node.op_type == "Gemm":  # its bias may vary by row
        only: tuple[Order, ...] | None = ((0, 1),)
        return Operator(rank, (port, *operands), (full(rank),), orders=only)
    return Operator(rank, (port, *operands), (full(rank),), last=(rank - 1,))


def stored_weight(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """The constant whose rows are contracted, and the node that reads it: `node`, or the DequantizeLinear in
    front of it whose scales do not run along the rows; None where there is no such constant."""
    reader, weight = node, node.inputs[1]
    dequantize = g.producer(weight, "DequantizeLinear")
    if weight is not None and dequantize is not None and g.only_use(weight) is node:
        scales = dequantize.inputs[1]
        if g.rank(scales) == 0 or (g.rank(scales) == 1 and axis_of(dequantize, 2, 1) != weight_axis(node)):
            reader, weight = dequantize, dequantize.inputs[0]
    return (reader, weight) if weight is not None and g.is_constant(weight) and g.rank(weight) == 2 else None


def weight_axis(node: ir.Node) -> int:
    """Which axis of the constant matrix of `node` is contracted."""
    if node.domain == "tapeout":
        return 1
    return 1 if node.op_type == "Gemm" and g.attribute(node, "transB", 0) else 0


_TABLE: dict[str, Callable[[ir.Node], Operator | None]] = {
    **dict.fromkeys(
        (
            "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitShift", "BitwiseAnd",
            "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Div",
            "Dropout", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual",
            "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual",
            "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow",
            "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus",
            "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor",
        ),
        _elementwise,
    ),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "LpNormalization"), _along_axis()),
    **dict.fromkeys(
        (
            "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
            "ReduceProd", "ReduceSum", "ReduceSumSquare",
        ),
        _reduce,
    ),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _trailing),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantize),
    **dict.fromkeys(("MatMul", "Gemm"), _matrix),
    **dict.fromkeys(spatial.FUNCTIONS, spatial.function),
    "ArgMax": _arg,
    "ArgMin": _arg,
    "CastLike": lambda node: _elementwise(node, skip=1),
    "Concat": _along_axis(),
    "CumSum": _cumsum,
    "Expand": _expand,
    "Gather": _gather,
    "GlobalAveragePool": spatial.global_pool("ReduceMean"),
    "GlobalMaxPool": spatial.global_pool("ReduceMax"),
    "Pad": _pad,
    "Resize": spatial.resize,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Split": _along_axis(0, limit=1),
    "Tile": _tile,
    "TopK": _along_axis(limit=1),
}  # fmt: skip
