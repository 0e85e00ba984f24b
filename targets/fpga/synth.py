"""What yosys makes of a circuit's Verilog: counts, not a promise of the vendor's tools."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tapeout.sdk import UsageError
from tapeout.targets.fpga.devices import Device
from tapeout.targets.fpga.project import SYNTHESIS
from tapeout.targets.fpga.simulate import called, tool, version, write

# What a cell counts as, and how many of it; memories are of 18 kbit.
CELLS = {
    "multipliers": {"DSP48E1": 1, "DSP48E2": 1, "MULT18X18D": 1},
    "memories": {
        "RAMB18E1": 1, "RAMB18E2": 1, "RAMB36E1": 2, "RAMB36E2": 2, "DP16KD": 1, "PDPW16KD": 1,
    },
    "lookup_tables": {
        **{f"LUT{i}": 1 for i in range(1, 7)}, "RAM32M": 4, "RAM32M16": 8, "RAM64M": 4, "RAM64M8": 8,
        "SRL16E": 1, "SRLC32E": 1, "TRELLIS_DPR16X4": 2, "CCU2C": 2,
    },
    "registers": {"FDRE": 1, "FDSE": 1, "FDCE": 1, "FDPE": 1, "TRELLIS_FF": 1},
}  # fmt: skip


def wanted(options: Mapping[str, str]) -> bool:
    """Option `synth`. Raises UsageError for other values than true and false."""
    text = options.get("synth", "false")
    if text not in ("true", "false"):
        raise UsageError(f"option synth: '{text}', expected true or false")
    return text == "true"


def counts(circuit: Mapping[str, bytes], device: Device) -> dict[str, Any]:
    """The cells of a circuit (`verilog.emit`) by kind, and the tool that counted them. It takes minutes.

    Raises VendorToolError where yosys is missing or refuses the circuit.
    """
    yosys = tool("yosys")
    with tempfile.TemporaryDirectory() as name:
        write(circuit, Path(name))
        script = f"read_verilog -defer rtl/*.v; {SYNTHESIS[device.family]} -top top; tee -q -o stat.txt stat"
        called([yosys, "-q", "-p", script], Path(name), "the circuit is not synthesised")
        found = tally((Path(name) / "stat.txt").read_text())
    return {"tool": version(yosys, "-V"), **found}


def tally(text: str) -> dict[str, int]:
    """The sums of a report of yosys over one module: lines of a cell's type and its number."""
    cells = {kind: int(n) for kind, n in re.findall(r"^ +(\w+) +(\d+)$", text, re.MULTILINE)}
    return {what: sum(n * cells.get(kind, 0) for kind, n in rows.items()) for what, rows in CELLS.items()}
