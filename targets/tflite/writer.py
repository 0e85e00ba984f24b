"""Writes a TFLite file as a stream: first the tables, then every weight from where it lies, one at a time.

Layout: `[tables][pad][uint32 length][bytes][pad][uint32 length][bytes]...`, weights at multiples of 16 bytes.
A FlatBuffer refers to a vector by an unsigned distance forward: the tables are built with a placeholder for
each `Buffer.data` and patched with the distance to where its weight will be. A file that would not end below
2 GiB that way refers to weights by `Buffer.offset` and `Buffer.size` instead, as lying behind the FlatBuffer.
Peak memory is the tables and one weight.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import flatbuffers
import numpy as np
import onnx_ir as ir
from ai_edge_litert import schema_py_generated as s

from tapeout.sdk import release

ALIGNMENT = 16
RELEASE = 1 << 26  # after so many bytes the mapped files that weights came from leave memory
LIMIT = 2**31 - 1 - 2**20  # a FlatBuffer ends below 2 GiB

Data = bytes | ir.TensorProtocol


@dataclass
class Tensor:
    """A tensor of a subgraph. `shape` holds 1 where `signature` holds -1; `buffer` 0: it is computed."""

    name: str
    shape: tuple[int, ...]
    type: int
    buffer: int = 0
    signature: tuple[int, ...] | None = None
    is_variable: bool = False
    has_rank: bool = True
    quantization: Any = None
    sparsity: Any = None  # how the elements in the buffer lie, where zeros are left out


@dataclass
class Operator:
    """An operator of a subgraph: its builtin code, tensor indices (-1: absent) and options object."""

    code: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Any = None
    version: int = 1


@dataclass
class Subgraph:
    name: str
    tensors: list[Tensor] = field(default_factory=list)
    operators: list[Operator] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)


@dataclass
class Signature:
    """Names of inputs and outputs for the user, with their tensor indices in the subgraph."""

    key: str
    inputs: Sequence[tuple[str, int]]
    outputs: Sequence[tuple[str, int]]
    subgraph: int = 0


@dataclass
class File:
    """What a TFLite file holds. `buffers[0]` is the empty buffer."""

    description: str
    subgraphs: list[Subgraph] = field(default_factory=list)
    buffers: list[Data] = field(default_factory=lambda: [b""])
    signatures: list[Signature] = field(default_factory=list)
    metadata: list[tuple[str, int]] = field(default_factory=list)


def size_of(data: Data) -> int:
    """Bytes that `data` takes in the file."""
    return len(data) if isinstance(data, bytes) else int(data.nbytes)


def bytes_of(data: Data) -> bytes | memoryview:
    """The bytes of `data`, little endian, row major; where possible a view and no copy."""
    if isinstance(data, bytes):
        return data
    if data.dtype.bitwidth < 8:
        return data.tobytes()
    array = np.ascontiguousarray(data.numpy())
    return array.reshape(-1).view(np.uint8).data


def write(file: File, sink: BinaryIO, limit: int = LIMIT) -> None:
    """Write `file` to `sink`, which need not be seekable. The same file gives the same bytes."""
    sizes = [size_of(data) for data in file.buffers]
    tables, slots = _tables(file, sizes, external=False)
    places, end = _places(len(tables), sizes)
    external = end > limit
    if external:
        tables, slots = _tables(file, sizes, external=True)
        places, end = _places(len(tables), sizes)
    for index, slot in slots.items():
        if external:
            struct.pack_into("<Q", tables, slot, places[index])
        else:
            struct.pack_into("<I", tables, slot, places[index] - 4 - slot)
    release()
    sink.write(tables)
    position, held = len(tables), 0
    for index, place in places.items():
        sink.write(bytes(place - 4 - position))
        sink.write(struct.pack("<I", min(sizes[index], 2**32 - 1)))
        content = bytes_of(file.buffers[index])
        assert len(content) == sizes[index], (
            f"buffer {index} has {len(content)} bytes, declared {sizes[index]}"
        )
        sink.write(content)
        position = place + sizes[index]
        held += read_for(file.buffers[index])
        if held >= RELEASE:
            held = 0
            release()


def read_for(data: Data) -> int:
    """Bytes that are read of the model to make `data`, about: codes come from numbers of 32 bits."""
    return len(data) if isinstance(data, bytes) else max(int(data.nbytes), 4 * int(data.size))


def _places(start: int, sizes: Sequence[int]) -> tuple[dict[int, int], int]:
    """Where the bytes of each buffer begin, and where the file ends."""
    places: dict[int, int] = {}
    end = start
    for index, size in enumerate(sizes):
        if size:
            places[index] = -(-(end + 4) // ALIGNMENT) * ALIGNMENT
            end = places[index] + size
    return places, end


def _tables(file: File, sizes: Sequence[int], external: bool) -> tuple[bytearray, dict[int, int]]:
    """The FlatBuffer without weights, and for each buffer with content the place of the slot that refers to
    it: a uint32 distance, or with `external` the uint64 place in the file."""
    b = flatbuffers.Builder(1 << 16)
    from_end: dict[int, int] = {}
    buffers = []
    for index, size in enumerate(sizes):
        b.StartObject(3)
        if size and external:
            # Prepended without the slot's default check: the place is patched later.
            b.PrependUint64Slot(2, size, 0)
            b.PrependUint64Slot(1, 2**63, 0)
            from_end[index] = b.Offset()
        elif size:
            b.PrependUint32Slot(0, 2**31, 0)
            from_end[index] = b.Offset()
        buffers.append(b.EndObject())
    codes: dict[tuple[int, int], int] = {}
    subgraphs = [_subgraph(b, subgraph, codes) for subgraph in file.subgraphs]
    signatures = [_signature(b, signature) for signature in file.signatures]
    metadata = [_metadata(b, name, index) for name, index in file.metadata]
    operator_codes = [_operator_code(b, code, version) for code, version in codes]
    description = b.CreateString(file.description)
    vectors = {
        s.ModelAddOperatorCodes: _offsets(b, operator_codes),
        s.ModelAddSubgraphs: _offsets(b, subgraphs),
        s.ModelAddBuffers: _offsets(b, buffers),
        s.ModelAddMetadata: _offsets(b, metadata),
        s.ModelAddSignatureDefs: _offsets(b, signatures),
    }
    s.ModelStart(b)
    s.ModelAddVersion(b, 3)
    s.ModelAddDescription(b, description)
    for add, vector in vectors.items():
        add(b, vector)
    # A builder grows towards the front: alignment to 16 makes the tables' length a multiple of 16.
    b.minalign = max(b.minalign, ALIGNMENT)
    b.Finish(s.ModelEnd(b), b"TFL3")
    tables = bytearray(b.Output())
    return tables, {index: len(tables) - offset for index, offset in from_end.items()}


def _subgraph(b: flatbuffers.Builder, subgraph: Subgraph, codes: dict[tuple[int, int], int]) -> int:
    tensors = [_tensor(b, tensor) for tensor in subgraph.tensors]
    operators = []
    for operator in subgraph.operators:
        index = codes.setdefault((operator.code, operator.version), len(codes))
        operators.append(_operator(b, operator, index))
    tensor_vector, operator_vector = _offsets(b, tensors), _offsets(b, operators)
    inputs, outputs = _ints(b, subgraph.inputs), _ints(b, subgraph.outputs)
    name = b.CreateString(subgraph.name)
    s.SubGraphStart(b)
    s.SubGraphAddTensors(b, tensor_vector)
    s.SubGraphAddInputs(b, inputs)
    s.SubGraphAddOutputs(b, outputs)
    s.SubGraphAddOperators(b, operator_vector)
    s.SubGraphAddName(b, name)
    return int(s.SubGraphEnd(b))


def _tensor(b: flatbuffers.Builder, tensor: Tensor) -> int:
    shape = _ints(b, tensor.shape)
    signature = None if tensor.signature is None else _ints(b, tensor.signature)
    quantization = None if tensor.quantization is None else tensor.quantization.Pack(b)
    sparsity = None if tensor.sparsity is None else tensor.sparsity.Pack(b)
    name = b.CreateString(tensor.name)
    s.TensorStart(b)
    s.TensorAddShape(b, shape)
    s.TensorAddType(b, tensor.type)
    s.TensorAddBuffer(b, tensor.buffer)
    s.TensorAddName(b, name)
    if quantization is not None:
        s.TensorAddQuantization(b, quantization)
    if tensor.is_variable:
        s.TensorAddIsVariable(b, True)
    if signature is not None:
        s.TensorAddShapeSignature(b, signature)
    if sparsity is not None:
        s.TensorAddSparsity(b, sparsity)
    s.TensorAddHasRank(b, tensor.has_rank)
    return int(s.TensorEnd(b))


def _operator(b: flatbuffers.Builder, operator: Operator, code_index: int) -> int:
    inputs, outputs = _ints(b, operator.inputs), _ints(b, operator.outputs)
    options = operator.options
    packed = kind = second = None
    if options is not None:
        packed = options.Pack(b)
        name = type(options).__name__.removesuffix("T")
        kind = getattr(s.BuiltinOptions, name, None)
        second = None if kind is not None else getattr(s.BuiltinOptions2, name)
    s.OperatorStart(b)
    s.OperatorAddOpcodeIndex(b, code_index)
    s.OperatorAddInputs(b, inputs)
    s.OperatorAddOutputs(b, outputs)
    if kind is not None:
        s.OperatorAddBuiltinOptionsType(b, kind)
        s.OperatorAddBuiltinOptions(b, packed)
    if second is not None:
        s.OperatorAddBuiltinOptions2Type(b, second)
        s.OperatorAddBuiltinOptions2(b, packed)
    return int(s.OperatorEnd(b))


def _operator_code(b: flatbuffers.Builder, code: int, version: int) -> int:
    s.OperatorCodeStart(b)
    s.OperatorCodeAddDeprecatedBuiltinCode(b, min(code, 127))
    s.OperatorCodeAddVersion(b, version)
    s.OperatorCodeAddBuiltinCode(b, code)
    return int(s.OperatorCodeEnd(b))


def _signature(b: flatbuffers.Builder, signature: Signature) -> int:
    def names(pairs: Sequence[tuple[str, int]]) -> int:
        maps = []
        for name, index in pairs:
            text = b.CreateString(name)
            s.TensorMapStart(b)
            s.TensorMapAddName(b, text)
            s.TensorMapAddTensorIndex(b, index)
            maps.append(int(s.TensorMapEnd(b)))
        return _offsets(b, maps)

    inputs, outputs, key = names(signature.inputs), names(signature.outputs), b.CreateString(signature.key)
    s.SignatureDefStart(b)
    s.SignatureDefAddInputs(b, inputs)
    s.SignatureDefAddOutputs(b, outputs)
    s.SignatureDefAddSignatureKey(b, key)
    s.SignatureDefAddSubgraphIndex(b, signature.subgraph)
    return int(s.SignatureDefEnd(b))


def _metadata(b: flatbuffers.Builder, name: str, buffer: int) -> int:
    text = b.CreateString(name)
    s.MetadataStart(b)
    s.MetadataAddName(b, text)
    s.MetadataAddBuffer(b, buffer)
    return int(s.MetadataEnd(b))


def _ints(b: flatbuffers.Builder, values: Iterable[int]) -> int:
    return int(b.CreateNumpyVector(np.fromiter(values, np.int32)))


def _offsets(b: flatbuffers.Builder, offsets: Sequence[int]) -> int:
    b.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        b.PrependUOffsetTRelative(offset)
    return int(b.EndVector())
