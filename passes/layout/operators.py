"""How operators take other axis orders: what each does to axes, and how its attributes follow.

An operator works over a *space* of axes, usually those of its output. In the *order* s its stored tensors have their
axes sorted by s: stored axis i is space axis s[i]. A port says which of its own axes lies on each axis of the space.
An operator that is not in the table keeps the source's order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.passes.layout import functions

Order = tuple[int, ...]


class Port(NamedTuple):
    """`axes[s]` is the port's own axis on space axis s, None where it has none; `ones`: a missing axis is stored as
    a dimension of 1 (broadcasting), else not at all (a reduced axis). `order` fixes the stored order instead."""

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
    """One node's freedom. `orders`: the only orders allowed, all if None; `last`: space axis that must come last;
    ports that are None keep the source's order. `rewrite` adapts the node, which by then reads its new inputs."""

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


def describe(node: ir.Node, axis_last: frozenset[str]) -> Operator | None:
    """The freedom of `node`, or None where it has none. Operators named in `axis_last` work on the last axis only."""
    if node.domain == "tapeout" and node.op_type == "FullyConnected":
        return _matrix(node)
    if node.domain != "":
        return None
    maker = _TABLE.get(node.op_type)
    if maker is None or any(r is None for r in map(g.rank, node.outputs)):
        return None
    found = maker(node)
    if found is not None and node.op_type in axis_last:
        axis = _axis(node, found.rank)
        found = Operator(found.rank, found.inputs, found.outputs, found.rewrite, found.orders, (axis,))
    return found


# --- helpers --------------------------------------------------------------------------------------------------


def _full(rank: int) -> Port:
    return Port(identity(rank))


def _axis(node: ir.Node, rank: int, default: int = -1, name: str = "axis") -> int:
    axis = int(g.attribute(node, name, default))
    return axis + rank if axis < 0 else axis


def _constants(node: ir.Node, first: int) -> bool:
    """True where all operands from input `first` on are constants or absent."""
    return all(v is None or g.is_constant(v) for v in node.inputs[first:])


def _integers(value: ir.Value | None) -> tuple[int, ...] | None:
    array = g.constant(value, limit=64)
    return None if array is None else tuple(int(i) for i in array.reshape(-1))


def _set_input(node: ir.Node, index: int, array: Sequence[int] | np.ndarray, edit: Edit, hint: str) -> None:
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    constant = np.asarray(array) if isinstance(array, np.ndarray) else np.asarray(array, np.int64)
    node.replace_input_with(index, g.add_constant(edit.graph, constant, hint))


def _move_axis(default: int = -1, name: str = "axis") -> Rewriter:
    def rewrite(node: ir.Node, edit: Edit) -> None:
        rank = len(edit.order)
        node.attributes[name] = ir.AttrInt64(name, edit.position[_axis(node, rank, default, name)])

    return rewrite


def _permute_input(index: int) -> Rewriter:
    def rewrite(node: ir.Node, edit: Edit) -> None:
        array = g.constant(node.inputs[index])
        assert array is not None
        _set_input(node, index, array[list(edit.order)], edit, node.inputs[index].name or "axes")  # type: ignore[union-attr]

    return rewrite


# --- elementwise and data movement ------------------------------------------------------------------------------


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
    return Operator(rank, tuple(inputs), tuple(_full(rank) for _ in node.outputs), rewrite)


def _along_axis(default: int = -1, limit: int | None = None) -> Callable[[ir.Node], Operator | None]:
    """One tensor in, all outputs of its rank, an `axis` attribute; inputs from `limit` on are operands."""

    def describe(node: ir.Node) -> Operator | None:
        rank = g.rank(node.inputs[0])
        if rank is None or rank == 0 or any(g.rank(v) != rank for v in node.outputs):
            return None
        count = len(node.inputs) if limit is None else min(limit, len(node.inputs))
        if any(g.rank(v) != rank for v in node.inputs[:count]):
            return None
        ports = (*(_full(rank) for _ in range(count)), *(None for _ in node.inputs[count:]))
        return Operator(rank, ports, tuple(_full(rank) for _ in node.outputs), _move_axis(default))

    return describe


def _arg(node: ir.Node) -> Operator | None:
    rank = g.rank(node.inputs[0])
    if not rank:
        return None
    axis, keep = _axis(node, rank, 0), bool(g.attribute(node, "keepdims", 1))
    return Operator(rank, (_full(rank),), (_reduced(rank, (axis,), keep),), _move_axis(0))


def _reduced(rank: int, axes: Sequence[int], keep: bool) -> Port:
    if keep:
        return _full(rank)
    left = [a for a in range(rank) if a not in axes]
    return Port(tuple(left.index(a) if a in left else None for a in range(rank)))


def _reduce(node: ir.Node) -> Operator | None:
    rank = g.rank(node.inputs[0])
    if not rank or not _constants(node, 1):
        return None
    axes = _integers(node.inputs[1]) if len(node.inputs) > 1 else None
    if not axes:
        axes = () if g.attribute(node, "noop_with_empty_axes", 0) else identity(rank)
    axes = tuple(a % rank for a in axes)
    keep = bool(g.attribute(node, "keepdims", 1))

    def rewrite(node: ir.Node, edit: Edit) -> None:
        if 0 < len(axes) < rank:
            _set_input(node, 1, sorted(edit.position[a] for a in axes), edit, "axes")

    ports = (_full(rank), *(None for _ in node.inputs[1:]))
    return Operator(rank, ports, (_reduced(rank, axes, keep),), rewrite)


def _global_pool(op_type: str) -> Callable[[ir.Node], Operator | None]:
    def describe(node: ir.Node) -> Operator | None:
        rank = g.rank(node.inputs[0])
        if rank is None or rank < 3:
            return None

        def rewrite(node: ir.Node, edit: Edit) -> None:
            node.op_type = op_type
            node.version = None
            node.attributes["keepdims"] = ir.AttrInt64("keepdims", 1)
            _set_input(node, 1, sorted(edit.position[2:]), edit, "axes")

        return Operator(rank, (_full(rank),), (_full(rank),), rewrite)

    return describe


def _pad(node: ir.Node) -> Operator | None:
    rank = g.rank(node.inputs[0])
    axes_given = len(node.inputs) > 3 and node.inputs[3] is not None
    axes = _integers(node.inputs[3]) if axes_given else None
    if not rank or (axes_given and axes is None):
        return None

    def rewrite(node: ir.Node, edit: Edit) -> None:
        pads = g.constant(node.inputs[1])
        listed = identity(rank) if axes is None else tuple(a % rank for a in axes)
        if pads is None:  # known at run time only: the axes say what they belong to
            _set_input(node, 3, [edit.position[a] for a in listed], edit, "axes")
            return
        full = np.zeros((2, rank), np.int64)
        full[:, list(listed)] = pads.reshape(2, -1)
        _set_input(node, 1, full[:, list(edit.order)].reshape(-1), edit, node.inputs[1].name or "pads")  # type: ignore[union-attr]
        if axes_given:
            node.resize_inputs(3)

    ports = (_full(rank), *(None for _ in node.inputs[1:]))
    return Operator(rank, ports, (_full(rank),), rewrite)


def _slice(node: ir.Node) -> Operator | None:
    rank = g.rank(node.inputs[0])
    axes_given = len(node.inputs) > 3 and node.inputs[3] is not None
    axes = _integers(node.inputs[3]) if axes_given else None
    if not rank or (axes_given and axes is None):
        return None
    if axes is None:
        starts = g.static_dims(node.inputs[1])
        if starts is None:
            return None
        axes = identity(starts[0])
    listed = tuple(a % rank for a in axes)

    def rewrite(node: ir.Node, edit: Edit) -> None:
        _set_input(node, 3, [edit.position[a] for a in listed], edit, "axes")

    ports = (_full(rank), *(None for _ in node.inputs[1:]))
    return Operator(rank, ports, (_full(rank),), rewrite)


def _tile(node: ir.Node) -> Operator | None:
    rank = g.rank(node.inputs[0])
    if not rank or not _constants(node, 1):
        return None
    return Operator(rank, (_full(rank), None), (_full(rank),), _permute_input(1))


def _expand(node: ir.Node) -> Operator | None:
    found = _elementwise(node, skip=1)
    shape = _integers(node.inputs[1]) if len(node.inputs) > 1 else None
    if found is None or shape is None or len(shape) > found.rank:
        return None

    def rewrite(node: ir.Node, edit: Edit) -> None:
        padded = (1,) * (found.rank - len(shape)) + shape
        _set_input(node, 1, [padded[a] for a in edit.order], edit, "shape")

    return Operator(found.rank, found.inputs, found.outputs, rewrite)


def _gather(node: ir.Node) -> Operator | None:
    rank, indices = g.rank(node.inputs[0]), g.rank(node.inputs[1])
    if not rank or indices not in (0, 1):
        return None
    axis = _axis(node, rank, 0)
    out = _reduced(rank, (axis,), keep=indices == 1)
    return Operator(rank, (_full(rank), None), (out,), _move_axis(0))


def _cumsum(node: ir.Node) -> Operator | None:
    rank = g.rank(node.inputs[0])
    axis = _integers(node.inputs[1])
    if not rank or axis is None or len(axis) != 1:
        return None

    def rewrite(node: ir.Node, edit: Edit) -> None:
        _set_input(node, 1, np.asarray(edit.position[axis[0] % rank], np.int64), edit, "axis")

    return Operator(rank, (_full(rank), None), (_full(rank),), rewrite)


def _quantize(node: ir.Node) -> Operator | None:
    rank, scale = g.rank(node.inputs[0]), g.rank(node.inputs[1])
    if rank is None or scale not in (0, 1):
        return None
    ports = (_full(rank), *(None for _ in node.inputs[1:]))
    return Operator(rank, ports, (_full(rank),), _move_axis(1) if scale == 1 and rank else None)


def _trailing(node: ir.Node) -> Operator | None:
    """Normalizations over the axes from `axis` on, which stay where they are."""
    rank = g.rank(node.inputs[0])
    if not rank:
        return None
    axis = _axis(node, rank)
    outputs = tuple(_full(rank) if i == 0 else None for i in range(len(node.outputs)))
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return None
    ports = (_full(rank), *(None for _ in node.inputs[1:]))
    return Operator(rank, ports, outputs, _move_axis(), last=tuple(range(axis, rank)))


def _shape(node: ir.Node) -> Operator | None:
    """The source's shape can be read off any order, which costs nothing."""
    rank = g.rank(node.inputs[0])
    if not rank:
        return None

    def rewrite(node: ir.Node, edit: Edit) -> None:
        start = max(0, min(rank, _axis(node, rank, 0, "start")))
        end = max(0, min(rank, _axis(node, rank, rank, "end")))
        node.attributes.clear()
        made = node.outputs[0]
        full = ir.node("Shape", [node.inputs[0]], name=g.fresh(edit.graph, "shape"))
        full.metadata_props.update(node.metadata_props)
        full.outputs[0].name, full.outputs[0].type = g.fresh(edit.graph, "shape"), made.type
        full.outputs[0].shape = ir.Shape([rank])
        edit.graph.insert_before(node, full)
        node.op_type, node.version = "Gather", None
        node.replace_input_with(0, full.outputs[0])
        _set_input(node, 1, [edit.position[a] for a in range(start, max(start, end))], edit, "axes")
        node.attributes["axis"] = ir.AttrInt64("axis", 0)

    return Operator(rank, (_full(rank),), (None,), rewrite)


def _size(node: ir.Node) -> Operator | None:
    rank = g.rank(node.inputs[0])
    return None if not rank else Operator(rank, (_full(rank),), (None,))


# --- what wants the channels last ---------------------------------------------------------------------------------


def _function(node: ir.Node) -> Operator | None:
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
    ports = (_full(rank), *operands[: len(node.inputs) - 1])
    return Operator(rank, ports, (_full(rank),), rewrite, (functions.LAST[rank],))


def _resize(node: ir.Node) -> Operator | None:
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
                _set_input(node, index, array[order], edit, name)
            else:  # in the stored order of the axes that it lists
                position = {edit.position[a]: i for i, a in enumerate(listed)}
                kept = [position[a] for a in sorted(position)]
                _set_input(node, index, array.reshape(-1, len(listed))[:, kept].reshape(-1), edit, name)
        if axes is not None:
            node.attributes["axes"] = ir.AttrInt64s("axes", sorted(edit.position[a] for a in listed))

    ports = (_full(rank), *(None for _ in node.inputs[1:]))
    return Operator(rank, ports, (_full(rank),), rewrite, orders)


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


# --- matrices -----------------------------------------------------------------------------------------------------


def _matrix(node: ir.Node) -> Operator | None:
    """x @ W with a constant W: leading axes in any order; the factors of the contracted axis in any sequence,
    since the rows of W follow."""
    rank, out = g.rank(node.inputs[0]), g.rank(node.outputs[0])
    weight = node.inputs[1]
    if not rank or rank < 2 or out != rank or not g.is_constant(weight) or g.rank(weight) != 2:
        return None
    if node.op_type == "Gemm" and g.attribute(node, "transA", 0):
        return None
    port = Port(identity(rank), rows=True)
    operands: list[Port | None] = [None] * (len(node.inputs) - 1)
    if node.op_type == "Gemm":  # its bias may vary by row
        only: tuple[Order, ...] | None = ((0, 1),)
        return Operator(rank, (port, *operands), (_full(rank),), orders=only)
    return Operator(rank, (port, *operands), (_full(rank),), last=(rank - 1,))


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
            "Dropout", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid",
            "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min",
            "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Shrink",
            "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh",
            "ThresholdedRelu", "Where", "Xor",
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
    **dict.fromkeys(functions.RANKS, _function),
    "ArgMax": _arg,
    "ArgMin": _arg,
    "CastLike": lambda node: _elementwise(node, skip=1),
    "Concat": _along_axis(),
    "CumSum": _cumsum,
    "Expand": _expand,
    "Gather": _gather,
    "GlobalAveragePool": _global_pool("ReduceMean"),
    "GlobalMaxPool": _global_pool("ReduceMax"),
    "Pad": _pad,
    "Resize": _resize,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Split": _along_axis(0, limit=1),
    "Tile": _tile,
    "TopK": _along_axis(limit=1),
}  # fmt: skip
