"""Reads a plan, and refuses whatever is damaged before anything of it is used."""

from __future__ import annotations

import hashlib
import mmap
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tapeout.sdk import InvalidModelError, file_errors
from tapeout.targets.nvidia.plan import tables as t
from tapeout.targets.nvidia.plan.check import check
from tapeout.targets.nvidia.plan.expressions import Code
from tapeout.targets.nvidia.plan.parts import (
    DTYPES,
    NOWHERE,
    VERSION,
    Argument,
    ArgumentKind,
    Kernel,
    Kind,
    Launch,
    Plan,
    Profile,
    Tactic,
    Tensor,
    Value,
    Weight,
)

NAMES = {number: name for name, (number, _) in DTYPES.items()}
LARGEST_IMAGE = 64 << 20


class PlanFile:
    """A plan's file, mapped. `weights` are read where they lie; `stripped` says that there are none."""

    def __init__(self, path: Path) -> None:
        """Raises OutputError where the file cannot be read, InvalidModelError where it is no whole plan."""
        self.path = path
        with file_errors("read", path), path.open("rb") as file:
            empty = not file.seek(0, 2)
            self._map = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.plan, self._weights, self.stripped = read(memoryview(self._map), path.name)

    def weight(self, weight: Weight) -> memoryview:
        """The bytes of a weight. Raises InvalidModelError where they are not those that the plan names."""
        if self.stripped:
            raise InvalidModelError(
                f"'{self.path.name}' is stripped: it has no bytes of '{weight.name}'",
                hint="give it its weights: python -m tapeout.targets.nvidia refit PLAN WEIGHTS -o OUT",
            )
        content = self._weights[weight.offset : weight.offset + weight.size]
        if hashlib.sha256(content).digest() != weight.sha256:
            raise InvalidModelError(
                f"'{self.path.name}': weight '{weight.name}' is damaged, its sha256 is another one than the plan's",
                hint="copy the file again, or export the model again",
            )
        return content

    def verify_weights(self) -> None:
        """Hold every weight against its sha256."""
        for weight in self.plan.weights if not self.stripped else ():
            self.weight(weight)


def read(content: memoryview, name: str) -> tuple[Plan, memoryview, bool]:
    """The plan in `content`, its weights, and whether these are left out. Raises InvalidModelError."""
    try:
        reader = _Reader(content, name)
        plan = reader.plan()
    except (struct.error, UnicodeDecodeError, zlib.error, IndexError, KeyError, ValueError) as error:
        raise InvalidModelError(
            f"'{name}': its tables contradict each other: {type(error).__name__}: {error}"
        ) from error
    check(plan, name)
    weights = content[reader.weights : len(content)]
    if not reader.stripped and plan.weight_bytes != len(weights):
        raise InvalidModelError(f"'{name}' has {len(weights)} bytes of weights, expected {plan.weight_bytes}")
    return plan, weights, reader.stripped


class _Reader:
    """The tables of a plan: header and digest are looked at first."""

    def __init__(self, content: memoryview, name: str) -> None:
        self.content = content
        if len(content) < t.HEADER.size or bytes(content[:8]) != t.MAGIC:
            raise InvalidModelError(
                f"'{name}' is no plan: it does not begin with {t.MAGIC.decode()} and a header of {t.HEADER.size} bytes"
            )
        _, digest, version, count, size, flags, _ = t.HEADER.unpack_from(content)
        if version != VERSION:
            raise InvalidModelError(
                f"'{name}' is a plan of version {version}, this reads version {VERSION}",
                hint="export the model again with this version of tapeout",
            )
        if size != len(content):
            raise InvalidModelError(
                f"'{name}' has {len(content):,} bytes, its header says {size:,}: it was cut short or run on",
                hint="copy the file again, or export the model again",
            )
        names = [*t.RECORDS, t.WEIGHTS]
        if count != len(names) or flags & ~t.STRIPPED:
            raise InvalidModelError(
                f"'{name}': {count} sections and flags {flags:#x} are not those of version 1"
            )
        entries = [t.SECTION.unpack_from(content, t.HEADER.size + i * t.SECTION.size) for i in range(count)]
        self.weights, self.stripped = entries[-1][2], bool(flags & t.STRIPPED)
        if not t.HEADER.size <= self.weights <= len(content) or self.weights % t.PAGE:
            raise InvalidModelError(f"'{name}': its weights begin at {self.weights}, outside of the file")
        if hashlib.sha256(content[t.DIGESTED : self.weights]).digest() != digest:
            raise InvalidModelError(
                f"'{name}' is damaged: the sha256 of its tables is another one than its header's",
                hint="copy the file again, or export the model again",
            )
        self.records: dict[bytes, list[tuple[Any, ...]]] = {}
        self.bytes: dict[bytes, memoryview] = {}
        for known, (found, record, offset, length) in zip(names, entries, strict=True):
            if (
                found != known
                or offset + length > len(content)
                or record != _record(known)
                or length % record
            ):
                raise InvalidModelError(f"'{name}': section {known.decode()} is not where version 1 has it")
            if record == 1:
                self.bytes[known] = content[offset : offset + length]
            else:
                self.records[known] = list(t.RECORDS[known].iter_unpack(content[offset : offset + length]))

    def plan(self) -> Plan:
        symbols = tuple(self.string(*r) for r in self.records[b"SYMS"])
        return Plan(
            symbols=symbols,
            profiles=tuple(self.profiles(len(symbols), len(self.records[b"TENS"]))),
            weights=tuple(self.weight(*r) for r in self.records[b"WGHT"]),
            tensors=tuple(self.tensor(*r) for r in self.records[b"TENS"]),
            launches=tuple(self.launch(*r) for r in self.records[b"LAUN"]),
            kernels=tuple(self.kernel(*r) for r in self.records[b"KERN"]),
            tactics=tuple(
                Tactic(self.string(*r[:2]), r[2], self.string(*r[3:])) for r in self.records[b"TACT"]
            ),
            meta={self.string(*r[:2]): self.string(*r[2:]) for r in self.records[b"META"]},
        )

    def range(self, section: bytes, first: int, count: int) -> list[tuple[Any, ...]]:
        """Records of a section. Raises IndexError where they are not there."""
        table = self.records[section]
        if first + count > len(table):
            raise IndexError(f"{section.decode()} has {len(table)} records, {first}+{count} are asked for")
        return table[first : first + count]

    def string(self, first: int, count: int) -> str:
        table = self.bytes[b"STRS"]
        if first + count > len(table):
            raise IndexError(f"STRS has {len(table)} bytes, {first}+{count} are asked for")
        return bytes(table[first : first + count]).decode()

    def list(self, first: int, count: int) -> tuple[int, ...]:
        return tuple(n for (n,) in self.range(b"LIST", first, count))

    def code(self, number: int) -> Code:
        return tuple(w for (w,) in self.range(b"CODE", *self.records[b"EXPR"][number]))

    def profiles(self, symbols: int, tensors: int) -> Iterator[Profile]:
        for index, (arena,) in enumerate(self.records[b"PROF"]):
            sizes = self.range(b"SIZE", index * symbols, symbols)
            offsets = self.range(b"ARNA", index * tensors, tensors)
            yield Profile(
                tuple((a, b, c) for a, b, c in sizes),
                arena,
                tuple(-1 if o == NOWHERE else o for (o,) in offsets),
            )

    def weight(self, *r: Any) -> Weight:
        shape = tuple(n for (n,) in self.range(b"NUMS", *r[4:6]))
        return Weight(self.string(*r[:2]), NAMES[r[2]], shape, *r[6:])

    def tensor(self, *r: Any) -> Tensor:
        shape = tuple(self.code(i) for i in self.list(*r[4:6]))
        return Tensor(self.string(*r[:2]), NAMES[r[2]], Kind(r[3]), shape, r[6], _number(r[7]))

    def kernel(self, *r: Any) -> Kernel:
        (
            group,
            arch,
            first,
            size,
            shared,
            warps,
            registers,
            spills,
            p,
            n,
            packing,
            _,
            offset,
            packed,
            whole,
        ) = r
        table = self.bytes[b"IMGS"]
        if packing != 1 or offset + packed > len(table) or whole > LARGEST_IMAGE:
            raise IndexError(f"image of kernel group {group} for sm_{arch} is not where it is said to be")
        unpacking = zlib.decompressobj()
        image = unpacking.decompress(table[offset : offset + packed], whole + 1)
        if len(image) != whole:
            raise ValueError(f"image of kernel group {group} for sm_{arch} has another size than {whole}")
        parameters = tuple((a, b) for a, b in self.range(b"PARM", p, n))
        symbol = self.string(first, size)
        return Kernel(group, arch, symbol, image, shared, warps, registers, spills, parameters)

    def launch(self, *r: Any) -> Launch:
        attributes = {self.string(*a[:2]): self.value(a[2], *a[4:]) for a in self.range(b"ATTR", *r[2:4])}
        grid = (self.code(r[6]), self.code(r[7]), self.code(r[8]))
        arguments = tuple(self.argument(*a) for a in self.range(b"ARGS", *r[10:12]))
        pairs = self.list(*r[16:18])
        sources = tuple(self.string(*pairs[i : i + 2]) for i in range(0, len(pairs), 2))
        return Launch(
            self.string(*r[:2]), attributes, self.list(*r[12:14]), self.list(*r[14:16]), sources,
            _number(r[4]), grid, arguments, _number(r[5]),
        )  # fmt: skip

    def argument(self, kind: int, number: int, real: float) -> Argument:
        match ArgumentKind(kind):
            case ArgumentKind.TENSOR:
                return Argument(ArgumentKind.TENSOR, tensor=number)
            case ArgumentKind.FLOAT32:
                return Argument(ArgumentKind.FLOAT32, number=real)
        return Argument(ArgumentKind(kind), code=self.code(number))

    def value(self, kind: int, first: int, count: int) -> Value:
        words = [n for (n,) in self.range(b"NUMS", first, count)]
        kinds: tuple[Callable[[int], Any], ...] = (int, _real, self._text)
        read = kinds[(kind - 1) % 3]
        if not 1 <= kind <= 6 or (kind <= 3 and count != 1):
            raise ValueError(f"attribute of type {kind} with {count} values")
        items = tuple(read(word) for word in words)
        return items if kind > 3 else items[0]

    def _text(self, word: int) -> str:
        return self.string(word & t.NONE, word >> 32 & t.NONE)


def _record(name: bytes) -> int:
    return 1 if name == t.WEIGHTS else t.RECORDS[name].size


def _real(word: int) -> float:
    (number,) = struct.unpack("<d", struct.pack("<q", word))
    return float(number)


def _number(field: int) -> int:
    return -1 if field == t.NONE else field
