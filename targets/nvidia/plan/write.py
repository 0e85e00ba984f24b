"""Writes a plan: tables first, then the weights, one at a time."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO

from tapeout.targets.nvidia.plan import tables as t
from tapeout.targets.nvidia.plan.expressions import Code
from tapeout.targets.nvidia.plan.parts import (
    DTYPES,
    NOWHERE,
    VERSION,
    Argument,
    ArgumentKind,
    Kernel,
    Launch,
    Plan,
    Tensor,
    Value,
    Weight,
    padded,
)

Bytes = Callable[[Weight], Any]


def write(plan: Plan, sink: BinaryIO, weights: Bytes | None) -> None:
    """Write `plan` to `sink`; `weights` gives the bytes of each weight (a buffer), None writes a stripped plan.

    Raises ValueError where the bytes of a weight are not those that the plan names.
    """
    sink.write(head(plan, stripped=weights is None))
    if weights is None:
        return
    for weight in plan.weights:
        content = memoryview(weights(weight)).cast("B")
        if len(content) != weight.size or hashlib.sha256(content).digest() != weight.sha256:
            raise ValueError(f"weight '{weight.name}': its bytes are not those that the plan was made of")
        sink.write(content)
        sink.write(bytes(padded(weight.size) - weight.size))


def head(plan: Plan, *, stripped: bool) -> bytes:
    """Everything before the weights: header, directory and tables."""
    sections = _Sections(plan).content()
    names = [*t.RECORDS, t.WEIGHTS]
    place = t.HEADER.size + t.SECTION.size * len(names)
    directory, body = b"", b""
    for name in t.RECORDS:
        gap = padded(place, t.ALIGNED) - place
        content = sections[name]
        directory += t.SECTION.pack(name, t.RECORDS[name].size, place + gap, len(content))
        body += bytes(gap) + content
        place += gap + len(content)
    gap = padded(place, t.PAGE) - place
    place += gap
    size = 0 if stripped else plan.weight_bytes
    directory += t.SECTION.pack(t.WEIGHTS, 1, place, size)
    rest = t.HEADER.pack(
        t.MAGIC, bytes(32), VERSION, len(names), place + size, t.STRIPPED if stripped else 0, 0
    )
    content = rest[t.DIGESTED :] + directory + body + bytes(gap)
    return t.MAGIC + hashlib.sha256(content).digest() + content


class _Sections:
    """The tables of a plan, as they fill: strings and expressions stand there once."""

    def __init__(self, plan: Plan) -> None:
        self.parts: dict[bytes, list[bytes]] = {name: [] for name in t.RECORDS}
        self.counts = dict.fromkeys(t.RECORDS, 0)
        self.strings: dict[str, tuple[int, int]] = {}
        self.codes: dict[Code, int] = {}
        for key in sorted(plan.meta):
            self.add(b"META", *self.string(key), *self.string(plan.meta[key]))
        for name in plan.symbols:
            self.add(b"SYMS", *self.string(name))
        for profile in plan.profiles:
            self.add(b"PROF", profile.arena)
            for size in profile.sizes:
                self.add(b"SIZE", *size)
            for offset in profile.offsets:
                self.add(b"ARNA", NOWHERE if offset < 0 else offset)
        for weight in plan.weights:
            self.weight(weight)
        for tensor in plan.tensors:
            self.tensor(tensor)
        for kernel in plan.kernels:
            self.kernel(kernel)
        for tactic in plan.tactics:
            self.add(b"TACT", *self.string(tactic.name), tactic.microseconds, *self.string(tactic.origin))
        for launch in plan.launches:
            self.launch(launch)

    def content(self) -> dict[bytes, bytes]:
        return {name: b"".join(parts) for name, parts in self.parts.items()}

    def add(self, section: bytes, *fields: Any) -> int:
        """Append a record; its number."""
        self.parts[section].append(t.RECORDS[section].pack(*fields))
        self.counts[section] += 1
        return self.counts[section] - 1

    def many(self, section: bytes, records: Iterable[Sequence[Any]]) -> tuple[int, int]:
        """Append records; their range."""
        first = self.counts[section]
        for record in records:
            self.add(section, *record)
        return first, self.counts[section] - first

    def raw(self, section: bytes, content: bytes) -> tuple[int, int]:
        """Append bytes to a section of bytes; their range."""
        first = self.counts[section]
        self.parts[section].append(content)
        self.counts[section] += len(content)
        return first, len(content)

    def string(self, text: str) -> tuple[int, int]:
        if text not in self.strings:
            self.strings[text] = self.raw(b"STRS", text.encode())
        return self.strings[text]

    def expression(self, code: Code) -> int:
        if code not in self.codes:
            self.codes[code] = self.add(b"EXPR", *self.many(b"CODE", ((word,) for word in code)))
        return self.codes[code]

    def weight(self, weight: Weight) -> None:
        shape = self.many(b"NUMS", ((d,) for d in weight.shape))
        name = self.string(weight.name)
        self.add(
            b"WGHT", *name, DTYPES[weight.dtype][0], 0, *shape, weight.offset, weight.size, weight.sha256
        )

    def tensor(self, tensor: Tensor) -> None:
        expressions = [self.expression(code) for code in tensor.shape]
        shape = self.many(b"LIST", ((e,) for e in expressions))
        weight = t.NONE if tensor.weight < 0 else tensor.weight
        name = self.string(tensor.name)
        self.add(b"TENS", *name, DTYPES[tensor.dtype][0], int(tensor.kind), *shape, tensor.storage, weight)

    def kernel(self, kernel: Kernel) -> None:
        packed = zlib.compress(kernel.image, 9)
        offset, size = self.raw(b"IMGS", packed)
        parameters = self.many(b"PARM", kernel.parameters)
        self.add(
            b"KERN", kernel.group, kernel.arch, *self.string(kernel.symbol), kernel.shared, kernel.warps,
            kernel.registers, kernel.spills, *parameters, 1, 0, offset, size, len(kernel.image),
        )  # fmt: skip

    def launch(self, launch: Launch) -> None:
        keys = sorted(launch.attributes)
        values = [self.values(launch.attributes[key]) for key in keys]
        strings = [self.string(key) for key in keys]
        attributes = self.many(
            b"ATTR", ((*s, kind, 0, *where) for s, (kind, where) in zip(strings, values, strict=True))
        )
        grid = [self.expression(code) for code in launch.grid]
        arguments = self.many(b"ARGS", [self.argument(a) for a in launch.arguments])
        reads = self.many(b"LIST", ((i,) for i in launch.reads))
        writes = self.many(b"LIST", ((i,) for i in launch.writes))
        pairs = [n for s in launch.sources for n in self.string(s)]
        sources = self.many(b"LIST", ((n,) for n in pairs))
        numbers = [t.NONE if n < 0 else n for n in (launch.kernel, launch.tactic)]
        self.add(
            b"LAUN", *self.string(launch.operation), *attributes, *numbers, *grid, 0,
            *arguments, *reads, *writes, *sources,
        )  # fmt: skip

    def argument(self, argument: Argument) -> tuple[int, int, float]:
        match argument.kind:
            case ArgumentKind.TENSOR:
                return int(argument.kind), argument.tensor, 0.0
            case ArgumentKind.FLOAT32:
                return int(argument.kind), 0, argument.number
        return int(argument.kind), self.expression(argument.code), 0.0

    def values(self, value: Value) -> tuple[int, tuple[int, int]]:
        """The type of an attribute, 1 to 3, or 4 to 6 for a list of them, and its values in NUMS."""
        many = isinstance(value, tuple)
        items: tuple[Any, ...] = value if isinstance(value, tuple) else (value,)
        if all(isinstance(i, str) for i in items) and items:
            kind, words = 3, [self.string(i) for i in items]
            numbers = [first | size << 32 for first, size in words]
        elif any(isinstance(i, float) for i in items):
            kind, numbers = 2, [struct.unpack("<q", struct.pack("<d", i))[0] for i in items]
        else:
            kind, numbers = 1, [int(i) for i in items]
        return kind + 3 * many, self.many(b"NUMS", ((n,) for n in numbers))
