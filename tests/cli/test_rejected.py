"""An artifact that computes something else is not left, unless it is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

import tapeout
from tapeout.compiler.errors import AccuracyError
from tapeout.compiler.target import Request, Target
from tests.faults.networks import network
from tests.faults.plain_target import plain
from tests.faults.plant import spoil


@pytest.fixture
def wrong() -> Target:
    """A target whose emission drops a bias."""
    return spoil(plain(), Request(), 0, "bias_dropped", 0)[0]


def test_it_is_rejected_and_named(wrong: Target, tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    out.write_bytes(b"before")
    with pytest.raises(AccuracyError) as caught:
        tapeout.export(network("vision"), wrong, output=out)
    assert caught.value.exit_code == 5 and caught.value.nodes
    assert "introduced by pass 'emission (" in caught.value.message
    assert out.read_bytes() == b"before" and [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_keep_rejected(wrong: Target, tmp_path: Path) -> None:
    with pytest.raises(AccuracyError):
        tapeout.export(network("vision"), wrong, output=tmp_path / "m.onnx", keep_rejected=True)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx.rejected"]


def test_unverified_it_is_written(wrong: Target, tmp_path: Path) -> None:
    done = tapeout.export(network("vision"), wrong, output=tmp_path / "m.onnx", verify=False)
    assert done.report["proof"] == {"proven": [], "unproven": True}


def test_without_a_runtime_it_is_unproven(tmp_path: Path) -> None:
    import dataclasses

    blind = dataclasses.replace(plain(), runners=lambda path, request: ())
    done = tapeout.export(network("vision"), blind, output=tmp_path / "m.onnx")
    assert done.report["proof"]["unproven"] and done.report["verification"] is None
    with pytest.raises(AccuracyError, match="unproven"):
        tapeout.export(network("vision"), blind, output=tmp_path / "n.onnx", require_proof=True)
    assert not (tmp_path / "n.onnx").exists()
