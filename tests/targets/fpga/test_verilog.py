"""The Verilog of circuits, simulated cycle by cycle, is bit for bit what the integers say."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tapeout.targets.fpga import verilog
from tapeout.targets.fpga.depths import with_depths
from tapeout.targets.fpga.dialect import Graph
from tapeout.targets.fpga.simulate import Simulation
from tests.extent import extent
from tests.targets.fpga.circuits import Maker, cnn, every_kind, mlp, reference, residual

needs_verilator = pytest.mark.skipif(
    shutil.which("verilator") is None or shutil.which("g++") is None,
    reason="Verilator simulates: apt-get install verilator g++",
)


def check(graph: Graph, maker: Maker, simulation: Simulation, seeds: range, samples: int = 3) -> None:
    codes = maker.codes(samples)
    expected = reference(graph, codes)
    for seed in seeds:
        made, _ = simulation.run(codes, seed=seed)
        for name, right in expected.items():
            assert len(np.unique(right)) > 1
            assert np.array_equal(made[name], right), f"{name} with seed {seed}"


@needs_verilator
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(extent(2, 6)))
def test_every_kind_of_node_under_stalls(seed: int, tmp_path: Path) -> None:
    maker = every_kind(seed)
    graph = maker.graph()
    circuit = verilog.emit(graph, packing=1 + seed % 2, stalls=True)
    check(graph, maker, Simulation(graph, circuit, tmp_path, quick=True), range(4))


@needs_verilator
@pytest.mark.parametrize(
    "network", [mlp, *(pytest.param(n, marks=pytest.mark.slow) for n in (cnn, residual))]
)
def test_small_networks_under_stalls(network: type[Maker], tmp_path: Path) -> None:
    maker = network()
    graph = with_depths(maker.graph())
    circuit = verilog.emit(graph, packing=2, stalls=True)
    check(graph, maker, Simulation(graph, circuit, tmp_path, quick=True), range(20))


def test_emission_is_deterministic() -> None:
    first, second = (verilog.emit(with_depths(residual().graph()), packing=2) for _ in range(2))
    assert first == second and "rtl/top.v" in first
