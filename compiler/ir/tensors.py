"""Tensors of a model file as tensors of the IR: views of the mapped file where they are large."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from tapeout.compiler.errors import InvalidModelError, ResourceError
from tapeout.compiler.ir.budget import Budget
from tapeout.compiler.ir.external import ExternalFiles
from tapeout.compiler.ir.wire import DOUBLE_DATA, FLOAT_DATA, References

# The field of TensorProto that holds the elements of a type where raw_data does not; for others int32_data.
_TYPED: dict[str, str] = {
    "FLOAT": "float_data",
    "COMPLEX64": "float_data",
    "DOUBLE": "double_data",
    "COMPLEX128": "double_data",
    "INT64": "int64_data",
    "UINT64": "uint64_data",
    "UINT32": "uint64_data",
}
_MAPPED = {FLOAT_DATA: ("FLOAT", "COMPLEX64"), DOUBLE_DATA: ("DOUBLE", "COMPLEX128")}


class TensorReader:
    """Turns TensorProtos into tensors; counts the bytes of all of them against the budget.

    `data`: the mapped model file, None for a model in memory; `references`: what its shell leaves out.
    """

    def __init__(
        self,
        budget: Budget,
        files: ExternalFiles,
        data: memoryview | None = None,
        references: References | None = None,
    ) -> None:
        self.budget = budget
        self.files = files
        self.data = data
        self.references = references
        self.bytes = 0

    def tensor(self, proto: onnx.TensorProto, what: str) -> ir.TensorProtocol:
        """The tensor in `proto`; `what` names it in messages. Raises InvalidModelError, ResourceError."""
        try:
            dtype = ir.DataType(proto.data_type)
        except ValueError:
            dtype = ir.DataType.UNDEFINED
        if dtype == ir.DataType.UNDEFINED:
            raise InvalidModelError(f"{what} has the data type {proto.data_type}, which is none of ONNX")
        dims = tuple(proto.dims)
        count = self.budget.count(dims, what)
        if dtype == ir.DataType.STRING:
            if len(proto.string_data) != count:
                raise InvalidModelError(
                    f"{what} has {len(proto.string_data)} strings, its shape {list(dims)} needs {count}"
                )
            return ir.StringTensor(list(proto.string_data), shape=ir.Shape(dims), name=proto.name)
        needed = (count * dtype.bitwidth + 7) // 8
        self.bytes += needed
        if self.bytes > self.budget.bytes:
            raise ResourceError(
                f"with {what} the tensors of the model take more than {self.budget.bytes} bytes",
                hint="if the model is meant to be that large, raise Budget.bytes",
            )
        content = self._content(proto, dtype, needed, what)
        if content is not None:
            if len(content) != needed:
                raise InvalidModelError(
                    f"{what} has {len(content)} bytes, its shape {list(dims)} of {dtype} needs {needed}"
                )
            return from_bytes(content, dtype, dims, proto.name)
        return self._typed(proto, dtype, dims, count, what)

    def _content(
        self, proto: onnx.TensorProto, dtype: ir.DataType, needed: int, what: str
    ) -> bytes | memoryview | None:
        reference = None if self.references is None else self.references.of(proto)
        if reference is not None:
            assert self.data is not None
            expected = _MAPPED.get(reference.field)
            if expected is not None and dtype.name not in expected:
                raise InvalidModelError(f"{what} of {dtype} holds its elements as {' or '.join(expected)}")
            return self.data[reference.offset : reference.offset + reference.length]
        if proto.data_location == onnx.TensorProto.EXTERNAL:
            entries = {e.key: e.value for e in proto.external_data}
            offset, length = (_number(entries.get(k), what, k) for k in ("offset", "length"))
            return self.files.view(entries.get("location", ""), offset or 0, length, needed, what)
        return proto.raw_data if proto.HasField("raw_data") else None

    def _typed(
        self, proto: onnx.TensorProto, dtype: ir.DataType, dims: tuple[int, ...], count: int, what: str
    ) -> ir.TensorProtocol:
        field = _TYPED.get(dtype.name, "int32_data")
        stored = len(getattr(proto, field))
        per = 2 if dtype.name.startswith("COMPLEX") else 1
        packed = 8 // dtype.bitwidth if dtype.bitwidth in (2, 4) else 1
        if stored != -(-count * per // packed):
            raise InvalidModelError(
                f"{what} has {stored} elements in {field}, its shape {list(dims)} needs {count}"
            )
        array = ir.serde.TensorProtoTensor(proto).numpy()
        return ir.Tensor(array, dtype=dtype, name=proto.name)

    def sparse(self, proto: onnx.SparseTensorProto, what: str) -> ir.TensorProtocol:
        """The dense form of a sparse tensor (values [n], indices [n] or [n, rank], dims [rank])."""
        dims = tuple(proto.dims)
        count = self.budget.count(dims, what)
        values = self.tensor(proto.values, f"{what} (values)").numpy()
        if values.ndim != 1 or values.dtype == object:
            raise InvalidModelError(
                f"{what}: its values have the shape {list(values.shape)}, expected one dimension"
            )
        if count * values.itemsize > self.budget.dense_bytes:
            raise ResourceError(
                f"{what} of shape {list(dims)} takes over {self.budget.dense_bytes} bytes when made dense"
            )
        if len(values) and not proto.HasField("indices"):
            raise InvalidModelError(f"{what} has no indices")
        indices = (
            self.tensor(proto.indices, f"{what} (indices)").numpy() if len(values) else np.zeros(0, np.int64)
        )
        if indices.dtype != np.int64:
            raise InvalidModelError(f"{what}: its indices are {indices.dtype}, expected int64")
        if indices.ndim == 2 and indices.shape == (len(values), len(dims)):
            if (indices < 0).any() or (indices >= np.array(dims)).any():
                raise InvalidModelError(f"{what}: an index lies outside the shape {list(dims)}")
            flat = (
                np.ravel_multi_index(tuple(indices.T), dims) if len(dims) else np.zeros(len(values), np.int64)
            )
        elif indices.ndim == 1 and len(indices) == len(values):
            flat = indices
        else:
            raise InvalidModelError(
                f"{what}: indices of shape {list(indices.shape)} for {len(values)} values"
            )
        if len(flat) and (flat.min() < 0 or flat.max() >= count):
            raise InvalidModelError(f"{what}: an index lies outside the {count} elements")
        dense = np.zeros(count, dtype=values.dtype)
        dense[flat] = values
        return ir.Tensor(
            dense.reshape(dims), dtype=ir.DataType(proto.values.data_type), name=proto.values.name
        )


def from_bytes(
    content: bytes | memoryview, dtype: ir.DataType, dims: tuple[int, ...], name: str | None
) -> ir.TensorProtocol:
    """A tensor that views `content`, elements little-endian and packed as ONNX stores them."""
    if dtype.bitwidth in (2, 4, 6):
        return ir.PackedTensor(np.frombuffer(content, np.uint8), dtype, shape=dims, name=name)
    array: np.ndarray[Any, Any] = np.frombuffer(content, dtype=dtype.numpy()).reshape(dims)
    return ir.Tensor(array, dtype=dtype, name=name)


def _number(text: str | None, what: str, key: str) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise InvalidModelError(
            f"{what}: the {key} of its external data is '{text[:40]}', expected a number of bytes"
        )
    return int(text)
