"""The files beside a circuit: golden vectors, the testbench that compares with them, scripts for synthesis."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tapeout.targets.fpga import hls, project, verilog
from tapeout.targets.fpga.depths import with_depths
from tapeout.targets.fpga.devices import device
from tapeout.targets.fpga.dialect import Graph
from tapeout.targets.fpga.icarus import IcarusSimulation
from tapeout.targets.fpga.simulate import write
from tests.targets.fpga.circuits import reference, residual
from tests.targets.fpga.test_hls import needs_compiler
from tests.targets.fpga.test_verilog import needs_verilator

needs_icarus = pytest.mark.skipif(
    shutil.which("iverilog") is None, reason="Icarus Verilog simulates: apt-get install iverilog"
)


def folder(graph: Graph, place: Path) -> Path:
    write({**verilog.emit(graph), **hls.emit(graph), **project.emit(graph, device("xc7z020"))}, place)
    return place


def icarus(place: Path) -> str:
    sources = [str(p) for p in sorted((place / "rtl").glob("*.v"))]
    command = ["iverilog", "-g2005", "-s", "testbench", "-o", "testbench", *sources, "testbench.v"]
    subprocess.run(command, cwd=place, check=True)
    return subprocess.run(
        ["vvp", "-n", "testbench"], cwd=place, check=True, capture_output=True, text=True
    ).stdout


@needs_icarus
def test_the_testbench_compares_with_the_golden_vectors(tmp_path: Path) -> None:
    place = folder(with_depths(residual().graph()), tmp_path)
    assert "4 inferences, 0 wrong beats" in icarus(place)
    vectors = place / "vectors" / "m_axis.hex"
    lines = vectors.read_text().split()
    lines[3] = f"{int(lines[3], 16) ^ 1:0{len(lines[3])}x}"
    vectors.write_text("\n".join(lines) + "\n")
    assert "4 inferences, 1 wrong beats" in icarus(place)


@needs_icarus
def test_icarus_stands_in_for_verilator(tmp_path: Path) -> None:
    maker = residual()
    graph, codes = with_depths(maker.graph()), maker.codes(3)
    made, trace = IcarusSimulation(graph, verilog.emit(graph, packing=2), tmp_path).run(codes)
    for name, right in reference(graph, codes).items():
        assert np.array_equal(made[name], right), name
    assert trace.latency > trace.interval > 0


@needs_icarus
def test_a_skip_connection_without_its_depth_stands_still(tmp_path: Path) -> None:
    assert "no beat moved" in icarus(folder(residual().graph(), tmp_path))


@needs_verilator
@needs_compiler
@pytest.mark.slow
def test_the_script_simulates_both(tmp_path: Path) -> None:
    place = folder(with_depths(residual().graph()), tmp_path)
    done = subprocess.run(["sh", "simulate.sh"], cwd=place, check=True, capture_output=True, text=True)
    assert "4 inferences, 0 wrong beats" in done.stdout and "C++: 4 inferences as expected" in done.stdout


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("xc7z020", {"synthesis/vivado.tcl", "synthesis/openxc7.sh"}),
        ("xcu250", {"synthesis/vivado.tcl"}),
        ("ecp5-85", {"synthesis/nextpnr.sh"}),
    ],
)
def test_scripts_of_a_device(name: str, expected: set[str]) -> None:
    made = project.emit(residual().graph(), device(name))
    scripts = {p for p in made if p.startswith("synthesis/")}
    assert scripts == expected | {"synthesis/yosys.ys"}
    assert made == project.emit(residual().graph(), device(name))
