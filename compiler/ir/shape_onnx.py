"""Types and shapes by ONNX's own inference, with symbols bound to numbers and what comes out read back."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir.dimensions import Dim, Expr, bind, symbols
from tapeout.compiler.ir.functions import OPSET
from tapeout.compiler.ir.shape_context import Dims, Typed
from tapeout.compiler.ir.shape_values import KEY, known_value

# Constants of up to this many elements are given to ONNX's inference as data (shapes, axes, pads, repeats).
DATA_LIMIT = 1024

# Sizes that symbols are bound to, one row per run: primes, so that sums and products do not fall together,
# and numbers with many divisors, so that what rounds is not taken for what does not.
SIZES = (
    (101, 211, 307, 401, 503, 601, 701, 809),
    (128, 242, 348, 444, 558, 654, 752, 858),
    (163, 277, 389, 487, 599, 683, 797, 883),
    (840, 1680, 2520, 5040, 7560, 9240, 10080, 12600),
)


def by_onnx(node: ir.Node, shapes: Sequence[Dims | None]) -> Sequence[Typed]:
    """One (dtype, dims) per output of `node`, whose inputs have these shapes; (None, None) where nothing is
    known."""
    terms: dict[Dim, None] = {}
    for dims in shapes:
        terms.update((d, None) for d in dims or () if isinstance(d, Expr))
    for value in node.inputs:
        array = known_value(value)
        if array is not None and value is not None and value.meta.get(KEY) is not None:
            terms.update((x, None) for x in array.reshape(-1).tolist() if isinstance(x, Expr))
    names = sorted({name for term in terms for name in symbols(term)})
    if not names:
        return _onnx_types(node, shapes, {})
    runs = [_onnx_types(node, shapes, dict(zip(names, itertools.cycle(row), strict=False))) for row in SIZES]
    bindings = [dict(zip(names, itertools.cycle(row), strict=False)) for row in SIZES]
    known = [(term, [bind(term, b) for b in bindings]) for term in terms]
    return [_fitted(each, known) for each in zip(*runs, strict=True)]


def _fitted(each: Sequence[Typed], known: Sequence[tuple[Dim, list[int]]]) -> Typed:
    """One output under every binding -> its shape as expressions of the dimensions that went in."""
    dtype, first = each[0]
    if first is None or any(dims is None or len(dims) != len(first) for _, dims in each):
        return dtype, None
    return dtype, tuple(
        _fit(list(sizes), known) for sizes in zip(*(dims or () for _, dims in each), strict=True)
    )


def _fit(sizes: list[Any], known: Sequence[tuple[Dim, list[int]]]) -> Dim | None:
    if any(s is None for s in sizes):
        return None
    if len(set(sizes)) == 1:
        return int(sizes[0])
    for term, values in known:
        if values == sizes:
            return term
    for term, values in known:
        run, rise = values[1] - values[0], sizes[1] - sizes[0]
        if run and rise % run == 0:
            slope = rise // run
            offset = sizes[0] - slope * values[0]
            if all(slope * v + offset == s for v, s in zip(values, sizes, strict=True)):
                fitted: Dim = term * slope + offset
                return fitted
    return None


def _onnx_types(node: ir.Node, shapes: Sequence[Dims | None], sizes: Mapping[str, int]) -> Sequence[Typed]:
    """The outputs by onnx.shape_inference, for these sizes of the symbols."""
    import onnx
    from onnx import checker, shape_inference

    try:
        schema = onnx.defs.get_schema(node.op_type, OPSET, node.domain)
    except onnx.defs.SchemaError:
        return ()
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for value, dims in zip(node.inputs, shapes, strict=True):
        if value is None:
            continue
        if value.type is None:
            return [(None, None)] * len(node.outputs)
        assert value.name
        proto = onnx.TypeProto()
        ir.serde.serialize_type_into(proto, value.type)
        if dims is not None:
            bound = [d if d is None or isinstance(d, int) else bind(d, sizes) for d in dims]
            ir.serde.serialize_shape_into(proto, ir.Shape(bound))
        types[value.name] = proto
        array = known_value(value)
        if array is not None and value.dtype is not None and value.const_value is None:
            plain = np.array([bind(x, sizes) for x in array.reshape(-1).tolist()], dtype=value.dtype.numpy())
            data[value.name] = ir.serde.serialize_tensor(
                ir.tensor(plain.reshape(array.shape), dtype=value.dtype)
            )
        elif (
            value.const_value is not None
            and value.producer() is None
            and value.const_value.size <= DATA_LIMIT
        ):
            data[value.name] = ir.serde.serialize_tensor(value.const_value)
    try:
        found = shape_inference.infer_node_outputs(
            schema, ir.serde.serialize_node(node), types, data,
            opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=13,
        )  # fmt: skip
    except (shape_inference.InferenceError, checker.ValidationError, RuntimeError, TypeError, ValueError):
        return [(None, None)] * len(node.outputs)
    result: list[Typed] = []
    for value in node.outputs:
        answer = found.get(value.name or "")
        if answer is None or answer.WhichOneof("value") is None:
            result.append((None, None))
            continue
        kind = ir.serde.deserialize_type_proto_for_type(answer)
        if not isinstance(kind, ir.TensorType):
            value.type = kind
            result.append((None, None))
            continue
        shape = ir.serde.deserialize_type_proto_for_shape(answer)
        dims = None if shape is None else tuple(d if isinstance(d, int) else None for d in shape)
        result.append((kind.dtype, dims))
    return result
