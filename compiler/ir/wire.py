"""Reads the protobuf wire format of an .onnx file without its large tensors, which stay in the mapped file.

A model file is a tree of length-delimited messages. Only messages that can hold a large tensor are entered;
the payload of such a tensor is left out of the *shell*, and `References` remembers where in the file it lies.
Every length is checked against its enclosing message before it is used.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from tapeout.compiler.errors import InvalidModelError, ResourceError
from tapeout.compiler.ir.budget import Budget

# Payloads (and messages) up to this size are parsed as they are.
INLINE = 4096

MODEL, GRAPH, FUNCTION, NODE, ATTRIBUTE, SPARSE, TENSOR, DROP = range(8)
# Message -> {field number: message}, for the fields through which a tensor is reached.
FIELDS: dict[int, dict[int, int]] = {
    MODEL: {7: GRAPH, 25: FUNCTION, 20: DROP},  # training graphs are no part of inference
    GRAPH: {1: NODE, 5: TENSOR, 15: SPARSE},
    FUNCTION: {7: NODE, 11: ATTRIBUTE},
    NODE: {5: ATTRIBUTE},
    ATTRIBUTE: {5: TENSOR, 6: GRAPH, 10: TENSOR, 11: GRAPH, 22: SPARSE, 23: SPARSE},
    SPARSE: {1: TENSOR, 2: TENSOR},
}
# Fields of TensorProto whose bytes are the tensor's elements, little-endian.
FLOAT_DATA, RAW_DATA, DOUBLE_DATA = 4, 9, 10
# More fields than this in one file are no model.
MAX_FIELDS = 16_000_000


@dataclass(frozen=True)
class Reference:
    """Where the elements of a tensor lie in the file, and which field of TensorProto held them."""

    offset: int
    length: int
    field: int


@dataclass
class References:
    """The payloads left out of a shell. `key` marks their tensors; it is drawn anew for each file, so that
    no file can name a payload by itself."""

    key: str = field(default_factory=lambda: f"tapeout.map.{secrets.token_hex(8)}")
    found: list[Reference] = field(default_factory=list)

    def of(self, tensor: onnx.TensorProto) -> Reference | None:
        """Where the payload of `tensor` lies, or None where the tensor holds it itself."""
        for entry in tensor.external_data:
            if entry.key == self.key:
                return self.found[int(entry.value)]
        return None


def shell(data: memoryview, budget: Budget) -> tuple[onnx.ModelProto, References]:
    """Parse a model file without its large tensors.

    `data`: the bytes of the file (a mapped file is read only where needed).
    Raises InvalidModelError where the bytes are no model, ResourceError past the budget.
    """
    references = References()
    scan = _Scanner(data, budget, references)
    content = scan.message(0, len(data), MODEL, 0)
    size = len(data) if content is None else len(content)
    if size > budget.shell_bytes:
        raise ResourceError(
            f"the model without its large tensors takes {size} bytes, allowed are {budget.shell_bytes}"
        )
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(bytes(data) if content is None else content)
    except (DecodeError, UnicodeDecodeError, ValueError) as error:
        raise InvalidModelError(f"the file is no ONNX model: {error}", hint=_HINT) from error
    return proto, references


_HINT = "the file may be truncated or damaged: compare its size or checksum with the publisher's"


class _Scanner:
    def __init__(self, data: memoryview, budget: Budget, references: References) -> None:
        self.data = data
        self.budget = budget
        self.references = references
        self.fields = 0

    def message(self, start: int, end: int, kind: int, depth: int) -> bytes | None:
        """The message at [start, end) without large payloads, or None where there are none in it."""
        if kind == TENSOR:
            return self.tensor(start, end)
        if kind == GRAPH:
            depth += 1
            if depth > self.budget.depth:
                raise ResourceError(
                    f"graphs lie more than {self.budget.depth} deep within each other",
                    hint="if the model is meant to be that deep, raise Budget.depth",
                )
        inner = FIELDS[kind]
        parts: list[bytes | memoryview] = []
        copied = position = start
        while position < end:
            begin = position
            number, wire, value, position = self.field(position, end)
            child = inner.get(number)
            if child is None or wire != 2:
                continue
            if child == DROP:
                new: bytes | None = b""
            elif value <= INLINE:
                continue
            else:
                new = self.message(position - value, position, child, depth)
                if new is None:
                    continue
            parts.append(self.data[copied:begin])
            if child != DROP:
                parts.append(_length_delimited(number, new or b""))
            copied = position
        if not parts:
            return None
        parts.append(self.data[copied:end])
        if sum(map(len, parts)) > self.budget.shell_bytes:
            raise ResourceError(
                f"the model without its large tensors takes more than {self.budget.shell_bytes} bytes"
            )
        return b"".join(parts)

    def tensor(self, start: int, end: int) -> bytes | None:
        parts: list[bytes | memoryview] = []
        copied = position = start
        while position < end:
            begin = position
            number, wire, value, position = self.field(position, end)
            if number not in (RAW_DATA, FLOAT_DATA, DOUBLE_DATA) or wire != 2 or value <= INLINE:
                continue
            if parts:
                raise InvalidModelError(f"a tensor at byte {start} holds its data twice", hint=_HINT)
            index = len(self.references.found)
            self.references.found.append(Reference(position - value, value, number))
            parts.append(self.data[copied:begin])
            entry = _length_delimited(1, self.references.key.encode()) + _length_delimited(
                2, str(index).encode()
            )
            parts.append(_length_delimited(13, entry))
            copied = position
        if not parts:
            return None
        # Marked as stored elsewhere, so that shape inference does not look for the elements.
        parts.extend((self.data[copied:end], b"\x70\x01"))
        return b"".join(parts)

    def field(self, position: int, end: int) -> tuple[int, int, int, int]:
        """(number, wire type, value or length, position after the field) of the field at `position`."""
        self.fields += 1
        if self.fields > MAX_FIELDS:
            raise ResourceError(f"the model has more than {MAX_FIELDS} fields")
        start = position
        tag, position = self.varint(position, end)
        number, wire = tag >> 3, tag & 7
        value = 0
        if wire == 0:
            value, position = self.varint(position, end)
        elif wire == 2:
            value, position = self.varint(position, end)
            position += value
        elif wire in (1, 5):
            position += 8 if wire == 1 else 4
        else:
            raise InvalidModelError(
                f"the file is no ONNX model: wire type {wire} at byte {start}", hint=_HINT
            )
        if position > end or number == 0:
            raise InvalidModelError(
                f"the file is no ONNX model: field {number} at byte {start} ends at {position}, "
                f"its message at {end}",
                hint=_HINT,
            )
        return number, wire, value, position

    def varint(self, position: int, end: int) -> tuple[int, int]:
        result = shift = 0
        data = self.data
        start = position
        while position < end and shift < 70:
            byte = data[position]
            position += 1
            result |= (byte & 0x7F) << shift
            if byte < 0x80:
                return result & 0xFFFFFFFFFFFFFFFF, position
            shift += 7
        raise InvalidModelError(
            f"the file is no ONNX model: the number at byte {start} does not end", hint=_HINT
        )


def _length_delimited(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def varint(value: int) -> bytes:
    """`value` (not negative) in protobuf's base-128 form."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
