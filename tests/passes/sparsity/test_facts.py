"""Patterns of zeros as named facts: what is written, what of it is true, and what is left of it behind quantization."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapeout.compiler import pipeline
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.load import load
from tapeout.compiler.ir.save import save
from tapeout.compiler.operators import storage
from tapeout.compiler.target import Request
from tapeout.passes.sparsity import Pattern, Prune, facts
from tapeout.passes.sparsity.layers import layers
from tapeout.targets.tflite import TARGET
from tests.passes.networks import calibration, network

NETWORK = """
net (float[1,16,8,8] x) => (float[1,10] y) <
    float[32,16,1,1] w1, float[32] b1, float[24,32,3,3] w2, float[10,24] w3, float[10] b3> {
    a = Conv(x, w1, b1)
    r = Relu(a)
    c = Conv<pads=[1,1,1,1]>(r, w2)
    p = GlobalAveragePool(c)
    f = Flatten(p)
    y = Gemm<transB=1>(f, w3, b3)
}"""


@given(st.integers(1, 3), st.integers(0, 10**6))
def test_n_of_m_holds_where_no_run_has_more(keep: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    weight = Pattern.parse(f"{keep}:4").mask(draw.random((3, 8))) * (1 + draw.random((3, 8)))
    assert facts.holds(f"{keep}:4", weight)
    row, run = int(draw.integers(3)), int(draw.integers(2))
    weight[row, 4 * run : 4 * run + 4] = 1.0
    assert not facts.holds(f"{keep}:4", weight)


def test_blocks_hold_where_zeros_lie_in_them() -> None:
    weight = np.ones((4, 16))
    assert not facts.holds("1x4", weight)
    weight[1, 4:8] = weight[2, :8] = 0
    assert facts.holds("1x4", weight)
    assert not facts.holds("2x4", weight)
    weight[3, ::4] = 0  # scattered
    assert not facts.holds("1x4", weight)
    assert not facts.holds("1x5", weight)


@pytest.mark.parametrize("scheme", ["float32", "int8"])
def test_a_fact_stays_true_through_a_file_and_a_target(scheme: str, tmp_path: object) -> None:
    model = network(NETWORK)
    pattern = Pattern.parse("2:4")
    Prune("magnitude", pattern)(model)
    facts.state(model, {layer.name: pattern for layer in layers(model.graph)})
    assert set(facts.facts(model).values()) == {"2:4"}
    save(model, tmp_path / "m.onnx")  # type: ignore[operator]
    again = load(tmp_path / "m.onnx")  # type: ignore[operator]
    pipeline.run(
        again, TARGET.passes(Request(scheme, calibration=calibration(model) if scheme == "int8" else None))
    )
    looked_at = 0
    for node in again.graph:
        weight = (
            g.constant(storage(node.inputs[1]).value) if len(node.inputs) > 1 and node.inputs[1] else None
        )
        if weight is None or weight.ndim < 2 or facts.fact(again, node) is None:
            continue
        # A target keeps the inputs of a convolution last: [O, h, w, I].
        rows = np.moveaxis(weight, -1, 1).reshape(len(weight), -1) if weight.ndim == 4 else weight
        assert facts.holds("2:4", rows)
        looked_at += 1
    assert looked_at == 3


def test_what_is_not_so_is_not_written() -> None:
    model = network(NETWORK)
    facts.state(model, {layer.name: Pattern.parse("2:4") for layer in layers(model.graph)})
    assert facts.facts(model) == {}
