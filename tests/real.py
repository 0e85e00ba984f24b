"""Real models as passes take them, with their calibration data, and what they put out on data held back."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.calibration import Calibration
from tapeout.compiler.ir.load import load
from tapeout.compiler.ir.save import to_bytes
from tapeout.compiler.pipeline import run
from tapeout.compiler.reference import open_session
from tapeout.passes.canonicalize import CANONICALIZE
from tapeout.passes.fusion import FUSION
from tests.asset_samples import samples
from tests.assets import model_path

Array = np.ndarray[Any, Any]


def feeds(name: str, split: str, count: int | None = None) -> list[dict[str, Array]]:
    """Samples of the data beside the model, one a feed; `split` is "calib" or "eval"."""
    arrays = samples(name, count, split)  # type: ignore[arg-type]
    return [{k: v[i : i + 1] for k, v in arrays.items()} for i in range(len(next(iter(arrays.values()))))]


def real(name: str) -> tuple[ir.Model, Calibration]:
    """The model, fused, and its calibration data."""
    model = load(model_path(name))
    run(model, (*CANONICALIZE, *FUSION, *CANONICALIZE))
    data = feeds(name, "calib")
    return model, Calibration(lambda: data, model)


def scores(name: str, model: ir.Model) -> Array:
    """The first output for every sample of the evaluation data, a row each."""
    session = open_session(to_bytes(model), None, 2)
    return np.concatenate([session.run(None, feed)[0].reshape(1, -1) for feed in feeds(name, "eval")])


def agreement(a: Array, b: Array) -> float:
    """Share of the samples whose largest score is the same."""
    return float(np.mean(a.argmax(1) == b.argmax(1)))


def lost(found: Array, wanted: Array) -> float:
    """Share of the variance of `wanted` that is lost."""
    return float(np.mean((found - wanted) ** 2) / np.var(wanted))
