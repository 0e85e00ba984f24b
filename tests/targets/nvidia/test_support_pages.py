"""The support pages are what the declarations say today; `pytest --bless` rewrites them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tapeout.compiler.support_table import support_table
from tapeout.compiler.target import Request, target

PAGES = Path(__file__).resolve().parents[3] / "docs" / "targets"


@pytest.mark.parametrize("name", ["nvidia", "tensorrt"])
def test_the_page_is_up_to_date(name: str, bless: bool) -> None:
    found, file = target(name), PAGES / f"{name}.md"
    device = found.devices[0]
    page = support_table(found.declaration(device), found.passes(Request(device=device)))
    if bless:
        file.write_text(page, encoding="utf-8")
    assert file.read_text(encoding="utf-8") == page, "run pytest --bless on this test"
