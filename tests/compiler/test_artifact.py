"""Staging: whole or not at all; digests, JSON, dependency files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from tapeout.compiler import artifact
from tapeout.compiler.errors import OutputError, TapeoutError, UsageError


def test_published_together_in_order(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    b.write_bytes(b"old")
    with artifact.Stage() as stage:
        with stage.open(a) as sink:
            sink.write(b"one")
            sink.write(np.arange(3, dtype=np.int32))
            assert sink.tell() == 15 and not sink.seekable()
        stage.write(b, b"new")
        assert not a.exists() and b.read_bytes() == b"old"
        stage.publish()
    assert a.read_bytes() == b"one" + np.arange(3, dtype=np.int32).tobytes()
    assert sink.digest == hashlib.sha256(a.read_bytes()).hexdigest() == artifact.digest(a)[0]
    assert b.read_bytes() == b"new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_not_published_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), artifact.Stage() as stage:
        stage.write(tmp_path / "a", b"one")
        with stage.open(tmp_path / "b") as sink:
            sink.write(b"x")
            raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    with artifact.Stage() as stage:
        stage.write(tmp_path / "a", b"one")
        stage.publish()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_check_output(tmp_path: Path) -> None:
    assert artifact.check_output(tmp_path / "a") == tmp_path / "a"
    with pytest.raises(UsageError):
        artifact.check_output(tmp_path)
    with pytest.raises(UsageError):
        artifact.check_output(Path("/dev/null"))
    with pytest.raises(OutputError):
        artifact.check_output(tmp_path / "no" / "a")


def test_json_has_no_nan_and_is_plain() -> None:
    made = artifact.json_bytes(
        {"a": float("nan"), "b": [float("inf"), np.float32(2)], "c": {"d": (1, None, True)}}
    )
    assert json.loads(made) == {"a": "nan", "b": ["inf", 2.0], "c": {"d": [1, None, True]}}


def test_depfile() -> None:
    made = artifact.depfile(Path("out dir/m.tflite"), [Path("a#1"), Path("b$"), Path("a#1")]).decode()
    assert made == "out\\ dir/m.tflite: \\\n  a\\#1 \\\n  b$$\n"
    with pytest.raises(TapeoutError):
        artifact.depfile(Path("a"), [Path("b\nc")])
