"""Faults planted in the plugin by script: a few of each kind here, as many as asked by `tests.faults.mutate_target`."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import pytest

from tapeout.targets import tflite
from tests.faults import mutate_target
from tests.faults.mutants import Site, rows

KINDS = {
    "axis permuted", "zero point shifted", "padding side swapped", "rounding mode", "attribute ignored",
    "scale of one channel", "off-by-one in a bound", "refused operator accepted", "accepted operator dropped",
    "weight transposed", "bias lost", "state not reset", "output order", "dtype narrowed", "layout flag",
}  # fmt: skip


def test_a_mutated_declaration_differs_in_one_bound() -> None:
    plain = tflite.TARGET.declaration("cpu")
    site = Site(rows.OFF, "Acos row 1", "rank.*.max", "+1")
    assert site in set(rows.sites(plain))
    made = rows.mutated(plain, site)
    assert made.rows["Acos"][0].rank["*"].max == 7 and plain.rows["Acos"][0].rank["*"].max == 6
    assert made.rows["Asin"] == plain.rows["Asin"]


@pytest.mark.slow
def test_one_fault_of_each_kind(tmp_path: Path) -> None:
    path = tmp_path / "corpus"
    found = mutate_target.corpus(450)
    path.write_bytes(pickle.dumps(found))
    assert set(mutate_target.sampled(found, 0)) == KINDS
    verdicts = mutate_target.run(len(KINDS), 0, path, show=lambda text: None)
    tally = Counter(v.status for v in verdicts)
    # Of a seventh of the kit's cases; of all of them 97 in 100 are caught (docs/conformance.md).
    assert tally["caught"] >= len(KINDS) - 3, [v for v in verdicts if v.status == "missed"]
