"""Mapped files leave memory while they are read; what was written to stays."""

from __future__ import annotations

import mmap
import time
from pathlib import Path

import numpy as np
import pytest

from tapeout.compiler.ir.external import open_model, release
from tapeout.compiler.memory import DETAILS, LEAST, mapped, trimmed

pytestmark = pytest.mark.skipif(not DETAILS.exists(), reason="the system does not tell what is mapped")
SIZE = 4 * LEAST


def resident(path: Path) -> int:
    """Bytes of the mappings of `path` that lie in memory."""
    total, inside = 0, False
    for line in DETAILS.read_text().splitlines():
        head, _, rest = line.partition(" ")
        if not head.endswith(":"):
            inside = rest.endswith(str(path))
        elif inside and head == "Rss:":
            total += 1024 * int(rest.split()[0])
    return total


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = (tmp_path / "weights").resolve()
    rng = np.random.default_rng(0)
    path.write_bytes(rng.integers(0, 256, SIZE, np.uint8).tobytes())
    return path


def test_what_was_read_leaves_memory_and_reads_the_same_again(file: Path) -> None:
    content = np.frombuffer(file.read_bytes(), np.uint8)
    with file.open("rb") as stream:
        view = np.frombuffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    with trimmed([file]):
        assert np.array_equal(view, content)
        end = time.monotonic() + 5
        while resident(file) and time.monotonic() < end:
            time.sleep(0.02)
        assert resident(file) == 0
        assert np.array_equal(view, content)


def test_a_mapping_that_was_written_to_is_left_alone(file: Path) -> None:
    with file.open("rb") as stream:
        private = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    assert len(mapped({str(file)})) == 1
    private[SIZE // 2] = (private[SIZE // 2] + 1) % 256
    assert mapped({str(file)}) == []
    changed = private[SIZE // 2]
    with trimmed([file]):
        time.sleep(0.2)
    assert private[SIZE // 2] == changed != file.read_bytes()[SIZE // 2]


def test_other_files_and_other_names_are_left_alone(file: Path, tmp_path: Path) -> None:
    with file.open("rb") as stream:
        view = np.frombuffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    assert view.any()
    with trimmed([tmp_path / "another"]), trimmed([]):
        time.sleep(0.1)
    assert resident(file) > 0


def test_a_models_files_are_let_go(file: Path) -> None:
    view = open_model(file)
    first = bytes(view[:100])
    assert np.frombuffer(view, np.uint8).any() and resident(file) > SIZE // 2
    release()
    assert resident(file) == 0 and bytes(view[:100]) == first
