"""What the front end reads nearly right: set right in the graph that it is given, or in the model that it made.

a constant of shape [0] -> ConstantOfShape([0]), which it does not read as a number

TopK              -> TopK that keeps the order of equal elements, as ONNX has it
NonMaxSuppression -> the same past the next larger threshold: ONNX keeps boxes whose overlap equals it
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx


def readable(graph: onnx.GraphProto) -> None:
    """Write every constant of shape [0] as an operator, in `graph` and the graphs inside."""
    kept, made = [], []
    for tensor in graph.initializer:
        if list(tensor.dims) != [0]:
            kept.append(tensor)
            continue
        one = onnx.TensorProto(
            dims=[1],
            data_type=tensor.data_type,
            raw_data=bytes(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize),
        )
        size = onnx.TensorProto(
            dims=[1], data_type=onnx.TensorProto.INT64, raw_data=bytes(8), name=f"{tensor.name}~0"
        )
        kept.append(size)
        made.append(onnx.helper.make_node("ConstantOfShape", [size.name], [tensor.name], value=one))
    if made:
        nodes = [*made, *graph.node]
        del graph.initializer[:], graph.node[:]
        graph.initializer.extend(kept)
        graph.node.extend(nodes)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                readable(attribute.g)


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
