"""`tapeout bench` of a circuit: the cycles that a simulation counts, at the clock that the device's data assume."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tapeout.sdk import Request, UsageError
from tapeout.targets.fpga.devices import device
from tapeout.targets.fpga.dialect import Array
from tapeout.targets.fpga.icarus import IcarusSimulation
from tapeout.targets.fpga.integer import stream
from tapeout.targets.fpga.run import load, read_files, verilog_tools
from tapeout.targets.fpga.simulate import Simulation

INFERENCES = 4  # streamed one after another: what comes after the first is the pace


def timers(artifact: Path, request: Request, hint: str | None) -> Sequence[CycleTimer]:
    """The simulator that is installed; none where there is none. Raises UsageError for a hint."""
    if hint is not None:
        raise UsageError(f"--hint {hint}: a circuit has one pace", hint="leave it out")
    return (CycleTimer(artifact, request.device),) if verilog_tools()[1] is None else ()


class CycleTimer:
    """A circuit's Verilog in a simulator, timed by its own clock."""

    def __init__(self, artifact: Path, name: str) -> None:
        self._graph, self._device = load(artifact), device(name)
        self._folder = tempfile.TemporaryDirectory(prefix="tapeout-")
        kind = Simulation if verilog_tools()[0] == "verilator" else IcarusSimulation
        self._simulation = kind(self._graph, read_files(artifact), Path(self._folder.name))
        self.runtime = self._simulation.runtime

    def measure(self, feed: Mapping[str, Array], runs: int) -> tuple[list[float], float]:
        """Milliseconds from the first input beat of one inference to its last output beat, and how many end in a
        second; both at the assumed clock, which `runtime` says with the cycles."""
        tensors, count = self._graph.tensors, min(max(runs, 2), INFERENCES)
        fed = {}
        for port in self._graph.input_ports:
            real = port.real or np.issubdtype(feed[port.name].dtype, np.floating)  # inputs of the source
            array = np.repeat(feed[port.name].reshape(1, *port.shape), count, axis=0)
            fed[port.tensor] = stream(replace(port, real=real), tensors[port.tensor], array)
        trace = self._simulation.run(fed)[1]
        clock = self._device.mhz
        self.runtime = (
            f"{self._simulation.runtime}: {trace.interval:,.0f} cycles an inference, {trace.latency:,} through all "
            f"layers, at an assumed {clock} MHz"
        )
        return [trace.latency / clock / 1000], clock * 1e6 / trace.interval
