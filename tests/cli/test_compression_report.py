"""What the report says of compression: counts by hand, nearness, and the words for people."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from tapeout.compiler import pipeline
from tapeout.compiler.target import Request
from tapeout.compression_report import Comparison, figures, lines
from tapeout.passes.sparsity.layers import layers
from tapeout.targets.tflite import TARGET
from tests.passes.networks import calibration, network

NETWORK = """
net (float[1,3,8,8] x) => (float[1,10] y) <
    float[16,3,3,3] w1, float[16] b1, float[16,1,3,3] wd, float[10,16] w3, float[10] b3> {
    a = Conv<pads=[1,1,1,1]>(x, w1, b1)
    r = Relu(a)
    d = Conv<group=16, pads=[1,1,1,1]>(r, wd)
    p = GlobalAveragePool(d)
    f = Flatten(p)
    y = Gemm<transB=1>(f, w3, b3)
}"""
WEIGHTS = 16 * 27 + 16 * 9 + 160
WORK = 64 * 16 * 27 + 64 * 16 * 9 + 160


def sparse() -> ir.Model:
    """NETWORK with every second input of its last product at zero."""
    model = network(NETWORK)
    *_, last = layers(model.graph)
    weight = last.weight()
    weight[..., ::2] = 0
    last.store(weight)
    return model


def test_a_float_model_is_counted() -> None:
    found = figures(sparse())
    assert (found["weights"], found["zeros"], found["operations"]) == (WEIGHTS, 80, WORK)
    assert found["weight_bytes"] == 4 * WEIGHTS
    assert found["weight_bytes_without_zeros"] == 4 * (WEIGHTS - 80) + 160 // 8  # one weight has zeros


@pytest.mark.parametrize(("scheme", "size"), [("float32", 4), ("float16", 2), ("int8", 1)])
def test_storage_is_counted_as_it_is_in_a_target(scheme: str, size: int) -> None:
    model = sparse()
    data = calibration(model) if scheme == "int8" else None
    pipeline.run(model, TARGET.passes(Request(scheme, calibration=data)))
    found = figures(model)
    assert (found["weights"], found["operations"]) == (WEIGHTS, WORK)
    assert found["zeros"] >= 80 and found["zeros"] < 80 + 0.1 * WEIGHTS  # codes round to zero too
    # Scales and zero points come to the codes; float16 leaves small weights wide.
    most = {4: 4 * WEIGHTS, 2: 3 * WEIGHTS, 1: WEIGHTS + 42 * 9}[size]
    assert size * WEIGHTS <= found["weight_bytes"] <= most


def test_computed_operands_are_no_weights() -> None:
    model = network("net (float[4,6] x, float[6,5] z) => (float[4,5] y) { y = MatMul(x, z) }")
    found = figures(model)
    assert (found["weights"], found["weight_bytes"], found["operations"]) == (0, 0, 120)


def test_nearness() -> None:
    model = network(NETWORK)
    compare = Comparison(model, calibration(model))
    assert compare(model) == {"sqnr": math.inf, "lost": 0.0, "agreement": 1.0}
    found = compare(sparse())
    assert found["lost"] > 0 and found["sqnr"] < 40
    reference = np.concatenate([s[0] for s in compare.wanted]).astype(np.float64)
    other = np.concatenate([s[0] for s in compare._outputs(sparse())])
    noise = np.sum((reference - other) ** 2)
    assert found["sqnr"] == pytest.approx(10 * np.log10(np.sum(reference**2) / noise), abs=1e-6)
    assert found["agreement"] == np.mean(reference.argmax(1) == other.argmax(1))


def test_a_model_with_other_types_is_not_compared() -> None:
    model = network(NETWORK)
    compare = Comparison(model, calibration(model))
    model.graph.inputs[0].dtype = ir.DataType.INT8
    assert compare(model) == {}


def test_the_table_for_people() -> None:
    source = {
        "step": "source",
        "operations": 12_345_678,
        "weights": 20_000,
        "zeros": 0,
        "weight_bytes": 80_000,
    }
    pruned = source | {
        "step": "prune wanda=0.5", "zeros": 10_000, "sqnr": 21.04, "agreement": 0.9,
        "left": ["'a' has 9 inputs", "'b' has 9 inputs", "'c' is recurrent", "'d' is recurrent", "a general reason"],
    }  # fmt: skip
    text = lines([source, pruned], {"option": "sparse", "packed": None})
    assert text == [
        "                 operations  weights  zeros  bytes     SQNR  agree",
        "source               12.3 M   20.0 k   0.0%  80 kB",
        "prune wanda=0.5      12.3 M   20.0 k  50.0%  80 kB  21.0 dB  90.0%",
        "prune wanda=0.5 left: 'a' has 9 inputs; 'b' has 9 inputs; 'c' is recurrent, and 1 more in the report",
        "zeros take their bytes in the artifact (--option sparse=true packs them), and as much time as other weights",
    ]
    packed = {"tensors": 2, "bytes": 30_000, "dense_bytes": 80_000, "read_packed": 1}
    assert lines([source, pruned], {"option": "sparse", "packed": packed})[-1] == (
        "zeros: 2 weights take 30 kB instead of 80 kB; kernels skip the zeros of 1 and unpack the others: fewer bytes, "
        "less time in those"
    )
    assert len(lines([source, source], {"option": None, "packed": None})) == 3
