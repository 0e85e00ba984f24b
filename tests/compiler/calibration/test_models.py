"""Real models: the same statistics for 1 and 2 threads, ranges as ONNX Runtime's own tensors have them."""

from __future__ import annotations

import numpy as np
import pytest

from tapeout.compiler.calibration import Calibration
from tapeout.compiler.calibration.source import portable
from tapeout.compiler.calibration.store import parse, to_bytes
from tapeout.compiler.calibration.tensors import wanted
from tapeout.compiler.ir.load import load
from tapeout.compiler.reference import Reference
from tests.assets import ASSETS, model_path, needs_assets

CASES = (
    ("ic01_resnet8", "ic01_caltech"),
    ("ad01_autoencoder", "ad01_logmel"),
    ("espcn_x3", "sr_luma"),
    pytest.param("basic_pitch", "pitch_vocadito10", marks=pytest.mark.slow),
    pytest.param("kwt1", "speech_raw", marks=pytest.mark.slow),
)


@needs_assets
@pytest.mark.parametrize(("name", "data"), CASES)
def test_threads_make_no_difference_and_ranges_are_right(name: str, data: str) -> None:
    model = load(model_path(name))
    path = ASSETS / "data" / data / "calib.npz"
    one, two = (Calibration(path, model, jobs=jobs, limit=8) for jobs in (1, 2))
    found = one.statistics(model)
    content = to_bytes(portable(found, model))
    assert to_bytes(portable(two.statistics(model), model)) == content
    assert Calibration(parse(content), model).statistics(model).samples == 8

    names = [n for n in wanted(model).axes if n not in {v.name for v in model.graph.inputs}]
    low, high = (dict.fromkeys(names, s) for s in (np.inf, -np.inf))
    with Reference(model, threads=2) as reference:
        for feed in one.feeds():
            for key, array in reference.run(feed, names).items():
                low[key], high[key] = min(low[key], array.min()), max(high[key], array.max())
    for key in names:
        stats = found[key]
        assert stats is not None
        size = max(abs(low[key]), abs(high[key]), 1e-30)
        np.testing.assert_allclose([stats.min, stats.max], [low[key], high[key]], rtol=0, atol=2e-5 * size)
