"""What circuits are predicted to take, against what yosys makes of their Verilog."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tapeout.targets.fpga import verilog
from tapeout.targets.fpga.devices import device
from tapeout.targets.fpga.fold import fold, total
from tapeout.targets.fpga.simulate import write
from tests.targets.fpga.test_fold import residual

needs_yosys = pytest.mark.skipif(shutil.which("yosys") is None, reason="yosys is not installed")
SCRIPT = (
    "read_verilog -defer rtl/*.v; hierarchy -top top; "
    "synth_xilinx -family xc7 -noiopad -flatten -top top; tee -o stat.txt stat"
)


@pytest.mark.slow
@needs_yosys
def test_multipliers_and_memories_are_exact(tmp_path: Path) -> None:
    """Lookup tables within 15%: their formula is a fit."""
    place = replace(device("xc7z020"), dsp=60)
    graph = fold(residual()[1], place)
    write(verilog.emit(graph, packing=place.packing), tmp_path)
    subprocess.run(["yosys", "-q", "-p", SCRIPT], cwd=tmp_path, check=True, capture_output=True, timeout=1800)
    text = (tmp_path / "stat.txt").read_text()
    cells = {m[1]: int(m[2]) for m in re.finditer(r"^\s+([A-Z][A-Z0-9_]+)\s+(\d+)$", text, re.MULTILINE)}
    tables = sum(n for kind, n in cells.items() if re.fullmatch(r"LUT\d", kind))
    tables += sum(4 * n for kind, n in cells.items() if re.fullmatch(r"RAM(32|64)M", kind))
    taken = total(graph, place)
    assert taken.dsp == cells["DSP48E1"]
    assert taken.bram == cells["RAMB18E1"] + 2 * cells["RAMB36E1"]
    assert taken.lut == pytest.approx(tables, rel=0.15)
