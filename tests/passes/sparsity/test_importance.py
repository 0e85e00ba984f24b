"""What channels are worth: each measure against what it says, in float64, and iterative removal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tapeout.compiler.errors import UsageError
from tapeout.compiler.ir import graph as g
from tapeout.passes.sparsity.channels import analyse
from tapeout.passes.sparsity.importance import MEASURES
from tapeout.passes.sparsity.layers import layers
from tapeout.passes.sparsity.structured import Choice, PruneChannels, cost_of, work
from tests.passes.networks import calibration, network, outputs, samples

Array = np.ndarray[Any, Any]

NETWORK = """
net (float[1,10] x) => (float[1,6] y) <
    float[10,7] w1, float[7] b1, float[9,7] w2, float[9] b2, float[6,9] w3, float[6] b3> {
    h = Gemm(x, w1, b1)
    a = Tanh(h)
    s = Gemm<transB=1>(a, w2, b2)
    t = Tanh(s)
    y = Gemm<transB=1>(t, w3, b3)
}"""


def measured(name: str) -> tuple[Array, list[dict[str, Array]], dict[str, Array]]:
    """What each of the seven neurons is worth, with the data and the weights."""
    model = network(NETWORK)
    feeds = samples(model, 8)
    ties = analyse(model.graph)
    costs = [c for c in (cost_of(ties, found) for found in layers(model.graph)) if c is not None]
    readers = Choice(model, ties, costs, feeds)._reading()
    neurons = next(c.outputs for c in costs if c.layer.outputs == 7)
    worth = MEASURES[name](model, readers, set(neurons.tolist()), feeds)
    weights = {v.name or "": np.float64(g.constant(v)) for v in model.graph.initializers.values()}  # type: ignore[arg-type]
    return np.array([worth[r] for r in neurons.tolist()]), feeds, weights


def forward(x: Array, w: dict[str, Array]) -> tuple[Array, Array, Array]:
    a = np.tanh(x @ w["w1"] + w["b1"])
    t = np.tanh(a @ w["w2"].T + w["b2"])
    return a, t, t @ w["w3"].T + w["b3"]


def test_taylor_is_the_derivative_of_the_outputs_in_float64() -> None:
    found, feeds, w = measured("taylor")
    a, t, y = forward(np.concatenate([f["x"] for f in feeds]).astype(np.float64), w)
    moved = a - a.mean(0)
    exact = [
        np.mean(((moved[:, j, None] * w["w2"][:, j] * (1 - t**2)) @ w["w3"].T) ** 2) / np.var(y)
        for j in range(7)
    ]
    # The step is finite: what is left of the second order is of its share.
    np.testing.assert_allclose(found, exact, rtol=0.1)


def test_sensitivity_is_what_the_outputs_lose_in_float64() -> None:
    found, feeds, w = measured("sensitivity")
    x = np.concatenate([f["x"] for f in feeds]).astype(np.float64)
    a, _, y = forward(x, w)
    for j in range(7):
        held = np.array(a)
        held[:, j] = a[:, j].mean()
        without = np.tanh(held @ w["w2"].T + w["b2"]) @ w["w3"].T + w["b3"]
        assert found[j] == pytest.approx(np.mean((without - y) ** 2) / np.var(y), rel=1e-3)


def test_magnitude_and_activation_are_shares() -> None:
    found, _, w = measured("magnitude")
    np.testing.assert_allclose(found, np.sum(w["w2"] ** 2, 0) / np.sum(w["w2"] ** 2), rtol=1e-6)
    found, feeds, w = measured("activation")
    a, _, _ = forward(np.concatenate([f["x"] for f in feeds]).astype(np.float64), w)
    np.testing.assert_allclose(found, a.var(0) / a.var(0).sum(), rtol=1e-4)


@pytest.mark.parametrize("importance", ["reconstruction", *MEASURES])
def test_each_measure_removes_what_is_asked(importance: str) -> None:
    dense, thin = network(NETWORK), network(NETWORK)
    PruneChannels(0.3, calibration(thin, 48), importance=importance)(thin)
    assert work(thin) <= 0.7 * work(dense)
    unseen = samples(dense, 16, seed=99)
    wanted, found = outputs(dense, unseen), outputs(thin, unseen)
    assert np.mean((found - wanted) ** 2) < 0.5 * np.var(wanted, axis=0).mean()


def test_rounds_add_up() -> None:
    dense, thin = network(NETWORK), network(NETWORK)
    PruneChannels(0.4, calibration(thin), rounds=3)(thin)
    assert 0.4 * work(dense) < work(thin) <= 0.6 * work(dense)


def test_an_unknown_measure_is_named() -> None:
    model = network(NETWORK)
    with pytest.raises(UsageError, match="unknown importance 'random'"):
        PruneChannels(0.3, calibration(model), importance="random")(model)
