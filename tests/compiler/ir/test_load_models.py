"""Real models: the canonical graph keeps the conventions and computes what the file computes."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest

from tapeout.compiler.ir import check
from tapeout.compiler.ir.load import load
from tapeout.compiler.ir.save import to_bytes
from tests.assets import model_names, model_path, needs_assets

pytestmark = pytest.mark.slow

SIZES = {"sequence_length": 16, "batch_size": 2, "sequence": 16}


@needs_assets
@pytest.mark.parametrize("name", model_names())
def test_real_model(name: str) -> None:
    ort.set_default_logger_severity(4)
    path = model_path(name)
    model = load(path)
    assert check.faults(model) == []
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = ort.InferenceSession(str(path), options)
    ours = ort.InferenceSession(to_bytes(model), options)
    rng = np.random.default_rng(1)
    feed = {}
    for port in source.get_inputs():
        free = iter((2, 16, 16, 16))
        shape = [d if isinstance(d, int) else SIZES.get(d or "") or next(free) for d in port.shape]
        integer = "int" in port.type
        feed[port.name] = (
            rng.integers(0, 2, shape) if integer else rng.standard_normal(shape).astype(np.float32)
        )
    assert [(p.name, p.type, len(p.shape)) for p in ours.get_inputs()] == [
        (p.name, p.type, len(p.shape)) for p in source.get_inputs()
    ]
    assert [p.name for p in ours.get_outputs()] == [p.name for p in source.get_outputs()]
    for a, b in zip(source.run(None, feed), ours.run(None, feed), strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max()
