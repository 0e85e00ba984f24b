"""What the front end reads nearly right: set right in the graph that it is given, or in the model that it made.

a constant of shape [0] -> ConstantOfShape([0]), which it does not read as a number

TopK              -> TopK that keeps the order of equal elements, as ONNX has it
NonMaxSuppression -> the same past the next larger threshold: ONNX keeps boxes whose overlap equals it
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from tapeout.targets.openvino.moved import outside

UNBIASED = "~unbiased"  # what a convolution before its bias is called after its node
BIASED = frozenset({"Conv", "ConvTranspose"})


def readable(graph: onnx.GraphProto, ranks: Mapping[str, int] | None = None) -> None:
    """Rewrite `graph` and the graphs inside; `ranks` are those of values that are no constants in it."""
    shapes = dict(ranks or {}) | {t.name: len(t.dims) for t in graph.initializer}
    held = {t.name: t for t in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    made: dict[str, onnx.TensorProto] = {}
    for tensor in graph.initializer:
        if list(tensor.dims) == [0]:
            nodes.append(_nothing(tensor, made))
    for node in graph.node:
        bias = held.get(node.input[2]) if node.op_type in BIASED and len(node.input) > 2 else None
        if bias is not None and node.domain == "" and node.input[1] in shapes:
            nodes += _biased(node, bias, shapes[node.input[1]], made)
        else:
            nodes.append(node)
    if made:
        used = {name for node in nodes for name in node.input} | {v.name for v in graph.output}
        used |= {name for node in nodes for a in node.attribute for name in outside(a)}
        kept = [t for t in graph.initializer if t.name in used and list(t.dims) != [0]]
        del graph.initializer[:], graph.node[:]
        graph.initializer.extend([*kept, *made.values()])
        graph.node.extend(nodes)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                readable(attribute.g)


def _nothing(tensor: onnx.TensorProto, made: dict[str, onnx.TensorProto]) -> onnx.NodeProto:
    size = f"{tensor.name}~0"
    width = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    one = onnx.TensorProto(dims=[1], data_type=tensor.data_type, raw_data=bytes(width))
    made[size] = onnx.TensorProto(dims=[1], data_type=onnx.TensorProto.INT64, raw_data=bytes(8), name=size)
    return onnx.helper.make_node("ConstantOfShape", [size], [tensor.name], value=one)


def _biased(
    node: onnx.NodeProto, bias: onnx.TensorProto, rank: int, made: dict[str, onnx.TensorProto]
) -> list[onnx.NodeProto]:
    name = f"{bias.name}~{len(made)}"  # one for each reader: the plugin fuses no bias that others read too
    made[name] = onnx.TensorProto()
    made[name].CopyFrom(bias)
    made[name].name = name
    made[name].dims[:] = [1, *bias.dims, *[1] * (rank - 2)]
    plain, out = onnx.NodeProto(), f"{node.output[0]}{UNBIASED}"
    plain.CopyFrom(node)
    plain.name, plain.output[0] = f"{node.name}{UNBIASED}", out
    del plain.input[2:]
    return [plain, onnx.helper.make_node("Add", [out, name], list(node.output), name=node.name)]


def mend(made: Any) -> None:
    """Set right every operator of the model, those inside of loops and branches too."""
    for op in made.get_ordered_ops():
        kind = op.get_type_name()
        if kind in MENDS:
            MENDS[kind](op)
        for body in bodies(op):
            mend(body)


def bodies(op: Any) -> list[Any]:
    """The graphs inside a Loop, TensorIterator or If."""
    kind = op.get_type_name()
    if kind == "If":
        return [op.get_function(i) for i in range(2)]
    return [op.get_function()] if kind in ("Loop", "TensorIterator") else []


def _stable(op: Any) -> None:
    from openvino import opset15

    told = op.get_attributes()
    if told["sort"] == "none":
        return
    made = opset15.topk(
        op.input_value(0), op.input_value(1), told["axis"], told["mode"], told["sort"], told["index_element_type"],
        stable=True,
    )  # fmt: skip
    _replace(op, made)


def _inclusive(op: Any) -> None:
    from openvino import opset15

    if op.get_input_size() < 4:
        return
    given = op.input_value(3)
    up = opset15.multiply(given, opset15.constant(np.float32(1 + np.finfo(np.float32).eps)))
    tiny = opset15.constant(np.float32(np.finfo(np.float32).tiny))
    op.input(3).replace_source_output(opset15.maximum(up, tiny).output(0))


def _replace(op: Any, made: Any) -> None:
    made.set_friendly_name(op.get_friendly_name())
    for old, new in zip(op.outputs(), made.outputs(), strict=True):
        new.set_names(old.get_names())
        old.replace(new)


MENDS = {"TopK": _stable, "NonMaxSuppression": _inclusive}
