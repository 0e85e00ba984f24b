"""docs/targets/openvino.md is what the declaration says today; `pytest --bless` rewrites it."""

from __future__ import annotations

from pathlib import Path

from tapeout.compiler.support_table import support_table
from tapeout.compiler.target import Request
from tapeout.targets.openvino import TARGET, declaration

PAGE = Path(__file__).resolve().parents[3] / "docs" / "targets" / "openvino.md"


def test_the_page_is_up_to_date(bless: bool) -> None:
    page = support_table(declaration("cpu"), TARGET.passes(Request()))
    if bless:
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(page, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page, "run pytest --bless on this test"
