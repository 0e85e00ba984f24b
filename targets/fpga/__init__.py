"""The FPGA target: circuits in Verilog, verified cycle by cycle against the quantized graph."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tapeout.sdk import Quantity, declarations


def _quantities() -> Iterable[Quantity]:
    from tapeout.targets.fpga.quantities import QUANTITIES

    return QUANTITIES


declaration = declarations(Path(__file__).with_name("target.toml"), _quantities)
