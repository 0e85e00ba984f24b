"""The standard's node cases on the targets that run here, all of them: docs/conformance/NAME.md is what a run gives
today."""

from __future__ import annotations

from pathlib import Path

import pytest

from tapeout.compiler.conformance import run_conformance

PAGES = Path(__file__).resolve().parents[2] / "docs" / "conformance"


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tflite", "openvino"])
def test_every_case_passes_or_is_refused(target: str, bless: bool) -> None:
    page = PAGES / f"{target}.md"
    report = run_conformance(target)
    assert report.ok, report.text()
    assert len(report.outcomes) == 1661
    assert report.counts()["pass"] >= 1300
    if bless:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(report.markdown(), encoding="utf-8")
    assert page.read_text(encoding="utf-8") == report.markdown(), "run pytest --bless on this test"
