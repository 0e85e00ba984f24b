"""Files that appear whole or not at all: staged beside their place, synced, renamed; the manifest last."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

from tapeout.compiler.errors import OutputError, TapeoutError, UsageError

CHUNK = 1 << 20


@contextlib.contextmanager
def file_errors(what: str, path: Path) -> Iterator[None]:
    """Turn an OSError of the block into an OutputError that says what could not be done, where and why."""
    try:
        yield
    except OSError as error:
        hints = {
            errno.ENOSPC: "free some space on the disk, or write elsewhere with -o",
            errno.EDQUOT: "your quota is used up; write elsewhere with -o",
            errno.EFBIG: "the system's limit on file size is lower than the artifact",
            errno.EACCES: "choose a place that you may write with -o",
            errno.EPERM: "choose a place that you may write with -o",
            errno.EROFS: "the file system is read-only; write elsewhere with -o",
            errno.ENOENT: "make the folder first, or write elsewhere with -o",
        }
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OutputError(f"cannot {what} '{path}': {reason}", hint=hints.get(error.errno or 0)) from error


def check_output(path: Path) -> Path:
    """The real place of an output file, after the checks that can be made before any work.

    Raises UsageError where `path` is a folder or a device, OutputError where its folder is missing or not
    writable.
    """
    with file_errors("look at", path):
        place = Path(os.path.realpath(path))
        folder = place.parent
        try:
            mode = place.stat().st_mode
        except FileNotFoundError:
            mode = stat.S_IFREG
    if stat.S_ISDIR(mode):
        raise UsageError(
            f"the output '{path}' is a folder, expected a file", hint=f"for example -o {path / 'model'}"
        )
    if not stat.S_ISREG(mode):
        raise UsageError(f"the output '{path}' is no regular file", hint="give the name of a file with -o")
    if not folder.is_dir():
        missing = errno.ENOTDIR if folder.exists() else errno.ENOENT
        with file_errors("write", path):
            raise OSError(missing, "")
    if not os.access(folder, os.W_OK | os.X_OK):
        with file_errors("write", path):
            raise OSError(errno.EACCES, "")
    return place


@contextlib.contextmanager
def folders(path: Path) -> Iterator[None]:
    """The folder `path` with those above it: of what had to be made, what is empty when the block ends goes again."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    made: list[Path] = []
    try:
        with file_errors("make the folder", path):
            for folder in reversed(missing):
                folder.mkdir()
                made.append(folder)
        yield
    finally:
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()


class Sink:
    """What an emitter writes to: a binary stream that digests as it goes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: Any) -> int:
        """Write bytes or any contiguous buffer."""
        view = memoryview(data).cast("B") if not isinstance(data, bytes) else data
        self._hash.update(view)
        self._stream.write(view)
        self.size += len(view)
        return len(view)

    def tell(self) -> int:
        return self.size

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def flush(self) -> None:
        self._stream.flush()

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


class Stage:
    """Output files on their way: written to hidden files beside their places, put in place together at the
    end.

    Use as a context manager: whatever was not `publish`ed is removed when the block ends, however it ends.
    """

    def __init__(self) -> None:
        self._staged: list[tuple[Path, Path]] = []  # (temporary, place)

    def __enter__(self) -> Stage:
        _open.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._discard()
        _open.discard(self)

    def _discard(self) -> None:
        for temporary, _ in self._staged:
            _remove(temporary)
        self._staged.clear()

    def path(self, place: Path) -> Path:
        """Where the staged content of `place` lies now."""
        return next(t for t, p in self._staged if p == place)

    @contextlib.contextmanager
    def open(self, place: Path, beside: Path | None = None) -> Iterator[Sink]:
        """A sink for the content of `place`; synced when the block ends. It lies `beside` what is staged for
        another place, under that name but for the suffix."""
        temporary = place.with_name(f".{place.name[:100]}.{secrets.token_hex(6)}{place.suffix}")
        if beside is not None:
            temporary = self.path(beside).with_suffix(place.suffix)
        with file_errors("write", place):
            descriptor = os.open(
                temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666
            )
            self._staged.append((temporary, place))
            with os.fdopen(descriptor, "wb", buffering=CHUNK) as stream:
                yield Sink(stream)
                stream.flush()
                os.fsync(stream.fileno())

    @contextlib.contextmanager
    def folder(self, place: Path) -> Iterator[Path]:
        """A folder for the content of `place`; synced, files first, when the block ends."""
        temporary = place.with_name(f".{place.name[:100]}.{secrets.token_hex(6)}")
        with file_errors("write", place):
            temporary.mkdir()
            self._staged.append((temporary, place))
            yield temporary
            for file in sorted(temporary.rglob("*")):
                _sync(file)
            _sync(temporary)

    def write(self, place: Path, content: bytes) -> None:
        """Stage a small file."""
        with self.open(place) as sink:
            sink.write(content)

    def redirect(self, place: Path, other: Path) -> None:
        """Let what was staged for `place` go to `other`, in the same folder."""
        self._staged = [(t, other if p == place else p) for t, p in self._staged]

    def drop(self, place: Path) -> None:
        """Forget and remove what was staged for `place`."""
        for temporary, p in list(self._staged):
            if p == place:
                _remove(temporary)
                self._staged.remove((temporary, p))

    def publish(self) -> None:
        """Rename everything into place, in the order in which it was staged.

        Where one rename fails or is interrupted, the files replaced so far get their old content back.
        """
        done: list[tuple[Path, Path, Path]] = []  # (temporary, place, link to what stood there)
        try:
            for temporary, place in self._staged:
                old = place.with_name(f".{place.name[:100]}.{secrets.token_hex(6)}.old")
                done.append((temporary, place, old))
                with file_errors("write", place):
                    if place.is_dir():
                        os.rename(place, old)  # a folder is not replaced by a rename
                    elif place.exists():
                        with contextlib.suppress(OSError):  # without links the rename alone is still atomic
                            os.link(place, old)
                    os.replace(temporary, place)
            for folder in {place.parent for _, place in self._staged}:
                _sync(folder)
            self._staged.clear()
        except BaseException:
            for temporary, place, old in reversed(done):
                with contextlib.suppress(OSError):
                    if old.exists():
                        if old.is_dir() and place.exists():
                            _remove(place)
                        os.replace(old, place)
                    elif not temporary.exists():
                        _remove(place)
            raise
        finally:
            for _, _, old in done:
                _remove(old)


_open: set[Stage] = set()


def discard_all() -> None:
    """Remove whatever is staged anywhere: the process ends here."""
    for stage in list(_open):
        stage._discard()


def _remove(path: Path) -> None:
    """Remove a file, or a folder with what is in it, where it is there."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _sync(path: Path) -> None:
    with contextlib.suppress(OSError):  # not every file system can
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def digest(path: Path) -> tuple[str, int]:
    """The sha256 of a file in hexadecimal and its size in bytes, read in pieces."""
    sha, size = hashlib.sha256(), 0
    with file_errors("read", path), path.open("rb") as stream:
        while piece := stream.read(CHUNK):
            sha.update(piece)
            size += len(piece)
    return sha.hexdigest(), size


def entries(folder: Path) -> list[dict[str, Any]]:
    """Every file below a folder with its digest and size, by name."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        sha, size = digest(path)
        found.append({"name": path.relative_to(folder).as_posix(), "sha256": sha, "bytes": size})
    return found


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """JSON as it is written to files: indented, in the order given, one newline at the end; no NaN or
    infinity."""
    return (json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _plain(value: Any) -> Any:
    """`value` in JSON's own types; numbers that JSON lacks become strings."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v) for v in value]
    if isinstance(value, str | int | bool) or value is None:
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else str(value)
    if hasattr(value, "tolist"):
        return _plain(cast(Any, value).tolist())
    return str(value)


def depfile(output: Path, files: Iterable[Path]) -> bytes:
    """A dependency file in make's syntax: `output` depends on every one of `files`."""

    def quote(path: Path) -> str:
        text = str(path)
        for raw, escaped in (("$", "$$"), ("#", "\\#"), (" ", "\\ ")):
            text = text.replace(raw, escaped)
        if "\n" in text:
            raise TapeoutError(f"the path {text!r} holds a line break, which a dependency file cannot say")
        return text

    return (quote(output) + ":" + "".join(f" \\\n  {quote(f)}" for f in dict.fromkeys(files)) + "\n").encode()
