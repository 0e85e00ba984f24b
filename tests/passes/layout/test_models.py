"""The real models: the same numbers, nothing removable, and no more Transposes than listed here."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tapeout.compiler import pipeline
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.load import load
from tapeout.passes.canonicalize import CANONICALIZE
from tapeout.passes.fusion.affine import AFFINE
from tapeout.passes.layout import ChannelsLast, needed_transposes, removable_transposes
from tests.assets import model_names, model_path, needs_assets
from tests.passes.layout.graphs import run

INPUT = {"input": 1}
# Kinds of reasons why a Transpose stays; models not listed have none.
NEEDED = {
    "kws_gru": INPUT,  # time first
    "kwt1": {"between": 12},  # heads into an attention layer and out of it
    "minilm_l6": {"between": 24},
    "mnist_lstm": {"input": 1, "between": 1},  # time first; the directions of what the LSTM returns
    "ultraface_rfb320": INPUT,
    "yolox_nano": INPUT,
    "yunet_n": INPUT,
}


@needs_assets
@pytest.mark.slow
@pytest.mark.parametrize("name", model_names())
def test_model(name: str) -> None:
    model = load(model_path(name))
    rng = np.random.default_rng(3)
    inputs = {}
    for value in model.graph.inputs:
        shape = [d if isinstance(d, int) else 2 for d in g.dims(value) or ()]
        assert value.dtype is not None
        dtype = value.dtype.numpy()
        data = rng.normal(size=shape) if np.issubdtype(dtype, np.floating) else rng.integers(0, 2, shape)
        inputs[value.name or ""] = data.astype(dtype)
    pipeline.run(model, (*CANONICALIZE, AFFINE))
    expected = run(model, inputs)
    pipeline.run(model, (ChannelsLast(),))
    found = run(model, inputs)
    for key, value in expected.items():
        scale = max(1e-6, float(np.max(np.abs(value))))
        np.testing.assert_allclose(found[key], value, rtol=0, atol=1e-5 * scale)
    assert removable_transposes(model) == []
    assert Counter(t.reason.split()[0] for t in needed_transposes(model)) == NEEDED.get(name, {})
