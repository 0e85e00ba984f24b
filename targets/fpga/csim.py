"""Runs a circuit's C++ on the machine (C-simulation): what it computes, without time."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tapeout.targets.fpga.dialect import Array, Graph
from tapeout.targets.fpga.netlist import port_names
from tapeout.targets.fpga.simulate import called, tool, version, write


class CSimulation:
    """A circuit's C++ (`hls.emit`) compiled by g++ in `folder`; `quick`: to compile rather than to run.

    Raises VendorToolError where g++ is missing or refuses it.
    """

    def __init__(
        self, graph: Graph, circuit: Mapping[str, bytes], folder: Path, *, quick: bool = False
    ) -> None:
        self.graph, self.folder = graph, folder
        compiler = tool("g++")
        write(circuit, folder)
        self.runtime = f"C-simulation, {version(compiler)}"
        level = ["-O1"] if quick else ["-O3", "-march=native"]
        command = [
            compiler,
            "-std=c++14",
            *level,
            "-w",
            "hls/top.cpp",
            "hls/testbench.cpp",
            "-o",
            "testbench",
        ]
        called(command, folder, "the circuit's C++ does not compile")

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The codes of the tensors at output ports, by name, for those at input ports, both integers [samples,
        height, width, channels]. Raises VendorToolError where it fails."""
        samples = len(next(iter(inputs.values())))
        sources, sinks = port_names(self.graph)
        with tempfile.TemporaryDirectory() as name:
            place = Path(name)
            for axis, port in zip(sources, self.graph.input_ports, strict=True):
                np.ascontiguousarray(inputs[port.tensor], np.int8).tofile(place / f"{axis}.bin")
            called(
                [str(self.folder / "testbench"), name, str(samples)], self.folder, "the C-simulation fails"
            )
            made = {}
            for axis, port in zip(sinks, self.graph.output_ports, strict=True):
                codes = np.fromfile(place / f"{axis}.bin", np.int8).astype(np.int64)
                made[port.tensor] = codes.reshape(samples, *self.graph.tensors[port.tensor].shape)
        return made
