"""What a cubin says of its kernel: registers, memory on the stack, where its parameters lie (ELF64, `.nv.info`)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from tapeout.sdk import VendorToolError

# Attributes in `.nv.info`: registers and bytes of stack of each function; in `.nv.info.NAME`: a parameter.
REGISTERS, FRAME, PARAMETER = 0x2F, 0x11, 0x17
SIZED = 4  # the form of an attribute that is followed by bytes


class Facts(NamedTuple):
    """Registers and stack bytes of a thread, and (offset, bytes) of each parameter."""

    registers: int
    stack: int
    parameters: tuple[tuple[int, int], ...]


def facts(image: bytes, symbol: str) -> Facts:
    """The facts of the kernel `symbol` in a cubin. Raises VendorToolError where it is none that is understood."""
    try:
        found = _sections(image)
        common = list(_attributes(found[".nv.info"]))
        registers = [struct.unpack("<II", v)[1] for k, v in common if k == REGISTERS]
        frames = [struct.unpack("<II", v)[1] for k, v in common if k == FRAME]
        parameters: dict[int, tuple[int, int]] = {}
        for kind, value in _attributes(found[f".nv.info.{symbol}"]):
            if kind == PARAMETER:
                _, ordinal, offset, size = struct.unpack("<IHHI", value)
                parameters[ordinal] = (offset, size >> 18)
    except (struct.error, KeyError, IndexError, ValueError) as error:
        raise VendorToolError(
            f"the cubin of '{symbol}' is not understood: {type(error).__name__}: {error}"
        ) from error
    return Facts(max(registers), max(frames, default=0), tuple(parameters[i] for i in sorted(parameters)))


def _sections(image: bytes) -> dict[str, bytes]:
    """The sections of an ELF file by name."""
    if image[:4] != b"\x7fELF":
        raise ValueError("it is no ELF file")
    (start,) = struct.unpack_from("<Q", image, 0x28)
    size, count, names = struct.unpack_from("<HHH", image, 0x3A)
    entries = [struct.unpack_from("<IIQQQQ", image, start + i * size) for i in range(count)]
    table = entries[names][4]
    made = {}
    for name, kind, _, _, offset, length in entries:
        begin = table + name
        text = image[begin : image.index(0, begin)].decode()
        made[text] = b"" if kind == 8 else image[offset : offset + length]
    return made


def _attributes(content: bytes) -> Iterator[tuple[int, bytes]]:
    place = 0
    while place < len(content):
        form, kind, size = struct.unpack_from("<BBH", content, place)
        place += 4
        if form == SIZED:
            yield kind, content[place : place + size]
            place += size
