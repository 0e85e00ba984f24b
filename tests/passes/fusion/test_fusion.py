"""Text tests of the fusions."""

from __future__ import annotations

import pytest

from tapeout.passes.fusion import FUSION
from tests.passtext import Case, cases, check


@pytest.mark.parametrize("case", cases(__file__), ids=str)
def test_text(case: Case, bless: bool) -> None:
    check(case, {"fusion": FUSION}, bless)
