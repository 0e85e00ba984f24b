"""Places where nothing can be written: one clear message, and what stood there before still stands."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tapeout.compiler import artifact
from tests.cli.conftest import Cli


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_folder_and_a_device(cli: Cli, model: Path, tmp_path: Path) -> None:
    assert cli("export", model, "-o", tmp_path).code == 2
    assert cli("export", model, "-o", "/dev/full").code == 2
    done = cli("export", model, "-o", tmp_path / "no" / "m.tflite")
    assert done.code == 10 and "make the folder first" in done.err
    done = cli("export", model, "-o", model / "m.tflite")
    assert done.code == 10 and "Not a directory" in done.err
    done = cli("export", model, "-o", tmp_path / ("n" * 300 + ".tflite"))
    assert done.code == 10 and "too long" in done.err
    assert names(tmp_path) == ["small.onnx"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write(cli: Cli, model: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    done = cli("export", model, "-o", closed / "m.tflite")
    assert done.code == 10 and "may write" in done.err


class _Full:
    """Files that take so many bytes and then are full."""

    def __init__(self, room: int) -> None:
        self.room = room

    def __call__(self, descriptor: int, *rest: Any, **options: Any) -> Any:
        stream, taken = _fdopen(descriptor, *rest, **options), [0]
        write = stream.write

        def limited(data: Any) -> int:
            taken[0] += len(data)
            if taken[0] > self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return int(write(data))

        class Stream:
            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_: object) -> None:
                stream.close()

            def __getattr__(self, name: str) -> Any:
                return limited if name == "write" else getattr(stream, name)

        return Stream()


_fdopen = os.fdopen


@pytest.mark.parametrize("room", [0, 10, 1000, 2500])
def test_a_full_disk(
    cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    out = tmp_path / "m.tflite"
    assert cli("export", model, "-o", out).code == 0
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    monkeypatch.setattr(artifact.os, "fdopen", _Full(room))
    done = cli("export", model, "-o", out, "--shape", "x=1,3,8,8", "--json")
    monkeypatch.undo()
    assert done.code == 10 and "No space left" in done.err and done.json()["error"]["transient"] is True
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_limit_on_file_size(model: Path, tmp_path: Path) -> None:
    """As the system itself sets it, in a process of its own."""
    out = tmp_path / "m.tflite"
    out.write_bytes(b"before")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    done = subprocess.run([sys.executable, "-m", "tapeout", "export", model, "-o", out, "--no-verify"],
                          capture_output=True, text=True, preexec_fn=limit, check=False)  # fmt: skip
    assert done.returncode == 10, done.stderr
    assert done.stderr.startswith("error: cannot write") and "Traceback" not in done.stderr
    assert out.read_bytes() == b"before" and names(tmp_path) == ["m.tflite", "small.onnx"]


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError])
def test_interrupted_between_the_renames(
    cli: Cli,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: int,
    kind: type[BaseException],
) -> None:
    out = tmp_path / "m.tflite"
    assert cli("export", model, "-o", out).code == 0
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    replace, count = os.replace, [0]

    def failing(source: Any, target: Any) -> None:
        if count[0] == place and not str(source).endswith(".old"):
            count[0] += 1
            raise kind(errno.EIO, "broken") if kind is OSError else kind()
        count[0] += 1
        replace(source, target)

    monkeypatch.setattr(artifact.os, "replace", failing)
    done = cli("export", model, "-o", out, "--shape", "x=1,3,8,8")
    monkeypatch.undo()
    assert done.code == (130 if kind is KeyboardInterrupt else 10)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_interrupted_in_the_first_export_nothing_stays(
    cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, count = os.replace, [0]

    def failing(source: Any, target: Any) -> None:
        count[0] += 1
        if count[0] == 3:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(artifact.os, "replace", failing)
    assert cli("export", model, "-o", tmp_path / "m.tflite").code == 130
    assert names(tmp_path) == ["small.onnx"]


def test_memory_and_the_unforeseen(
    cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tapeout.emitting

    for error, code in (
        (MemoryError(), 9),
        (ZeroDivisionError("division"), 70),
        (RecursionError("deep"), 70),
    ):

        def fail(*_: Any, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(tapeout.emitting, "legalize", fail)
        done = cli("export", model, "-o", tmp_path / "m.tflite")
        assert done.code == code and len(done.err.splitlines()) <= 2
    assert names(tmp_path) == ["small.onnx"]


def test_a_link_is_followed(cli: Cli, model: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.tflite").symlink_to(tmp_path / "real" / "m.tflite")
    assert cli("export", model, "-o", tmp_path / "link.tflite", "--no-verify").code == 0
    assert (tmp_path / "link.tflite").is_symlink() and (tmp_path / "real" / "m.tflite").stat().st_size > 100


@pytest.mark.slow
def test_what_is_left_when_it_is_killed(model: Path, tmp_path: Path) -> None:
    """SIGTERM while it verifies: the exit code says so, and nothing is left."""
    code = (
        "import os, signal, sys, tapeout.proof as p\n"
        "p.prove = lambda claim: os.kill(os.getpid(), signal.SIGTERM)\n"
        "from tapeout.__main__ import main\n"
        f"sys.exit(main(['export', {str(model)!r}, '-o', {str(tmp_path / 'm.tflite')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 143, done.stderr
    assert names(tmp_path) == ["small.onnx"]
