"""A fault planted in a pass or in emission is named: the right pass and the right source node.

`python -m pytest tests/faults -s` prints the tally.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from tapeout.compiler.pipeline import Pass
from tapeout.passes.fusion import FUSION
from tests.faults.kinds import KINDS
from tests.faults.networks import network
from tests.faults.plain_target import plain
from tests.faults.plant import Outcome, plant

PASSES: tuple[Pass, ...] = FUSION


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """Every kind of fault once in each network, each time in another pass (or in emission)."""
    folder = tmp_path_factory.mktemp("faults")
    found = []
    for name in ("vision", "text"):
        model = network(name)
        for kind in KINDS:
            first = zlib.crc32(f"{kind} {name}".encode())
            for step in range(len(PASSES) + 1):
                place = (first + step) % (len(PASSES) + 1)
                outcome = plant(model, name, plain(PASSES), place, kind, folder, seed=first)
                if outcome is not None:
                    found.append(outcome)
                    break
    return found


def test_the_networks_are_right_without_a_fault(tmp_path: Path) -> None:
    import tapeout

    for name in ("vision", "text"):
        tapeout.export(network(name), plain(PASSES), output=tmp_path / "model.onnx")


def test_every_kind_is_planted(outcomes: list[Outcome]) -> None:
    assert {o.kind for o in outcomes} == set(KINDS)
    assert len(KINDS) >= 20


def test_faults_are_named(outcomes: list[Outcome]) -> None:
    right = sum(o.right for o in outcomes)
    print("\n" + "\n".join(map(str, outcomes)) + f"\n{right} of {len(outcomes)} named rightly")
    assert right >= 0.95 * len(outcomes)
