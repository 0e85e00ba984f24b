"""The samples: networks trained in their own framework, exported, and equal to what the framework computed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tapeout

SAMPLES = Path(__file__).resolve().parents[3] / "samples"


def run(*command: str | Path) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def holds(folder: Path, models: Sequence[str]) -> None:
    from ai_edge_litert.interpreter import Interpreter

    expected: Any = np.load(folder / "expected.npz")
    assert np.mean(expected["probabilities"].argmax(1) == expected["label"]) > 0.9  # it did learn
    for name in models:
        done = tapeout.export(folder / name, output=folder / "o.tflite", data=folder / "data.npz")
        (given,) = (i["name"] for i in done.manifest["interface"]["inputs"])
        ((_, found),) = (
            Interpreter(str(done.artifact)).get_signature_runner()(**{given: expected["image"]}).items()
        )
        np.testing.assert_allclose(found, expected["probabilities"], rtol=0, atol=1e-5)


def every_target(folder: Path, model: str) -> str:
    """What the sample tells of `model` on every target; it fails where an artifact is off."""
    from tapeout.compiler.target import loadable

    told = run(sys.executable, SAMPLES / "every_target.py", folder / model, folder, folder / "out")
    assert {line.partition(":")[0] for line in told.splitlines()} == {t.name for t in loadable()[0]}
    return told


@pytest.mark.slow
def test_torch(torch: Any, tmp_path: Path) -> None:
    assert "accuracy" in run(sys.executable, SAMPLES / "torch_export/train.py", tmp_path)
    holds(tmp_path, ["shapes.pt2"])
    assert "accuracy 1.000" in every_target(tmp_path, "shapes.pt2")
    assert "accuracy" in run(
        sys.executable, SAMPLES / "score_against.py", tmp_path / "o.tflite", tmp_path / "expected.npz"
    )


@pytest.mark.slow
def test_keras(tensorflow: str, tmp_path: Path) -> None:
    assert "accuracy" in run(tensorflow, SAMPLES / "keras_export/train.py", tmp_path)
    holds(tmp_path, ["shapes.h5", "shapes_saved"])
    assert "accuracy 0.9" in every_target(tmp_path, "shapes.keras")
