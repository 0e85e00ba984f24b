"""Pruning layer by layer on data: the share of zeros, what the rest makes good, and what is refused."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tapeout.compiler.errors import UsageError
from tapeout.compiler.ir import graph as g
from tapeout.passes.sparsity import Pattern, Prune
from tapeout.passes.sparsity.layers import layers
from tests.passes.networks import calibration, network, outputs, samples

NETWORK = """
net (float[1,3,12,12] x) => (float[1,10] y) <
    float[24,3,3,3] w1, float[24] b1, float[24,24,3,3] w2, float[24] b2, float[24,1,3,3] wd,
    float[32,24,1,1] w3, float[32] b3, float[10,32] w4, float[10] b4> {
    a = Conv<pads=[1,1,1,1]>(x, w1, b1)
    r = Relu(a)
    b = Conv<pads=[1,1,1,1]>(r, w2, b2)
    s = Add(r, b)
    d = Conv<group=24, pads=[1,1,1,1], strides=[2,2]>(s, wd)
    c = Conv(d, w3, b3)
    e = Relu(c)
    p = GlobalAveragePool(e)
    f = Flatten(p)
    y = Gemm<transB=1>(f, w4, b4)
}"""


def zeros(model: ir.Model) -> float:
    found = list(layers(model.graph))
    return sum(int(np.sum(f.weight() == 0)) for f in found) / sum(f.size for f in found)


def error(method: str, pattern: str) -> float:
    """Share of the variance of unseen outputs that is lost."""
    dense, sparse = network(NETWORK), network(NETWORK)
    Prune(method, Pattern.parse(pattern), calibration(sparse, 48))(sparse)
    assert zeros(sparse) >= Pattern.parse(pattern).ratio - 0.07  # what the pattern does not divide stays
    unseen = samples(dense, 32, seed=99)
    wanted, found = outputs(dense, unseen), outputs(sparse, unseen)
    return float(np.mean((found - wanted) ** 2) / np.var(wanted, axis=0).mean())


@pytest.mark.parametrize("pattern", ["0.6", "2:4"])
def test_what_is_fitted_loses_less_on_unseen_data(pattern: str) -> None:
    losses = {m: error(m, pattern) for m in ("magnitude", "sparsegpt", "admm")}
    assert max(losses["admm"], losses["sparsegpt"]) < 0.7 * losses["magnitude"]


def test_the_ratio_holds_over_all_weights_though_some_layers_stay_dense() -> None:
    model = network(NETWORK)
    changes = Prune("sparsegpt", Pattern.parse("0.6"), calibration(model))(model)
    assert zeros(model) == pytest.approx(0.6, abs=0.01)
    assert [d.reason for d in changes.declined] == ["has 9 inputs an output, fewer than 16"]


@pytest.mark.parametrize("ratio", ["0.3", "0.95"])
@pytest.mark.parametrize("data", [False, True])
def test_no_ratio_is_missed_in_silence(ratio: str, data: bool) -> None:
    model = network(NETWORK)
    Prune("magnitude", Pattern.parse(ratio), calibration(model) if data else None)(model)
    assert zeros(model) == pytest.approx(float(ratio), abs=0.01)


def test_more_than_the_layers_hold_is_refused() -> None:
    model = network(NETWORK)
    with pytest.raises(UsageError, match=r"99% of the weights .* layers that can be pruned hold 97%"):
        Prune("magnitude", Pattern.parse("0.99"))(model)


def test_magnitude_needs_no_data() -> None:
    model = network(NETWORK)
    Prune("magnitude", Pattern.parse("2:4"))(model)
    weight = g.constant(next(v for v in model.graph.initializers.values() if v.name == "w4"))
    assert weight is not None
    assert (np.count_nonzero(weight.reshape(-1, 4), axis=1) == 2).all()


def test_others_say_that_they_need_data() -> None:
    model = network(NETWORK)
    with pytest.raises(UsageError, match="--prune wanda looks at calibration data"):
        Prune("wanda", Pattern.parse("0.5"))(model)


def test_a_pattern_that_divides_nothing_is_refused_with_the_reasons() -> None:
    model = network("net (float[2,30] x) => (float[2,5] y) <float[30,5] w> { y = MatMul(x, w) }")
    with pytest.raises(UsageError, match="30 inputs are no multiple of 4"):
        Prune("magnitude", Pattern.parse("2:4"))(model)


def test_half_precision_weights_stay_half() -> None:
    model = network(
        "net (float[2,32] x) => (float[2,8] y) <float16[32,8] w> { wide = Cast<to=1>(w)\n y = MatMul(x, wide) }"
    )
    Prune("sparsegpt", Pattern.parse("0.5"), calibration(model))(model)
    stored = next(iter(layers(model.graph))).stored
    assert stored.dtype == ir.DataType.FLOAT16
    assert zeros(model) == pytest.approx(0.5, abs=0.01)


def test_recurrent_weights_are_said_to_stay() -> None:
    model = network(
        """net (float[4,1,8] x) => (float[4,1,16] y) <float[1,64,8] w, float[1,64,16] r, float[16,16] v> {
        h, last = LSTM<hidden_size=16>(x, w, r)
        s = Squeeze(h)
        z = MatMul(s, v)
        shape = Constant<value_ints=[4,1,16]>()
        y = Reshape(z, shape)
        }"""
    )
    changes = Prune("magnitude", Pattern.parse("0.5"))(model)
    assert [d.reason for d in changes.declined] == ["is recurrent (LSTM), its weights stay dense"]
    assert zeros(model) == pytest.approx(0.5, abs=0.01)
