"""Writes the IR as an ONNX file, one large tensor at a time; it loads as it was, origins and all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir

from tapeout.compiler.errors import OutputError, ResourceError
from tapeout.compiler.ir.external import release
from tapeout.compiler.ir.nodes import MARK
from tapeout.compiler.ir.wire import varint

# Tensors from this size on are written one at a time; past SPLIT bytes they go into a file beside the model.
STREAMED = 1 << 16
SPLIT = 3 << 29
# What one protobuf message may hold.
LARGEST = (1 << 31) - 1
ALIGNMENT = 4096
# After a tensor of this size the mapped files leave memory.
RELEASE = 1 << 24


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The whole model as protobuf, weights included."""
    return _mark(ir.serde.serialize_model(model))


def to_proto_without(model: ir.Model, names: Collection[str]) -> onnx.ModelProto:
    """The model as protobuf but for the initializers `names` of its main graph, whose bytes are not read: what is
    left is for another reader, and not marked as ours."""
    left = [(v, v.const_value) for n, v in model.graph.initializers.items() if n in names and v.const_value]
    with _stubs(left, ""):
        proto = ir.serde.serialize_model(model)
    kept = [t for t in proto.graph.initializer if t.name not in names]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    return proto


def to_bytes(model: ir.Model) -> bytes:
    """The whole model as the bytes of an .onnx file. Raises ResourceError past 2 GB: use `save`."""
    size = sum(t.nbytes for _, t in _large(model))
    if size > LARGEST:
        raise ResourceError(f"the model has {size} bytes of weights, one message holds at most {LARGEST}")
    content: bytes = to_proto(model).SerializeToString()
    return content


def save(model: ir.Model, path: str | Path) -> list[Path]:
    """Write `model` to `path`, with its weights beside it in `PATH.data` where they take more than 1.5 GB.

    Each file appears whole or not at all. Returns the paths written. Raises OutputError.
    """
    path = Path(path)
    large = _large(model)
    split = sum(t.nbytes for _, t in large) > SPLIT
    beside = path.with_name(path.name + ".data")
    try:
        if split:
            with _stubs(large, beside.name):
                content = to_proto(model).SerializeToString()
            with _staged(beside) as file:
                _write_data(large, file)
        with _staged(path) as file:
            if split:
                file.write(content)
            else:
                _write_model(model, large, file)
    except OSError as error:
        raise OutputError(f"'{path}' cannot be written: {error.strerror or error}") from error
    return [path, beside] if split else [path]


Large = list[tuple[ir.Value, ir.TensorProtocol]]


def _large(model: ir.Model) -> Large:
    """The initializers of the main graph that are worth being written alone."""
    return [
        (value, tensor)
        for value in model.graph.initializers.values()
        if (tensor := value.const_value) is not None
        and tensor.dtype != ir.DataType.STRING
        and tensor.nbytes >= STREAMED
    ]


def _mark(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Say that the file is one of ours; `load` then keeps its functions and origins."""
    entry = proto.metadata_props.add()
    entry.key, entry.value = MARK, "1"
    return proto


@contextmanager
def _stubs(large: Large, location: str) -> Iterator[None]:
    """While it lasts, the large tensors are references to the data file."""
    offset = 0
    try:
        for value, tensor in large:
            value.const_value = ir.ExternalTensor(
                location,
                offset,
                tensor.nbytes,
                tensor.dtype,
                shape=_shape(tensor),
                name=value.name or "",
                base_dir="",
            )
            offset += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        yield
    finally:
        for value, tensor in large:
            value.const_value = tensor


def _shape(tensor: ir.TensorProtocol) -> ir.Shape:
    return ir.Shape([int(d) for d in tensor.shape])  # type: ignore[arg-type]


def _write_data(large: Large, file: BinaryIO) -> None:
    for _, tensor in large:
        file.write(tensor.tobytes())
        file.write(bytes(-file.tell() % ALIGNMENT))
        if tensor.nbytes >= RELEASE:
            release()


def _write_model(model: ir.Model, large: Large, file: BinaryIO) -> None:
    """One message: the model without its graph, then the graph: all small parts, then the large tensors."""
    with _stubs(large, ""):
        proto = to_proto(model)
    names = {value.name for value, _ in large}
    small = [t for t in proto.graph.initializer if t.name not in names]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(small)
    graph: bytes = proto.graph.SerializeToString()
    proto.ClearField("graph")
    rest: bytes = proto.SerializeToString()
    heads = [_head(value.name or "", tensor) for value, tensor in large]
    size = len(graph) + sum(map(len, heads)) + sum(tensor.nbytes for _, tensor in large)
    file.write(rest + b"\x3a" + varint(size) + graph)
    for head, (_, tensor) in zip(heads, large, strict=True):
        file.write(head)
        file.write(tensor.tobytes())


def _head(name: str, tensor: ir.TensorProtocol) -> bytes:
    """What stands before the bytes of a tensor in a graph: its tag, its length, all fields but its data."""
    shape = [int(d) for d in tensor.shape]  # type: ignore[arg-type]
    fields: bytes = onnx.TensorProto(dims=shape, data_type=tensor.dtype.value, name=name).SerializeToString()
    fields += b"\x4a" + varint(tensor.nbytes)
    return b"\x2a" + varint(len(fields) + tensor.nbytes) + fields


@contextmanager
def _staged(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends well, and is gone when it does not."""
    stage = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(stage, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(stage, path)
    finally:
        stage.unlink(missing_ok=True)
