"""Simulates a circuit with Icarus Verilog, where Verilator is not installed: the same numbers, much slower."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tapeout.sdk import VendorToolError
from tapeout.targets.fpga.dialect import Array, Graph
from tapeout.targets.fpga.netlist import port_names
from tapeout.targets.fpga.project import beats, testbench
from tapeout.targets.fpga.simulate import Trace, called, tool, version, write


class IcarusSimulation:
    """A circuit in Icarus Verilog, its files (`verilog.emit`) in `folder`. Raises VendorToolError where a tool is
    missing or refuses it."""

    def __init__(self, graph: Graph, circuit: Mapping[str, bytes], folder: Path) -> None:
        self.graph, self.folder = graph, folder
        self._compiler, self._runner = tool("iverilog"), tool("vvp")
        self._sources = sorted(p for p in circuit if p.startswith("rtl/") and p.endswith(".v"))
        write({**circuit, "testbench.v": testbench(graph)}, folder)
        self.runtime = version(self._compiler, "-V")

    def run(self, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], Trace]:
        """As Simulation.run, without stalls."""
        samples = len(next(iter(inputs.values())))
        sources, sinks = port_names(self.graph)
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            for axis, port in zip(sources, self.graph.input_ports, strict=True):
                (Path(place) / f"{axis}.hex").write_bytes(beats(inputs[port.tensor], port.lanes))
            parameters = [f"-Ptestbench.SAMPLES={samples}", f'-Ptestbench.FOLDER="{place}"']
            program = f"{place}/testbench"
            command = [self._compiler, "-g2005", "-s", "testbench", *parameters, "-o", program]
            called([*command, *self._sources, "testbench.v"], self.folder, "the circuit does not compile")
            said = called([self._runner, "-n", program], self.folder, "the simulation fails")
            found = re.search(r"the first after (\d+) cycles, all after (\d+)", said)
            if found is None:
                raise VendorToolError(f"the simulation fails: {said.strip().splitlines()[-1]}")
            made = {}
            for axis, port in zip(sinks, self.graph.output_ports, strict=True):
                words = bytes.fromhex((Path(place) / f"{axis}.out").read_text().replace("\n", ""))
                codes = np.frombuffer(words, np.int8).reshape(-1, port.lanes)[:, ::-1].astype(np.int64)
                made[port.tensor] = codes.reshape(samples, *self.graph.tensors[port.tensor].shape)
        first, last = map(int, found.groups())
        return made, Trace(first, (last - first) / (samples - 1) if samples > 1 else 0.0, {})
