"""A model of more than a gigabyte through the whole road, in processes of its own: what memory it takes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "big_model.py"


@pytest.mark.slow
def test_weights_never_lie_in_memory_together(tmp_path: Path) -> None:
    if shutil.disk_usage(tmp_path).free < 6e9:
        pytest.skip("it takes 3 GB of disk")
    command = [sys.executable, str(SCRIPT), str(tmp_path), "--gigabytes", "1.4", "--layers", "14", "--verify"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["export"]["exit_code"] == found["run"]["exit_code"] == 0
    assert "verified on LiteRT" in done.stderr
    assert found["largest_error"] < 1e-5
    assert found["export"]["peak_mb"] < 900  # of 1400: one weight of 100 MB, its transpose, the packages
