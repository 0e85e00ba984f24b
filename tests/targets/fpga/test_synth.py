"""Counts of yosys: how they are read, and what it makes of a small circuit."""

from __future__ import annotations

import shutil

import pytest

from tapeout.sdk import UsageError
from tapeout.targets.fpga import synth, verilog
from tapeout.targets.fpga.devices import device
from tests.targets.fpga.circuits import Maker

needs_yosys = pytest.mark.skipif(shutil.which("yosys") is None, reason="synthesis: apt-get install yosys")


def test_cells_are_counted_by_kind() -> None:
    text = "     DSP48E1     3\n     RAMB18E1    2\n     RAMB36E1    1\n     LUT6   10\n     RAM32M  2\n     FDRE 7\n"
    expected = {"multipliers": 3, "memories": 4, "lookup_tables": 18, "registers": 7}
    assert synth.tally(text) == expected


def test_the_option_is_true_or_false() -> None:
    assert synth.wanted({"synth": "true"}) and not synth.wanted({})
    with pytest.raises(UsageError, match="expected true or false"):
        synth.wanted({"synth": "yes"})


@needs_yosys
@pytest.mark.slow
def test_a_small_circuit_keeps_its_tables_and_multipliers() -> None:
    """Each pair of filters shares a multiplier, the requantizer has two; a table lies in a memory of its own."""
    maker = Maker(0)
    maker.dense(maker.input(1, 1, 16), 8, tables=True)
    graph = maker.graph()
    (node,) = graph.nodes
    made = synth.counts(verilog.emit(graph, packing=2), device("xc7z020"))
    assert made["memories"] >= 1 and made["multipliers"] >= -(-node.pe // 2) * node.simd  # type: ignore[attr-defined]
