"""The real models on TFLite: accepted without a hint, equal to ONNX Runtime on both resolvers."""

from __future__ import annotations

import numpy as np
import pytest

from tapeout.compiler import pipeline
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.load import load
from tapeout.compiler.target import Request
from tapeout.targets.tflite import TARGET
from tapeout.targets.tflite.run import RESOLVERS, LiteRT
from tests.assets import model_names, model_path, needs_assets
from tests.targets.tflite.road import Arrays, emitted, reference, refusals

# What float inputs are like: standard deviation and mean.
SCALES = {"yolox_nano": (70.0, 114.0), "yunet_n": (70.0, 114.0), "silero_vad": (0.1, 0.0)}


def inputs_for(name: str, batch: int = 1, seed: int = 5, length: int = 16) -> Arrays:
    """Inputs of the magnitude that the model has learnt from; numbers that index something stay small."""
    rng = np.random.default_rng(seed)
    deviation, mean = SCALES.get(name, (0.5, 0.0))
    found: Arrays = {}
    for value in load(model_path(name)).graph.inputs:
        assert value.name is not None and value.dtype is not None
        shape = [
            d if isinstance(d, int) else batch if i == 0 else length
            for i, d in enumerate(g.dims(value) or ())
        ]
        if value.name == "sr":
            found[value.name] = np.array(16000, np.int64)
        elif value.dtype == np.int64 or value.dtype.is_integer():
            high = 2 if "mask" in value.name or "type" in value.name else 1000
            found[value.name] = rng.integers(0, high, shape).astype(value.dtype.numpy())
        else:
            found[value.name] = (rng.standard_normal(shape) * deviation + mean).astype(np.float32)
    return found


def spread(name: str, inputs: Arrays, expected: Arrays) -> dict[str, float]:
    """How far ONNX Runtime's own optimizations move each output, relative to its largest magnitude."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(model_path(name)), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    found = dict(zip(names, session.run(None, inputs), strict=True))
    return {n: float(np.abs(found[n] - v).max() / max(np.abs(v).max(), 1e-30)) for n, v in expected.items()}


@needs_assets
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["float32", "float16"])
@pytest.mark.parametrize("name", model_names())
def test_a_real_model(name: str, scheme: str) -> None:
    model = load(model_path(name))
    inputs = inputs_for(name)
    expected = reference(model, inputs)
    pipeline.run(model, TARGET.passes(Request(scheme)))
    assert [str(r) for r in refusals(model)] == []
    content = emitted(model)
    for resolver in RESOLVERS:
        found = LiteRT(content, resolver).run(inputs)
        assert list(found) or found.keys() == expected.keys()
        allowed = spread(name, inputs, expected)
        for key, right in expected.items():
            assert found[key].shape == right.shape
            error = np.abs(found[key] - right).max() / max(float(np.abs(right).max()), 1e-30)
            bound = max(1e-5, 4 * allowed[key]) if scheme == "float32" else 1e-2
            assert error <= bound, f"{resolver} {key}: {error:.2g}, at most {bound:.2g}"


@needs_assets
@pytest.mark.slow
@pytest.mark.parametrize("name", model_names())
def test_one_file_serves_every_size(name: str) -> None:
    model = load(model_path(name))
    if all(g.static_dims(v) is not None for v in model.graph.inputs):
        pytest.skip("every input has a fixed size")
    cases = []
    for batch, length in ((1, 16), (3, 7), (2, 33)):
        inputs = inputs_for(name, batch, length=length)
        expected = reference(model, inputs)
        cases.append((inputs, expected, spread(name, inputs, expected)))
    pipeline.run(model, TARGET.passes(Request()))
    content = emitted(model)
    for resolver in RESOLVERS:
        runner = LiteRT(content, resolver)
        for inputs, expected, allowed in cases:
            found = runner.run(inputs)
            for key, right in expected.items():
                assert found[key].shape == right.shape
                error = np.abs(found[key] - right).max() / max(float(np.abs(right).max()), 1e-30)
                bound = max(1e-5, 4 * allowed[key])
                assert error <= bound, f"{resolver} {key}: {error:.2g}, at most {bound:.2g}"
