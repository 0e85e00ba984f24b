"""The publishers' int8 models of MLPerf Tiny as circuits for xc7z020, cycle by cycle and in C.

    TAPEOUT_WHOLE=1 pytest tests/targets/fpga/test_models.py

runs all of their evaluation samples and 1,000 patterns of stalls; by default there are 24 and 60.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tapeout.targets.fpga import hls, integer, verilog
from tapeout.targets.fpga.csim import CSimulation
from tapeout.targets.fpga.devices import device
from tapeout.targets.fpga.dialect import Graph
from tapeout.targets.fpga.fold import fold
from tapeout.targets.fpga.simulate import Simulation
from tests.asset_samples import samples
from tests.assets import needs_assets
from tests.extent import extent
from tests.targets.fpga.networks import circuit
from tests.targets.fpga.published import MODELS, published
from tests.targets.fpga.test_hls import needs_compiler
from tests.targets.fpga.test_verilog import needs_verilator

pytestmark = [needs_assets, needs_verilator, needs_compiler, pytest.mark.slow]
DEVICE = "xc7z020"


def folded(name: str) -> Graph:
    return fold(circuit(published(name, tail=False)), device(DEVICE))


def evaluation(graph: Graph, name: str) -> np.ndarray:
    """The codes of evaluation samples."""
    (data,) = samples(name, extent(24, 1000), "eval").values()
    port = graph.input_ports[0]
    return integer.stream(port, graph.tensors[port.tensor], np.asarray(data, np.float32))


@pytest.mark.parametrize("name", MODELS)
def test_samples_cycle_by_cycle_and_in_c(name: str, tmp_path: Path) -> None:
    graph = folded(name)
    codes = {graph.input_ports[0].tensor: evaluation(graph, name)}
    (output,) = (p.tensor for p in graph.output_ports)
    expected = integer.run(graph, codes)[output]
    assert len(expected) >= extent(24, 180)

    circuit = verilog.emit(graph, packing=device(DEVICE).packing)
    made, trace = Simulation(graph, circuit, tmp_path / "rtl").run(codes, jobs=2)
    assert np.array_equal(made[output], expected)
    assert trace.interval == pytest.approx(graph.interval, rel=0.02)

    in_c = CSimulation(graph, hls.emit(graph), tmp_path / "hls").run(codes)
    assert np.array_equal(in_c[output], expected)


def test_no_pattern_of_stalls_stops_the_skip_connections_of_resnet8(tmp_path: Path) -> None:
    """Every stream of the whole network pauses at random, each time otherwise: the same codes, and no deadlock."""
    graph = folded("ic01_resnet8")
    codes = {graph.input_ports[0].tensor: evaluation(graph, "ic01_resnet8")[:1]}
    (output,) = (p.tensor for p in graph.output_ports)
    expected = integer.run(graph, codes)[output]
    simulation = Simulation(graph, verilog.emit(graph, packing=2, stalls=True), tmp_path)
    with ThreadPoolExecutor(2) as pool:
        for made, _ in pool.map(lambda seed: simulation.run(codes, seed=seed), range(1, extent(61, 1001))):
            assert np.array_equal(made[output], expected)
