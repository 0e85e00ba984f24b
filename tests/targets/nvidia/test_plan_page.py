"""docs/nvidia-plan.md names every section with its size, every type, and the header."""

from __future__ import annotations

import re
from pathlib import Path

from tapeout.targets.nvidia.plan import tables
from tapeout.targets.nvidia.plan.parts import DTYPES

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
