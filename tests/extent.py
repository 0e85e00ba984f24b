"""How much of a long test runs: what CI has time for, or with TAPEOUT_WHOLE=1 all that the project promises."""

from __future__ import annotations

import os

WHOLE = os.environ.get("TAPEOUT_WHOLE", "") == "1"


def extent(usual: int, whole: int) -> int:
    """`whole` where TAPEOUT_WHOLE=1 is set, else `usual`."""
    return whole if WHOLE else usual
