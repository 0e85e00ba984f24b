"""Quantities that only OpenVINO's rows bound."""

from __future__ import annotations

from tapeout.sdk import Quantity

QUANTITIES: list[Quantity] = []
