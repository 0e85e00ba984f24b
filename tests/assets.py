"""Where the real models and data lie, beside the repository; tests that need them skip where they are absent."""

from __future__ import annotations

from pathlib import Path

import pytest

ASSETS = Path(__file__).resolve().parents[2] / "shared" / "assets"

needs_assets = pytest.mark.skipif(
    not ASSETS.is_dir(), reason="the real models (../shared/assets) are not here"
)


def model_path(name: str) -> Path:
    """The ONNX file of a real model, such as "ic01_resnet8"."""
    return ASSETS / "models" / name / "model.onnx"


def model_names() -> list[str]:
    """The names of all real models, sorted; empty where the assets are absent."""
    return sorted(p.parent.name for p in ASSETS.glob("models/*/model.onnx"))
