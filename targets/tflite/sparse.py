"""Weights with many zeros are stored as their other elements and where they lie (`--option sparse=true`).

    DENSIFY(packed W)             unpacks W in memory when the file is opened: fewer bytes in the file, no less
                                  memory or time
    FULLY_CONNECTED(x, packed W)  for float32 in blocks of 1x4 of which few are left: the kernel skips the others

Elements lie row by row along the last axis, alone or in runs of 4 or 16, whichever takes the fewest bytes. What
LiteRT computes wrongly or refuses on one of its resolvers stays dense: FULLY_CONNECTED in int8, and kernels that take
int8 weights beside real activations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from ai_edge_litert import schema_py_generated as s

from tapeout.sdk import Request, UsageError
from tapeout.targets.tflite import writer

Array = np.ndarray[Any, Any]

OPTION = "sparse"
RUNS = (1, 4, 16)
# Of FULLY_CONNECTED in runs of 4 at most this share is left where the kernel reads them packed: with more the dense
# kernel is faster.
FEW = 1 / 3
# Bytes that a packed weight takes beside its elements: a tensor, its record of sparsity, an operator.
TABLES = 400

T, Op = s.TensorType, s.BuiltinOperator
CONVOLUTIONS = (Op.CONV_2D, Op.DEPTHWISE_CONV_2D)
# The types of activations and weights that each operator computes rightly beside DENSIFY, on both resolvers.
TAKEN: Mapping[int, tuple[tuple[int, int], ...]] = {
    **dict.fromkeys(CONVOLUTIONS, ((T.FLOAT32, T.FLOAT32), (T.INT8, T.INT8))),
    Op.FULLY_CONNECTED: ((T.FLOAT32, T.FLOAT32),),
}


def asked(request: Request) -> bool:
    """Whether zeros are to be packed. Raises UsageError where that is not said with true or false, or where the
    device's runtime has no DENSIFY."""
    text = request.options.get(OPTION, "false")
    if text not in ("true", "false"):
        raise UsageError(f"option {OPTION}: '{text}', expected true or false")
    if text == "true" and request.device != "cpu":
        raise UsageError(
            f"option {OPTION} is offered for device cpu, not for {request.device}: its runtime does not unpack weights",
            hint=f"leave --option {OPTION} out",
        )
    return text == "true"


@dataclass(frozen=True)
class Encoding:
    """How a weight [..., K] is packed: runs of `run` elements of the last axis; `starts` [rows + 1] counts the runs
    before each row, `places` [n] are those of the runs in their rows."""

    run: int
    starts: Array
    places: Array
    shape: tuple[int, ...]
    item: int  # bytes of an element

    @property
    def bytes(self) -> int:
        return self.places.size * self.run * self.item + self.places.nbytes + self.starts.nbytes

    @property
    def share(self) -> float:
        """Of all runs those that are kept."""
        return self.places.size * self.run / max(math.prod(self.shape), 1)

    def elements(self, array: Array) -> Array:
        """What is kept of `array`, in order."""
        rows = array.reshape(-1, self.shape[-1] // self.run, self.run)
        starts = self.starts.astype(np.int64)
        return rows[np.repeat(np.arange(len(rows)), starts[1:] - starts[:-1]), self.places]

    def record(self) -> Any:
        """The SparsityParameters of the schema."""
        *leading, _ = self.shape
        made = s.SparsityParametersT()
        rank = len(self.shape)
        made.traversalOrder = list(range(rank + (self.run > 1)))
        made.blockMap = [rank - 1] if self.run > 1 else None
        along = s.DimensionMetadataT()
        along.format = s.DimensionType.SPARSE_CSR
        along.arraySegmentsType, along.arraySegments = _vector(self.starts)
        along.arrayIndicesType, along.arrayIndices = _vector(self.places)
        made.dimMetadata = [*map(_dense, leading), along, *([_dense(self.run)] if self.run > 1 else [])]
        return made


def encoding(array: Array) -> Encoding:
    """The encoding of `array` [..., K] that takes the fewest bytes."""
    found = []
    for run in RUNS:
        if array.shape[-1] % run == 0:
            kept = array.reshape(-1, array.shape[-1] // run, run).any(-1)
            starts = np.concatenate([[0], np.cumsum(kept.sum(1))])
            places = np.nonzero(kept)[1]
            found.append(Encoding(run, _small(starts), _small(places), array.shape, array.itemsize))
    return min(found, key=lambda e: e.bytes)


def pack(file: writer.File) -> None:
    """Pack the weights of `file` for which that saves bytes."""
    for graph in file.subgraphs:
        _Packing(file, graph).run()


class _Packing:
    """Packs the weights of one subgraph."""

    def __init__(self, file: writer.File, graph: writer.Subgraph) -> None:
        self.file, self.graph = file, graph
        self.reads: dict[int, list[tuple[writer.Operator, int]]] = {}
        for operator in graph.operators:
            for position, index in enumerate(operator.inputs):
                self.reads.setdefault(index, []).append((operator, position))

    def run(self) -> None:
        unpack: list[writer.Operator] = []
        for index in range(len(self.graph.tensors)):
            tensor = self.graph.tensors[index]
            data = self.file.buffers[tensor.buffer]
            if tensor.buffer == 0 or isinstance(data, bytes) or len(tensor.shape) < 2:
                continue
            if index in self.graph.outputs or not self._taken(index):
                continue
            found = encoding(data.numpy())
            if found.bytes + TABLES >= data.nbytes:
                continue
            old = tensor.buffer
            held = writer.Tensor(
                f"{tensor.name}~packed", tensor.shape, tensor.type, quantization=tensor.quantization
            )
            if self._skips(index, found):
                held = tensor
                for operator, _ in self.reads[index]:
                    operator.version = max(operator.version, 8)
            else:
                tensor.buffer = 0
                self.graph.tensors.append(held)
                options = s.DensifyOptionsT()
                unpack.append(writer.Operator(Op.DENSIFY, (len(self.graph.tensors) - 1,), (index,), options))
            held.sparsity, held.buffer = found.record(), len(self.file.buffers)
            self.file.buffers.append(_elements(data, found))
            if not any(t.buffer == old for g in self.file.subgraphs for t in g.tensors):
                self.file.buffers[old] = b""
        self.graph.operators[:0] = unpack

    def _taken(self, index: int) -> bool:
        """Whether everything that reads a constant is a kernel that takes it behind DENSIFY."""
        return bool(self.reads.get(index)) and all(
            self._widens(operator, index) or self._is_weight(operator, position, index)
            for operator, position in self.reads[index]
        )

    def _widens(self, operator: writer.Operator, index: int) -> bool:
        stored = self.graph.tensors[index].type in (T.FLOAT16, T.INT8)
        return operator.code == Op.DEQUANTIZE and stored and self._taken(operator.outputs[0])

    def _is_weight(self, operator: writer.Operator, position: int, index: int) -> bool:
        tensors = self.graph.tensors
        types = (tensors[operator.inputs[0]].type, tensors[index].type)
        return position == 1 and types in TAKEN.get(operator.code, ())

    def _skips(self, index: int, found: Encoding) -> bool:
        """Whether kernels read the packed weight itself, faster than a dense one."""
        plain = all(operator.code == Op.FULLY_CONNECTED for operator, _ in self.reads[index])
        return plain and self.graph.tensors[index].type == T.FLOAT32 and found.run == 4 and found.share <= FEW


def _elements(data: ir.TensorProtocol, found: Encoding) -> ir.TensorProtocol:
    """The kept elements, computed when they are written."""
    return ir.LazyTensor(
        lambda: ir.Tensor(np.ascontiguousarray(found.elements(data.numpy())), dtype=data.dtype),
        dtype=data.dtype,
        shape=ir.Shape([found.places.size, found.run]),
    )


def _small(numbers: Sequence[int] | Array) -> Array:
    """In the smallest type of those that the format has."""
    array = np.asarray(numbers, np.int64)
    most = int(array.max(initial=0))
    return array.astype(np.uint8 if most < 1 << 8 else np.uint16 if most < 1 << 16 else np.int32)


def _vector(numbers: Array) -> tuple[int, Any]:
    name = {1: "Uint8Vector", 2: "Uint16Vector", 4: "Int32Vector"}[numbers.itemsize]
    made = getattr(s, f"{name}T")()
    made.values = numbers
    return getattr(s.SparseIndexVector, name), made


def _dense(size: int) -> Any:
    made = s.DimensionMetadataT()
    made.format, made.denseSize = s.DimensionType.DENSE, size
    return made
