"""Keeps mapped files out of memory while runtimes read them: what they have read comes from the file again.

A runtime that maps a model reads each weight once per run, yet every page that it has read stays in the process.
Beside it, `trimmed` gives such pages back every few hundredths of a second, so that the peak does not grow with
the model. Only mappings that nobody has written to are touched: their content is the file's.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

MAPS, DETAILS = Path("/proc/self/maps"), Path("/proc/self/smaps")
INTERVAL = 0.03  # seconds
LEAST = 1 << 24  # smaller mappings are left alone

# From this many bytes of weights on, runtimes run one after the other and mapped files are kept out of memory.
LARGE = 1 << 30


@contextlib.contextmanager
def trimmed(files: Iterable[str | os.PathLike[str]]) -> Iterator[None]:
    """While the block runs, mappings of `files` leave memory as they are read; nothing where the system has
    no such thing."""
    names = {os.path.realpath(f) for f in files}
    advise = _advise() if names and DETAILS.exists() else None
    if advise is None:
        yield
        return
    done = threading.Event()

    def work() -> None:
        while not done.wait(INTERVAL):
            for start, size in mapped(names):
                advise(start, size)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def trim() -> None:
    """Give memory back that the C library holds free: after a session of a runtime, whose blocks are many and
    large. Nothing where the library has no such thing."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def mapped(names: set[str]) -> list[tuple[int, int]]:
    """Start and size of every large mapping of the files `names` that holds nothing but the files' content."""
    lines = MAPS.read_text(errors="surrogateescape").splitlines()
    if not any(line.endswith(name) for line in lines for name in names):
        return []
    found: list[tuple[int, int]] = []
    place: tuple[int, int] | None = None
    # Here every mapping is followed by lines such as "Anonymous: 0 kB": pages that were written to.
    for line in DETAILS.read_text(errors="surrogateescape").splitlines():
        head, _, rest = line.partition(" ")
        if not head.endswith(":"):
            parts = rest.split(None, 4)
            start, end = (int(n, 16) for n in head.split("-"))
            known = len(parts) == 5 and parts[4] in names and end - start >= LEAST
            place = (start, end - start) if known else None
        elif place is not None and head == "Anonymous:" and rest.split()[0] == "0":
            found.append(place)
    return found


def _advise() -> ctypes._NamedFuncPointer | None:
    if not hasattr(mmap, "MADV_DONTNEED"):
        return None
    try:
        function = ctypes.CDLL(None, use_errno=True).madvise
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return lambda start, size: function(start, size, mmap.MADV_DONTNEED)  # type: ignore[return-value]
