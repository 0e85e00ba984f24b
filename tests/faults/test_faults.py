"""A fault planted in a pass or in emission is named: the right pass and the right source node.

`python -m pytest tests/faults -s` prints the tally.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tapeout
from tapeout.compiler.target import Request, Target, target
from tapeout.passes.fusion import FUSION
from tests.assets import model_path, needs_assets
from tests.faults.kinds import KINDS
from tests.faults.networks import network
from tests.faults.plain_target import plain
from tests.faults.plant import Outcome, plant

# In networks of a few nodes each kind is planted in a second; these are enough for every day.
QUICK = ("weight_element", "padding_moved", "operands_swapped", "activation_wrong", "bias_dropped")
REAL = ("kws01_dscnn", "ic01_resnet8")


def planted(
    model: Any, name: str, chosen: Target, folder: Path, kinds: Iterable[str] = tuple(KINDS)
) -> Iterator[Outcome]:
    """Each kind of fault once, in a pass (or in emission) that depends on the kind's name."""
    count = len(chosen.passes(Request())) + 1
    for kind in kinds:
        first = zlib.crc32(f"{kind} {name}".encode())
        for step in range(count):
            outcome = plant(model, name, chosen, (first + step) % count, kind, folder, seed=first)
            if outcome is not None:
                yield outcome
                break


def tally(outcomes: list[Outcome]) -> None:
    """Print who was named, and hold 19 of 20."""
    right = sum(o.right for o in outcomes)
    text = "\n".join(map(str, outcomes))
    print(f"\n{text}\n{right} of {len(outcomes)} named rightly")
    assert right >= 0.95 * len(outcomes), text


def test_there_are_twenty_kinds() -> None:
    assert len(KINDS) >= 20


@pytest.mark.parametrize("name", ["vision", "text"])
@pytest.mark.parametrize("chosen", [plain(FUSION), target("tflite")], ids=lambda t: str(t.name))
def test_without_a_fault_all_is_well(name: str, chosen: Target, tmp_path: Path) -> None:
    tapeout.export(network(name), chosen, output=tmp_path / "model")


def test_common_faults_are_named(tmp_path: Path) -> None:
    tally(list(planted(network("vision"), "vision", target("tflite"), tmp_path, QUICK)))


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [plain(FUSION), target("tflite")], ids=lambda t: str(t.name))
def test_every_kind_of_fault_is_named(chosen: Target, tmp_path: Path) -> None:
    found = [o for name in ("vision", "text") for o in planted(network(name), name, chosen, tmp_path)]
    assert {o.kind for o in found} == set(KINDS)
    tally(found)


@pytest.mark.slow
@needs_assets
@pytest.mark.parametrize("name", REAL)
def test_faults_in_real_models_are_named(name: str, tmp_path: Path) -> None:
    found = list(planted(model_path(name), name, target("tflite"), tmp_path))
    assert len(found) >= 10
    tally(found)
