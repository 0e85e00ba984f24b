"""Samples of the data that lies beside the real models."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tests.assets import ASSETS, model_path

ROOT = Path(__file__).resolve().parents[1]


def samples(name: str, count: int, split: str) -> dict[str, Any]:
    """Arrays by input name, samples along the first axis, from the data beside the model."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import asset_data
        import assets

        return asset_data.inputs(ASSETS, assets.TASKS[name][1], model_path(name), count, split)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
