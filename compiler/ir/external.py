"""Files a model is read from, through descriptors: the model file itself and the external data beside it.

External data may lie only inside the model's folder. Each path component is opened without following links,
the file must be regular and have a single name (a hard link may lead out of the folder), and offset and
length are checked against its size. Nothing is looked up twice by path, so nothing can be exchanged between
check and use.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import weakref
from pathlib import Path

from tapeout.compiler.errors import InvalidModelError, OutputError, UsageError

# Every file that is mapped now.
_MAPPED: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()

_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)


def open_model(path: Path) -> memoryview:
    """The bytes of the model file at `path`, mapped.

    Raises UsageError where there is no such file, OutputError where it cannot be read.
    """
    try:
        descriptor = os.open(path, _FLAGS)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"there is no model file '{path}'", hint="check the path") from None
    except (OSError, ValueError) as error:
        raise OutputError(f"the model file '{path}' cannot be read: {_reason(error)}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"'{path}' is no file", hint="give the path of an .onnx file")
        if status.st_size == 0:
            raise InvalidModelError(f"the model file '{path}' is empty")
        return _map(descriptor, status.st_size, str(path))
    finally:
        os.close(descriptor)


class ExternalFiles:
    """The external data files of one model, opened on first use and mapped once each."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.paths: list[Path] = []
        self._mapped: dict[str, memoryview] = {}

    def view(self, location: str, offset: int, length: int | None, needed: int, what: str) -> memoryview:
        """The `needed` bytes of a tensor in file `location` (relative to the model's folder).

        `length` is what the model states, None where it states nothing. Raises InvalidModelError.
        """
        data = self._file(location, what)
        if length is not None and length != needed:
            raise InvalidModelError(
                f"{what}: the model states {length} bytes in '{location}', its shape needs {needed}"
            )
        if offset < 0 or offset + needed > len(data):
            raise InvalidModelError(
                f"{what}: needs bytes {offset} to {offset + needed} of '{location}', which has {len(data)}",
                hint="the file may be truncated, or may belong to another model",
            )
        return data[offset : offset + needed]

    def _file(self, location: str, what: str) -> memoryview:
        if location in self._mapped:
            return self._mapped[location]
        if self.folder is None:
            raise InvalidModelError(
                f"{what}: its data lies in '{location}', but a model in memory has no folder",
                hint="load the model from its file",
            )
        parts = [p for p in location.split("/") if p not in ("", ".")]
        if not parts or location.startswith("/") or ".." in parts or "\0" in location:
            raise InvalidModelError(
                f"{what}: its data lies in '{location}', which is no path inside the model's folder"
            )
        try:
            data = self._open(parts, location, what)
        except OSError as error:
            raise InvalidModelError(
                f"{what}: its data '{location}' in '{self.folder}' cannot be opened: {_reason(error)}",
                hint="external data must be a file inside the model's folder, reached over no link",
            ) from None
        self._mapped[location] = data
        self.paths.append(self.folder.joinpath(*parts))
        return data

    def _open(self, parts: list[str], location: str, what: str) -> memoryview:
        assert self.folder is not None
        descriptor = os.open(self.folder, _FLAGS | os.O_DIRECTORY)
        try:
            for index, part in enumerate(parts):
                last = index == len(parts) - 1
                flags = _FLAGS | os.O_NOFOLLOW | (0 if last else os.O_DIRECTORY)
                inner = os.open(part, flags, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise InvalidModelError(f"{what}: the external data '{location}' is no regular file")
            if status.st_nlink != 1:
                raise InvalidModelError(
                    f"{what}: its data '{location}' has {status.st_nlink} names (hard links), expected 1",
                    hint="copy the file: a hard link may lead out of the model's folder",
                )
            return _map(descriptor, status.st_size, location)
        finally:
            os.close(descriptor)


def digest(path: str | Path) -> str:
    """The SHA-256 of a file, read in pieces, in hexadecimal."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            found.update(piece)
    return found.hexdigest()


def _map(descriptor: int, size: int, name: str) -> memoryview:
    if size == 0:
        return memoryview(b"")
    try:
        mapped = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise OutputError(f"the file '{name}' cannot be mapped: {_reason(error)}") from None
    _MAPPED.add(mapped)
    return memoryview(mapped)


def release() -> None:
    """Let go of the memory of all mapped files: what is read again comes from the file again.

    Whoever has read a model's weights from one end to the other calls this now and then, else every page that was
    read stays in the process for as long as the model does.
    """
    if not hasattr(mmap, "MADV_DONTNEED"):  # not on this system
        return
    for mapped in list(_MAPPED):
        if not mapped.closed:
            mapped.madvise(mmap.MADV_DONTNEED)


def _reason(error: Exception) -> str:
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
