"""Frameworks that the tests of front ends need, and what they skip with where one is missing."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SAMPLES = Path(__file__).resolve().parents[3] / "samples"


@functools.cache
def _tensorflow() -> str | None:
    """The interpreter that has TensorFlow and tf2onnx, None where there is none."""
    found = os.environ.get("TAPEOUT_TENSORFLOW_PYTHON") or sys.executable
    probe = (
        "import importlib.util as u; raise SystemExit(not all(map(u.find_spec, ('tensorflow', 'tf2onnx'))))"
    )
    return found if subprocess.run([found, "-I", "-c", probe], capture_output=True).returncode == 0 else None


@pytest.fixture
def torch() -> Any:
    """torch, with the exporter's own dependency."""
    if importlib.util.find_spec("onnxscript") is None:
        pytest.skip("onnxscript is not installed: pip install 'tapeout[torch]'")
    return pytest.importorskip("torch", reason="torch is not installed: pip install 'tapeout[torch]'")


@pytest.fixture(scope="session")
def tensorflow() -> str:
    """The interpreter that has TensorFlow."""
    found = _tensorflow()
    if found is None:
        pytest.skip("no Python with TensorFlow and tf2onnx: name one in TAPEOUT_TENSORFLOW_PYTHON")
    return found


@pytest.fixture(scope="session")
def script(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Run Python text in an interpreter; the folder that it ran in."""

    def call(interpreter: str, text: str) -> Path:
        folder = tmp_path_factory.mktemp("script")
        done = subprocess.run(
            [interpreter, "-c", text], cwd=folder, capture_output=True, text=True, timeout=300,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return folder

    return call
