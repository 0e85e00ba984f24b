"""The real models through canonicalization and fusion: what fuses, and that the outputs stay."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from tapeout.compiler import pipeline
from tapeout.compiler.ir.load import load
from tapeout.compiler.reference import Reference
from tapeout.passes.canonicalize import CANONICALIZE
from tapeout.passes.fusion import FUSION
from tests.assets import ASSETS, model_names, model_path, needs_assets
from tests.passtext import deviation

# Fused operators, by model: those that must be there after fusion, and those of which none may be left.
EXPECTED: dict[str, tuple[dict[str, int], set[str]]] = {
    "kwt1": ({"LayerNormalization": 24, "Gelu": 12}, {"Reciprocal", "Tanh"}),
    "minilm_l6": ({"Gelu": 6, "Attention": 6, "LpNormalization": 1}, {"Erf", "Softmax"}),
    "yolox_nano": ({"Swish": 104, "SpaceToDepth": 1}, set()),
    "sww01_wakeword": ({}, {"BatchNormalization"}),
    "ultraface_rfb320": ({}, {"BatchNormalization"}),
}


@needs_assets
@pytest.mark.slow
@pytest.mark.parametrize("name", model_names() if ASSETS.is_dir() else ["none"])
def test_model(name: str) -> None:
    model = load(model_path(name))
    data = _inputs(model)
    before = Reference(model_path(name)).run(data)
    optimized = Reference(model_path(name), optimized=True).run(data)
    pipeline.run(model, (*CANONICALIZE, *FUSION, *CANONICALIZE))
    found = Counter(n.op_type for n in model.graph)
    wanted, gone = EXPECTED.get(name, ({}, set()))
    assert {k: found[k] for k in wanted} == wanted
    assert not gone & found.keys()
    after = Reference(model).run(data)
    for key, reference in before.items():
        spread = deviation(reference, optimized[key])
        assert deviation(reference, after[key]) <= max(1e-5, 4 * spread), key


def _inputs(model: ir.Model) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """Random floats, indices and masks of 0 and 1; free dimensions are 2."""
    rng = np.random.default_rng(7)
    data = {}
    for value in model.graph.inputs:
        assert value.name and value.shape is not None and value.dtype is not None
        shape = [d if isinstance(d, int) else 2 for d in value.shape]
        whole = not value.dtype.is_floating_point()
        drawn = (
            rng.integers(0, 2 if "mask" in value.name else 1000, shape)
            if whole
            else rng.uniform(-1, 1, shape)
        )
        data[value.name] = drawn.astype(value.dtype.numpy())
    return data
