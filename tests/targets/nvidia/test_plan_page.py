"""docs/nvidia-plan.md names every section with its size, every type, and the header."""

from __future__ import annotations

import re
from pathlib import Path

from tapeout.targets.nvidia.plan import tables
from tapeout.targets.nvidia.plan.parts import DTYPES
from tapeout.targets.nvidia.programs import OPERATORS
from tapeout.targets.nvidia.reference import KERNELS

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "nvidia-plan.md").read_text(encoding="utf-8")


def test_sections_and_their_records() -> None:
    stated = {
        n.encode(): int(size) for n, size in re.findall(r"^\| `([A-Z]{4})` \| (\d+) \|", PAGE, re.MULTILINE)
    }
    assert list(stated) == [*tables.RECORDS, tables.WEIGHTS]
    assert stated == {n: r.size for n, r in tables.RECORDS.items()} | {tables.WEIGHTS: 1}
    assert f"number of sections, {len(stated)}" in PAGE
    assert tables.HEADER.size == 64 and tables.SECTION.size == 24


def test_types() -> None:
    line = " ".join(PAGE.split())
    assert all(re.search(rf"\b{number} {name}\b", line) for name, (number, _) in DTYPES.items())


def test_operations_and_words_of_programs() -> None:
    table = PAGE[PAGE.index("## Operations") : PAGE.index("Strides and offsets count")]
    named = {
        name
        for row in re.findall(r"^\| (`[^|]*`) \|", table, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    }
    assert named == set(KERNELS)
    assert all(re.search(rf"\b{word}\b", PAGE) for word in OPERATORS)
