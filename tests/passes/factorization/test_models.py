"""What factorizations gain on real models, on data that they have not seen."""

from __future__ import annotations

import numpy as np
import pytest

from tapeout.passes.factorization import Factorize
from tapeout.passes.factorization.lowrank import factors
from tapeout.passes.sparsity.layers import layers
from tapeout.passes.sparsity.prune import Sequential
from tapeout.passes.sparsity.structured import work
from tests.assets import needs_assets
from tests.real import agreement, feeds, lost, real, scores

pytestmark = [needs_assets, pytest.mark.slow]
RESNET = "ic01_resnet8"


@pytest.mark.parametrize(("method", "agrees"), [("svd", 0.75), ("tucker", 0.68), ("cp", 0.87), ("uv", 0.77)])
def test_a_tenth_of_the_operations_goes(method: str, agrees: float) -> None:
    dense, data = real(RESNET)
    wanted, whole = scores(RESNET, dense), work(dense)
    Factorize(method, 0.1, data)(dense)
    assert work(dense) <= 0.9 * whole
    # Two standard errors below what was measured, of 330 samples.
    assert agreement(scores(RESNET, dense), wanted) >= agrees


def test_whitened_svd_loses_a_fraction_of_what_plain_svd_does() -> None:
    wanted = scores(RESNET, real(RESNET)[0])
    losses = {}
    for whitened in (True, False):
        model, _ = real(RESNET)
        chosen = list(layers(model.graph))

        def low(_: object, weight: np.ndarray, moments: np.ndarray, whitened: bool = whitened) -> np.ndarray:  # type: ignore[type-arg]
            a, b = factors(weight, moments if whitened else None, max(1, round(0.7 * min(weight.shape))))
            return np.asarray(a @ b)

        still = () if whitened else [f.name for f in chosen]
        Sequential(model, feeds(RESNET, "calib"), still).run(chosen, low)
        losses[whitened] = lost(scores(RESNET, model), wanted)
    assert losses[True] < losses[False] / 2
