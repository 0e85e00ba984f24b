"""Faults as they happen in passes and lowerings: each edits a graph in one place and says whose numbers it
spoils."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.convenience import convert_attribute

from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.origin import origin

# Spoils one place of a graph and returns the origin of the node that now computes something else; None where
# the graph has no such place. The random generator chooses among places.
Fault = Callable[[ir.Model, np.random.Generator], "tuple[str, ...] | None"]
KINDS: dict[str, Fault] = {}


def kind(function: Fault) -> Fault:
    KINDS[function.__name__] = function
    return function


def _nodes(model: ir.Model, *ops: str, where: Callable[[ir.Node], bool] = lambda node: True) -> list[ir.Node]:
    """Candidates; a domain `tapeout` operator counts as the ONNX operator it replaces ("ConvNHWC" as
    "Conv")."""
    names = {*ops, *(f"{op}NHWC" for op in ops)}
    if "Gemm" in ops or "MatMul" in ops:
        names.add("FullyConnected")
    return [n for n in model.graph if n.op_type in names and where(n)]


def _pick(nodes: Sequence[ir.Node], rng: np.random.Generator) -> ir.Node | None:
    return nodes[int(rng.integers(len(nodes)))] if nodes else None


def _floats(node: ir.Node, least: int = 1) -> list[int]:
    return [
        i for i, v in enumerate(node.inputs)
        if v is not None and v.dtype == ir.DataType.FLOAT and g.is_constant(v) and v.const_value is not None
        and v.const_value.size >= least
    ]  # fmt: skip


def _set_input(node: ir.Node, index: int, array: np.ndarray) -> None:
    assert isinstance(node.graph, ir.Graph)
    node.replace_input_with(index, g.add_constant(node.graph, np.asarray(array), "planted"))


def _array(node: ir.Node, index: int) -> np.ndarray:
    array = g.constant(node.inputs[index])
    assert array is not None
    return array.copy()


def _set(node: ir.Node, name: str, value: object) -> tuple[str, ...]:
    node.attributes[name] = convert_attribute(name, value)  # type: ignore[arg-type]
    return origin(node)


def _retype(node: ir.Node, op_type: str, **attributes: object) -> tuple[str, ...]:
    node.op_type = op_type
    node.attributes.clear()
    for name, value in attributes.items():
        _set(node, name, value)
    return origin(node)


# --- weights and constants ---------------------------------------------------------------------------------


@kind
def weight_element(model: ir.Model, rng: np.random.Generator) -> tuple[str, ...] | None:
    node = _pick(_nodes(model, "Conv", "Gemm", "MatMul", where=lambda n: bool(_floats(n, 16))), rng)
    if node is None:
        return None
    index = _floats(node, 16)[0]
    array = _array(node, index)
    array.reshape(-1)[rng.integers(array.size)] += 2 * np.abs(array).max()
    _set_input(node, index, array)
    return origin(node)


@kind
def weight_channels_swapped(model: ir.Model, rng: np.random.Generator) -> tuple[str, ...] | None:
    node = _pick(_nodes(model, "Conv", where=lambda n: bool(_floats(n, 16))), rng)
    if node is None:
        return None
    _set_input(node, 1, np.roll(_array(node, 1), 1, axis=0))
    return origin(node)


@kind
def weight_transposed(model: ir.Model, rng: np.random.Generator) -> tuple[str, ...] | None:
    def square(node: ir.Node) -> bool:
        shape = g.static_dims(node.inputs[1])
        return (
            g.is_constant(node.inputs[1])
            and shape is not None
            and len(shape) == 2
            and shape[0] == shape[1] > 1
        )

    node = _pick(_nodes(model, "MatMul", "Gemm", where=square), rng)
    if node is None:
        return None
    _set_input(node, 1, np.ascontiguousarray(_array(node, 1).T))
    return origin(node)


@kind
def kernel_flipped(model: ir.Model, rng: np.random.Generator) -> tuple[str, ...] | None:
    def wide(node: ir.Node) -> bool:
        return bool(_floats(node, 16)) and max(g.static_dims(node.inputs[1])[1:]) > 1  # type: ignore[index]

    node = _pick(_nodes(model, "Conv", where=wide), rng)
    if node is None:
        return None
    array = _array(node, 1)
    axes = (1, 2) if node.op_type.endswith("NHWC") else tuple(range(2, array.ndim))
    _set_input(node, 1, np.ascontiguousarray(np.flip(array, axes)))
    return origin(node)


@kind
def bias_dropped(model: ir.Model, rng: np.random.Generator) -> tuple[str, ...] | None:
    def biased(node: ir.Node) -> bool:
        return len(node.inputs) > 2 and 2 in _floats(node) and bool(np.abs(_array(node, 2)).max() > 1e-2)

    node = _pick(_nodes(model, "Conv", "Gemm", "MatMul", where=biased), rng)
    if node is None:
        return None
    _set_input(node, 2, np.zeros_like(_array(node, 2)))
    return origin(node)


@kind
def bias_shifted(model: ir.Model, rng: np.random.Generator) -> tuple[str, ...] | None:
    def biased(node: ir.Node) -> bool:
        return len(node.inputs) > 2 and 2 in _floats(node, 2) and bool(np.ptp(_array(node, 2)) > 1e-2)

    node = _pick(_nodes(model, "Conv", "Gemm", "MatMul", where=biased), rng)
    if node is None:
        return None
    _set_input(node, 2, np.roll(_array(node, 2), 1))
    return origin(node)


@kind
def constant_changed(model: ir.Model, rng: np.random.Generator) -> tuple[str, ...] | None:
    node = _pick(_nodes(model, "Mul", "Div", "Add", where=lambda n: bool(_floats(n))), rng)
    if node is None:
        return None
    index = _floats(node)[0]
    _set_input(node, index, (_array(node, index) * 1.01).astype(np.float32) + np.float32(0.01))
    return origin(node)


# --- attributes --------------------------------------------------------------------------------------------


@kind
def padding_moved(model: ir.Model, rng: np.random.Generator) -> tuple[str, ...] | None:
    """Begin and end of asymmetric padding exchanged, or one row moved from the end to the begin."""

    def padded(node: ir.Node) -> bool:
        pads = g.attribute(node, "pads")
        return bool(pads) and any(pads[len(pads) // 2 :])

    node = _pick(_nodes(model, "Conv", "MaxPool", "AveragePool", where=padded), rng)
    if node is None:
        return None
    pads = list(g.attribute(node, "pads"))
    half = len(pads) // 2
    axis = next(i for i in range(half) if pads[half + i])
    pads[axis] += 1
    pads[half + axis] -= 1
    return _set(node, "pads", pads)


@kind
def dilation_wrong(model: ir.Model, rng: np.random.Generator) -> tuple[str, ...] | None:
    """A dilated kernel, padded so that the shape stays."""

    def fits(node: ir.Node) -> bool:
        pads = g.attribute(node, "pads")
        kernel = g.attribute(node, "kernel_shape")
        return bool(pads) and kernel is not None and all(k == 3 for k in kernel) and all(
            d == 1 for d in g.attribute(node, "dilations", (1,))
        )  # fmt: skip

    node = _pick(_nodes(model, "Conv", where=fits), rng)
    if node is None:
        return None
    _set(node, "pads", [p + 1 for p in g.attribute(node, "pads")])
    return _set(node, "dilations", [2] * len(g.attribute(node, "kernel_shape")))


@kind
def stride_wrong(model: ir.Model, rng: np.random.Generator) -> tuple[str, ...] | None:
    def strided(node: ir.Node) -> bool:
        return any(s == 2 for s in g.attribute(node, "strides", ()))

    node = _pick(_nodes(model, "Conv", "MaxPool", "AveragePool", where=strided), rng)
    return None if node is None else _set(node, "strides", [1] * len(g.attribute(node, "strides")))


@kind
def axis_wrong(model: ir.Model, rng: np.random.Generator) -> tuple[str, ...] | None:
    def room(node: ir.Node) -> bool:
        shape = g.dims(node.inputs[0])
        return shape is not None and len(shape) > 1 and shape[-1] != 1 and shape[-2] != 1

    node = _pick(_nodes(model, "Softmax", where=room), rng)
    if node is None:
        return None
    rank = g.rank(node.inputs[0]) or 0
    axis = g.attribute(node, "axis", -1) % rank
    return _set(node, "axis", rank - 2 if axis == rank - 1 else rank - 1)


@kind
def permutation_wrong(model: ir.Model, rng: np.random.Generator) -> tuple[str, ...] | None:
    """Two axes of a Transpose exchanged."""
    node = _pick(_nodes(model, "Transpose", where=lambda n: len(g.attribute(n, "perm", ())) > 1), rng)
    if node is None:
        return None
    perm = list(g.attribute(node, "perm"))
    perm[-1], perm[-2] = perm[-2], perm[-1]
    return _set(node, "perm", perm)


@kind
def epsilon_wrong(model: ir.Model, rng: np.random.Generator) -> tuple[str, ...] | None:
    names = (
        "LayerNormalization",
        "BatchNormalization",
        "InstanceNormalization",
        "GroupNormalization",
        "RMSNormalization",
    )
    node = _pick(_nodes(model, *names), rng)
    return None if node is None else _set(node, "epsilon", 0.1)


# --- operators and operands --------------------------------------------------------------------------------


@kind
def operands_swapped(model: ir.Model, rng: np.random.Generator) -> tuple[str, ...] | None:
    node = _pick(_nodes(model, "Sub", "Div", "Pow", where=lambda n: n.inputs[0] is not n.inputs[1]), rng)
    if node is None:
        return None
    a, b = node.inputs[0], node.inputs[1]
    node.replace_input_with(0, b)
    node.replace_input_with(1, a)
    return origin(node)


@kind
def add_becomes_mul(model: ir.Model, rng: np.random.Generator) -> tuple[str, ...] | None:
    node = _pick(_nodes(model, "Add"), rng)
    return None if node is None else _retype(node, "Mul")


@kind
def mul_becomes_add(model: ir.Model, rng: np.random.Generator) -> tuple[str, ...] | None:
    node = _pick(_nodes(model, "Mul", where=lambda n: n.outputs[0].dtype == ir.DataType.FLOAT), rng)
    return None if node is None else _retype(node, "Add")


@kind
def activation_wrong(model: ir.Model, rng: np.random.Generator) -> tuple[str, ...] | None:
    wrong = {
        "Relu": "Elu",
        "Sigmoid": "HardSigmoid",
        "Tanh": "Softsign",
        "HardSwish": "Swish",
        "Swish": "HardSwish",
        "LeakyRelu": "Relu",
    }
    node = _pick(_nodes(model, *wrong), rng)
    return None if node is None else _retype(node, wrong[node.op_type])


@kind
def gelu_approximated(model: ir.Model, rng: np.random.Generator) -> tuple[str, ...] | None:
    node = _pick(_nodes(model, "Gelu"), rng)
    if node is None:
        return None
    return _set(node, "approximate", "none" if g.attribute(node, "approximate", "none") == "tanh" else "tanh")


@kind
def bound_wrong(model: ir.Model, rng: np.random.Generator) -> tuple[str, ...] | None:
    """The upper bound of a Clip, or a Relu that becomes one at 1."""
    node = _pick(_nodes(model, "Clip", where=lambda n: len(n.inputs) > 2 and n.inputs[2] is not None), rng)
    if node is None:
        return None
    _set_input(node, 2, np.asarray(g.scalar(node.inputs[2]) or 0, np.float32) * np.float32(0.5))
    return origin(node)


@kind
def pooling_wrong(model: ir.Model, rng: np.random.Generator) -> tuple[str, ...] | None:
    """The largest for the mean and the other way round."""
    node = _pick(_nodes(model, "AveragePool", "MaxPool", "ReduceMean", "ReduceMax", "GlobalAveragePool"), rng)
    if node is None:
        return None
    wrong = {
        "AveragePool": "MaxPool",
        "MaxPool": "AveragePool",
        "AveragePoolNHWC": "MaxPoolNHWC",
        "MaxPoolNHWC": "AveragePoolNHWC",
        "ReduceMean": "ReduceMax",
        "ReduceMax": "ReduceMean",
        "GlobalAveragePool": "GlobalMaxPool",
    }
    op_type = wrong[node.op_type]
    if node.domain == "tapeout" and not any(k[1] == op_type for k in model.functions):
        return None
    kept = {
        k: a
        for k, a in node.attributes.items()
        if k in ("kernel_shape", "strides", "pads", "keepdims", "ceil_mode")
    }
    node.op_type = op_type
    node.attributes.clear()
    node.attributes.update(kept)
    return origin(node)


@kind
def gather_off_by_one(model: ir.Model, rng: np.random.Generator) -> tuple[str, ...] | None:
    """The indices of a Gather, one further; the last wraps around."""

    def indexed(node: ir.Node) -> bool:
        return g.is_constant(node.inputs[1]) and node.outputs[0].dtype == ir.DataType.FLOAT

    nodes = _nodes(model, "Gather", where=lambda n: n.outputs[0].dtype == ir.DataType.FLOAT)
    node = _pick([n for n in nodes if indexed(n)] or [n for n in nodes if g.is_constant(n.inputs[0])], rng)
    if node is None:
        return None
    axis = int(g.attribute(node, "axis", 0))
    if g.is_constant(node.inputs[1]):
        size = int(g.dims(node.inputs[0])[axis])  # type: ignore[index,arg-type]
        indices = _array(node, 1)
        _set_input(node, 1, ((indices + 1) % size).astype(indices.dtype))
    else:
        _set_input(node, 0, np.roll(_array(node, 0), 1, axis))
    return origin(node)


@kind
def slice_bound_wrong(model: ir.Model, rng: np.random.Generator) -> tuple[str, ...] | None:
    """A Slice moved by one, back where there is room, else forward."""

    def fits(node: ir.Node) -> bool:
        return (
            node.outputs[0].dtype == ir.DataType.FLOAT
            and all(g.is_constant(v) for v in node.inputs[1:3])
            and bool((_array(node, 1) > 0).any() or (_array(node, 2) > 0).all())
        )

    node = _pick(_nodes(model, "Slice", where=fits), rng)
    if node is None:
        return None
    starts, ends = _array(node, 1), _array(node, 2)
    if (starts > 0).any():
        place = int(np.argmax(starts > 0))
        starts[place] -= 1
        ends[place] -= 1 if abs(int(ends[place])) < 1 << 30 else 0
    else:
        starts[0] += 1
        ends[0] += 1
    _set_input(node, 1, starts)
    _set_input(node, 2, ends)
    return origin(node)


@kind
def concat_reordered(model: ir.Model, rng: np.random.Generator) -> tuple[str, ...] | None:
    def two(node: ir.Node) -> bool:
        shapes = {g.dims(v) for v in node.inputs}
        return len(node.inputs) > 1 and len(shapes) == 1 and node.outputs[0].dtype == ir.DataType.FLOAT

    node = _pick(_nodes(model, "Concat", where=two), rng)
    if node is None:
        return None
    a, b = node.inputs[0], node.inputs[1]
    node.replace_input_with(0, b)
    node.replace_input_with(1, a)
    return origin(node)


@kind
def branches_swapped(model: ir.Model, rng: np.random.Generator) -> tuple[str, ...] | None:
    def fits(node: ir.Node) -> bool:
        return node.outputs[0].dtype == ir.DataType.FLOAT

    node = _pick(_nodes(model, "Where", where=fits), rng)
    if node is None:
        return None
    a, b = node.inputs[1], node.inputs[2]
    node.replace_input_with(1, b)
    node.replace_input_with(2, a)
    return origin(node)
