"""Mutations of a TFLite file before it is written: every place in it that a faulty lowering could get wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from ai_edge_litert import schema_py_generated as s

from tapeout.targets.tflite import writer
from tapeout.targets.tflite.builder import TYPES
from tests.faults.mutants import Site

CODES = {v: k for k, v in vars(s.BuiltinOperator).items() if isinstance(v, int)}
DTYPES = {v: k for k, v in TYPES.items()}
FLAGS = frozenset(
    {"adjX", "adjY", "alignCorners", "halfPixelCenters", "keepNumDims", "keepDims", "exclusive", "reverse"}
    | {"approximate", "idxOutType"}
)
TYPED = frozenset({"outType", "outputType", "outDataType", "idxOutType"})
AXES = frozenset({"axis", "seqDim", "batchDim"})
# Where an input says along which axes, or in which order, an operator works.
AXIS_INPUTS = {
    "TRANSPOSE": 1, "MEAN": 1, "SUM": 1, "REDUCE_MAX": 1, "REDUCE_MIN": 1, "REDUCE_PROD": 1, "REDUCE_ANY": 1,
    "REDUCE_ALL": 1, "SPLIT": 0, "SPLIT_V": 2, "CUMSUM": 1, "ARG_MAX": 1, "ARG_MIN": 1, "REVERSE_V2": 1,
    "EXPAND_DIMS": 1,
}  # fmt: skip
WEIGHTS = {
    "CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "CONV_3D": 1, "FULLY_CONNECTED": 1, "BATCH_MATMUL": 1,
    "TRANSPOSE_CONV": 1, "GATHER": 0, "EMBEDDING_LOOKUP": 1, "PRELU": 1,
}  # fmt: skip
BIASES = {"CONV_2D": 2, "DEPTHWISE_CONV_2D": 2, "CONV_3D": 2, "FULLY_CONNECTED": 2, "TRANSPOSE_CONV": 3}
SIDES = {"PAD": 1, "PADV2": 1, "MIRROR_PAD": 1}
# Operators that round, or cut, another way.
ROUNDINGS = {
    "ROUND": "FLOOR",
    "FLOOR": "ROUND",
    "CEIL": "ROUND",
    "FLOOR_MOD": "FLOOR_DIV",
    "FLOOR_DIV": "DIV",
}

Edit = Callable[[], None]
Found = tuple[Site, Edit]


def sites(file: writer.File) -> Iterator[Found]:
    """Every mutation that changes `file`, with what makes it."""
    for graph in file.subgraphs:
        for op in graph.operators:
            code = CODES[op.code]
            yield from _options(code, op)
            yield from _constants(code, op, graph, file)
            yield from _quantization(code, op, graph)
            if code in ROUNDINGS:
                other = getattr(s.BuiltinOperator, ROUNDINGS[code])
                yield Site("rounding mode", code, "operator", ROUNDINGS[code]), _set(op, "code", other)
            if len(op.outputs) > 1:
                turned = (op.outputs[1], op.outputs[0], *op.outputs[2:])
                yield Site("output order", code, "operator"), _set(op, "outputs", turned)
    yield from _signatures(file)
    yield from _states(file)


def mutate(file: writer.File, site: Site) -> bool:
    """Make the mutation wherever `file` has a place for it; whether it has one."""
    found = [edit for at, edit in sites(file) if at == site]
    for edit in found:
        edit()
    return bool(found)


def _set(holder: Any, name: str, value: Any) -> Edit:
    return lambda: setattr(holder, name, value)


def _options(code: str, op: writer.Operator) -> Iterator[Found]:
    if op.options is None:
        return
    plain = type(op.options)()
    for name, value in vars(op.options).items():
        default = getattr(plain, name)
        options = op.options
        if name == "padding":
            yield Site("padding side swapped", code, name), _set(options, name, 1 - value)
        elif name in TYPED:
            narrow = {s.TensorType.INT64: s.TensorType.INT32, s.TensorType.INT32: s.TensorType.INT64}
            if value in narrow:
                yield Site("dtype narrowed", code, name), _set(options, name, narrow[value])
        elif name in FLAGS or isinstance(value, bool):
            yield Site("layout flag", code, name), _set(options, name, not value)
        elif name in AXES:
            yield Site("axis permuted", code, name), _set(options, name, 0 if value else 1)
        elif isinstance(value, int | float) and value != default:
            yield Site("attribute ignored", code, name), _set(options, name, _neutral(name, default))


def _neutral(name: str, default: Any) -> Any:
    """What a lowering that ignores the attribute leaves: 1 for strides and the like, else the default."""
    ones = ("stride", "dilation", "depthMultiplier", "filter", "blockSize", "beta")
    return 1 if name.startswith(ones) and default == 0 else default


def _constants(code: str, op: writer.Operator, graph: writer.Subgraph, file: writer.File) -> Iterator[Found]:
    for place, index in enumerate(op.inputs):
        array = _array(graph, file, index)
        if array is None or not array.size:
            continue

        def put(made: Any, index: int = index) -> Edit:
            return lambda: _replace(graph, file, index, made)

        detail = f"input {place}"
        if AXIS_INPUTS.get(code) == place:
            rank = max((len(graph.tensors[i].shape) for i in op.inputs if i >= 0), default=1)
            made = np.roll(array, 1) if code == "TRANSPOSE" else (array + 1) % max(rank, 1)
            if not np.array_equal(made, array):
                yield Site("axis permuted", code, detail), put(made.astype(array.dtype))
        if SIDES.get(code) == place and not np.array_equal(array, array[:, ::-1]):
            yield Site("padding side swapped", code, detail), put(array[:, ::-1])
        if WEIGHTS.get(code) == place and array.ndim > 1:
            made = np.swapaxes(array, -1, -2).reshape(array.shape)
            if not np.array_equal(made, array):
                yield Site("weight transposed", code, detail), put(made)
        if BIASES.get(code) == place:
            if array.any():
                yield Site("bias lost", code, detail), put(np.zeros_like(array))
            if array.dtype.kind == "i" and array.any():
                yield Site("rounding mode", code, "bias", "toward zero"), put(array - np.sign(array))
        if array.dtype == np.float32:
            made = array.astype(np.float16).astype(np.float32)
            if not np.array_equal(made, array, equal_nan=True):
                yield Site("dtype narrowed", code, detail, "float16"), put(made)
        if array.dtype == np.int64:
            made = array.astype(np.int32).astype(np.int64)
            if not np.array_equal(made, array):
                yield Site("dtype narrowed", code, detail, "int32"), put(made)


def _quantization(code: str, op: writer.Operator, graph: writer.Subgraph) -> Iterator[Found]:
    for kind, indices in (("input", op.inputs), ("output", op.outputs)):
        for place, index in enumerate(indices):
            q = graph.tensors[index].quantization if index >= 0 else None
            if q is None or q.scale is None or not len(q.scale):
                continue
            tensor = graph.tensors[index]
            if len(q.scale) > 1:
                made = copy.copy(q)
                made.scale = np.array(q.scale, np.float32)
                made.scale[len(made.scale) // 2] *= 1.25
                yield (
                    Site("scale of one channel", code, f"{kind} {place}"),
                    _set(tensor, "quantization", made),
                )
            elif tensor.type in (s.TensorType.INT8, s.TensorType.UINT8, s.TensorType.INT16):
                made = copy.copy(q)
                made.zeroPoint = np.array(q.zeroPoint, np.int64) + 1
                yield Site("zero point shifted", code, f"{kind} {place}"), _set(tensor, "quantization", made)


def _signatures(file: writer.File) -> Iterator[Found]:
    for signature in file.signatures:
        for kind in ("inputs", "outputs"):
            ports = list(getattr(signature, kind))
            if len(ports) > 1:
                (a, i), (b, j), *rest = ports
                turned = [(a, j), (b, i), *rest]
                yield Site("output order", "signature", kind), _set(signature, kind, turned)


def _states(file: writer.File) -> Iterator[Found]:
    for graph in file.subgraphs:
        assigns = [op for op in graph.operators if CODES[op.code] == "ASSIGN_VARIABLE"]
        once = [op for op in graph.operators if CODES[op.code] == "CALL_ONCE"]
        if assigns:
            what = "zero_states" if graph.name == "zero_states" else "main"
            kept = [op for op in graph.operators if op not in assigns]
            yield Site("state not reset", what, "assignment", "dropped"), _set(graph, "operators", kept)
            for op in assigns:
                array = _array(graph, file, op.inputs[1])
                if array is not None:
                    made = np.ones_like(array)
                    edit = lambda g=graph, i=op.inputs[1], m=made: _replace(g, file, i, m)  # noqa: E731
                    yield Site("state not reset", what, "start", "ones"), edit
        if once:
            kept = [op for op in graph.operators if op not in once]
            yield Site("state not reset", "main", "CALL_ONCE", "dropped"), _set(graph, "operators", kept)
    resets = [x for x in file.signatures if x.key == "reset"]
    if resets:
        kept_signatures = [x for x in file.signatures if x.key != "reset"]
        yield (
            Site("state not reset", "signature", "reset", "dropped"),
            _set(file, "signatures", kept_signatures),
        )


def _array(graph: writer.Subgraph, file: writer.File, index: int) -> np.ndarray[Any, Any] | None:
    """The data of a constant tensor, None for a computed one."""
    if index < 0 or graph.tensors[index].buffer == 0:
        return None
    tensor = graph.tensors[index]
    data = file.buffers[tensor.buffer]
    dtype = DTYPES.get(tensor.type)
    if dtype is None or dtype.bitwidth < 8:
        return None
    array = np.frombuffer(data, dtype.numpy()) if isinstance(data, bytes) else data.numpy()
    shape = tensor.shape if array.size == np.prod(tensor.shape) else array.shape
    return array.reshape(shape)


def _replace(graph: writer.Subgraph, file: writer.File, index: int, made: np.ndarray[Any, Any]) -> None:
    """Give a constant other data; others that share its buffer keep theirs."""
    dtype = DTYPES[graph.tensors[index].type]
    file.buffers.append(ir.Tensor(np.ascontiguousarray(made).astype(dtype.numpy()), dtype=dtype))
    graph.tensors[index].buffer = len(file.buffers) - 1
