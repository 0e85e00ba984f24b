"""docs/targets/fpga.md is what the declaration says today; `pytest --bless` rewrites it."""

from __future__ import annotations

from pathlib import Path

from tapeout.compiler.support_table import support_table
from tapeout.compiler.target import Request
from tapeout.targets.fpga import TARGET, declaration
from tapeout.targets.fpga.lower import LOWERINGS, REAL

PAGE = Path(__file__).resolve().parents[3] / "docs" / "targets" / "fpga.md"


def test_the_page_is_up_to_date(bless: bool) -> None:
    page = support_table(declaration("xc7z020"), TARGET.passes(Request("int8", "xc7z020")))
    if bless:
        PAGE.write_text(page, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page, "run pytest --bless on this test"


def test_every_row_has_a_lowering() -> None:
    rows = {row.lower for found in declaration("xc7z020").rows.values() for row in found}
    assert rows == {*LOWERINGS, *REAL, "reshape", "transpose"}
