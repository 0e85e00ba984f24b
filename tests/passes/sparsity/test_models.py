"""What methods gain on real models, on data that they have not seen."""

from __future__ import annotations

import pytest

from tapeout.passes.sparsity import Pattern, Prune, PruneChannels
from tapeout.passes.sparsity.structured import work
from tests.assets import needs_assets
from tests.real import agreement, lost, real, scores

pytestmark = [needs_assets, pytest.mark.slow]
RESNET, WAKE = "ic01_resnet8", "vww01_mobilenetv1"


@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_what_is_fitted_on_data_loses_a_third_of_what_magnitude_does(pattern: str) -> None:
    wanted = scores(RESNET, real(RESNET)[0])
    losses = {}
    for method in ("magnitude", "sparsegpt", "admm"):
        model, data = real(RESNET)
        Prune(method, Pattern.parse(pattern), data if method != "magnitude" else None)(model)
        losses[method] = lost(scores(RESNET, model), wanted)
    assert max(losses["sparsegpt"], losses["admm"]) < losses["magnitude"] / 3


def test_ratios_of_their_own_lose_less_than_one_for_all() -> None:
    wanted = scores(RESNET, real(RESNET)[0])
    losses = []
    for own in (True, False):
        model, data = real(RESNET)
        Prune("sparsegpt", Pattern.parse("0.5"), data, own_ratios=own)(model)
        losses.append(lost(scores(RESNET, model), wanted))
    assert losses[0] < 0.7 * losses[1]


def test_constant_channels_go_and_no_prediction_changes() -> None:
    dense, data = real(WAKE)
    wanted, whole = scores(WAKE, dense), work(dense)
    PruneChannels(None, data)(dense)
    assert work(dense) < 0.52 * whole
    assert agreement(scores(WAKE, dense), wanted) == 1


def test_reconstruction_chooses_better_channels_than_magnitude() -> None:
    wanted = scores(RESNET, real(RESNET)[0])
    losses = {}
    for importance in ("reconstruction", "magnitude"):
        model, data = real(RESNET)
        PruneChannels(0.3, data, importance=importance)(model)
        losses[importance] = lost(scores(RESNET, model), wanted)
    assert losses["reconstruction"] < 0.8 * losses["magnitude"]
