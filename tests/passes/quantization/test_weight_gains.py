"""What each algorithm for stored weights gains on a real model, on data that it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tapeout.compiler import pipeline
from tapeout.compiler.calibration import Calibration
from tapeout.compiler.ir.load import load
from tapeout.compiler.recipe import Recipe
from tapeout.compiler.reference import Reference
from tapeout.compiler.schemes import WEIGHTS
from tapeout.compiler.target import Request
from tapeout.passes.quantization import codes, weight_gptq
from tapeout.passes.quantization.codebook import TabulateWeights
from tapeout.targets.tflite import TARGET
from tests.asset_samples import samples
from tests.assets import model_path, needs_assets

Array = np.ndarray[Any, Any]
pytestmark = [needs_assets, pytest.mark.slow]
SOUNDS, KEYWORDS, WORDS, PICTURES = "ad01_autoencoder", "kws01_dscnn", "kwt1", "ic01_resnet8"


def outputs(model: ir.Model, feeds: Sequence[dict[str, Array]]) -> Array:
    name = model.graph.outputs[0].name or ""
    with Reference(model) as reference:
        return np.concatenate([reference.run(f, [name])[name].reshape(1, -1) for f in feeds])


@pytest.fixture(scope="module")
def unseen() -> dict[str, tuple[list[dict[str, Array]], Array]]:
    """Evaluation samples of each model, and what it makes of them."""
    found = {}
    for name, count in ((SOUNDS, 24), (KEYWORDS, 8), (WORDS, 8), (PICTURES, 8)):
        given = samples(name, count, "eval")
        feeds = [{k: v[i : i + 1] for k, v in given.items()} for i in range(count)]
        found[name] = feeds, outputs(load(model_path(name)), feeds)
    return found


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("data") / "calibration.npz"
    np.savez(path, **samples(SOUNDS, 80, "calib"))
    return path


def error(name: str, known: dict[str, Any], scheme: str, recipe: str = "", data: Path | None = None) -> float:
    """RMS of the error at the output by that of the output."""
    model = load(model_path(name))
    rules = Recipe.parse(recipe) if recipe else None
    calibration = None if data is None else Calibration(data, model)
    pipeline.run(model, TARGET.passes(Request(scheme, calibration=calibration, recipe=rules)))
    feeds, right = known[name]
    return float(np.linalg.norm(outputs(model, feeds) - right) / np.linalg.norm(right))


def test_biases_and_gptq_each_gain(
    unseen: dict[str, Any], calibrated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for ways in (("rounding",), ("rounding", "bias"), ("rounding", "gptq")):
        monkeypatch.setattr(weight_gptq, "CANDIDATES", ways)
        found.append(error(SOUNDS, unseen, "w3", data=calibrated))
    rounding, biases, gptq = found
    assert biases < 0.95 * rounding
    assert gptq < 0.8 * rounding


def test_clipping_by_squared_error_gains(unseen: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    searched = error(KEYWORDS, unseen, "w4")
    monkeypatch.setattr(codes, "SHRINKS", (1.0,))
    assert searched < 0.5 * error(KEYWORDS, unseen, "w4")


def test_wide_front_ends_gain(unseen: dict[str, Any]) -> None:
    """Products before a logarithm, and rows that blocks do not divide, keep 8 bits unless a rule says otherwise."""
    forced = '[[rule]]\nnode = ["speech_features*", "kws_transformer/dense/*"]\nscheme = "w4"'
    assert error(WORDS, unseen, "w4g32") < 0.6 * error(WORDS, unseen, "w4g32", forced)
    rounded = '[[rule]]\nnode = "speech_features*"\nscheme = "int8-dynamic"'
    assert error(WORDS, unseen, "int8-dynamic") < 0.7 * error(WORDS, unseen, "int8-dynamic", rounded)


@pytest.mark.parametrize(
    ("name", "scheme", "share"),
    [(PICTURES, "log4", 0.9), (PICTURES, "product", 0.9), (WORDS, "codebook4", 0.8)],
)
def test_tables_that_fit_the_weights_gain(
    unseen: dict[str, Any], name: str, scheme: str, share: float
) -> None:
    """Powers of two, pairs of weights, and levels where the weights are, against even levels of 4 bits."""
    model = load(model_path(name))
    pipeline.run(model, (*TARGET.passes(Request())[:-1], TabulateWeights(WEIGHTS[scheme])))
    feeds, right = unseen[name]
    found = float(np.linalg.norm(outputs(model, feeds) - right) / np.linalg.norm(right))
    assert found < share * error(name, unseen, "w4")
