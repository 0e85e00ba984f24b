"""Peak memory of pruning: the weights of the model, and beyond them what the largest layer and its rows take."""

from __future__ import annotations

import gc
import tracemalloc

import pytest

from tapeout.passes.sparsity import Pattern, Prune
from tests.passes.networks import calibration, network

WIDTH = 128


def peak(depth: int, own_ratios: bool) -> int:
    """Bytes at the highest point that pruning a chain of `depth` products reaches beyond its start."""
    weights = ", ".join(f"float[{WIDTH},{WIDTH}] w{i}" for i in range(depth))
    lines = "\n".join(f"v{i + 1} = MatMul(v{i}, w{i})" for i in range(depth))
    model = network(f"net (float[4,{WIDTH}] v0) => (float[4,{WIDTH}] v{depth}) <{weights}> {{\n{lines}\n}}")
    data = calibration(model, 16)
    gc.collect()
    tracemalloc.start()
    Prune("sparsegpt", Pattern.parse("0.5"), data, own_ratios=own_ratios)(model)
    reached = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return reached


@pytest.mark.parametrize("own_ratios", [False, True])
def test_more_layers_take_no_more_than_their_own_weights(own_ratios: bool) -> None:
    few, many = (peak(depth, own_ratios) for depth in (3, 12))
    layer = 4 * WIDTH * WIDTH
    # New weights and the model as bytes for ONNX Runtime; no layer's moments (two layers' bytes each) outlive it.
    assert many - few < 1.5 * 9 * layer
    # At once: the moments of one layer, what they are decomposed into, copies of its weight in float64, its rows.
    assert few < 60 * layer
