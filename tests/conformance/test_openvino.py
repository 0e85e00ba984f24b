"""The standard's node cases on OpenVINO, all of them: docs/conformance/openvino.md is what a run gives today."""

from __future__ import annotations

from pathlib import Path

import pytest

from tapeout.compiler.conformance import run_conformance

PAGE = Path(__file__).resolve().parents[2] / "docs" / "conformance" / "openvino.md"


@pytest.mark.slow
def test_every_case_passes_or_is_refused(bless: bool) -> None:
    report = run_conformance("openvino")
    assert report.ok, report.text()
    assert len(report.outcomes) == 1661
    assert report.counts()["pass"] >= 1300
    if bless:
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(report.markdown(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == report.markdown(), "run pytest --bless on this test"
