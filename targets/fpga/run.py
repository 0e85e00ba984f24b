"""Runs a circuit's folder: its Verilog cycle by cycle, its C++ as a program."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tapeout.sdk import InternalError, InvalidModelError, Request, UsageError, file_errors
from tapeout.targets.fpga import serial
from tapeout.targets.fpga.csim import CSimulation
from tapeout.targets.fpga.dialect import Array, Graph, Port
from tapeout.targets.fpga.icarus import IcarusSimulation
from tapeout.targets.fpga.integer import run, stream, unstream
from tapeout.targets.fpga.simulate import INSTALL, Simulation

Arrays = dict[str, Array]
Run = Callable[
    [Mapping[str, Array]], Mapping[str, Array]
]  # codes of output tensors for those of input tensors
Open = Callable[[Graph, Mapping[str, bytes], Path], tuple[str, Run]]  # the runtime's name beside it


def runners(artifact: Path, request: Request) -> Sequence[Circuit]:
    """`artifact`'s Verilog in a simulator and its C++ as a program; without those whose tools are not installed,
    which a warning names."""
    graph, made = load(artifact), []
    simulator, lacking = verilog_tools()
    parts: tuple[tuple[str, str | None, Open], ...] = (
        ("the Verilog", lacking, _verilator if simulator == "verilator" else _icarus),
        ("the C++", missing("g++"), _cpp),
    )
    for part, advice, open_ in parts:
        if advice is not None:
            warnings.warn(f"{part} of '{artifact.name}' is not run: {advice}", stacklevel=2)
        else:
            made.append(Circuit(graph, request.device, artifact, open_))
    return made


def verilog_tools() -> tuple[str, str | None]:
    """The simulator to take, Verilator before Icarus, and what is missing for it with how to install it."""
    fast = shutil.which("verilator") is not None or shutil.which("iverilog") is None
    return ("verilator", missing("verilator", "g++")) if fast else ("iverilog", missing("iverilog", "vvp"))


def missing(*tools: str) -> str | None:
    """What to install of some programs; None where all are there."""
    lacking = [t for t in tools if shutil.which(t) is None]
    return "; ".join(f"{t} is not installed ({INSTALL[t]})" for t in lacking) or None


def _verilator(graph: Graph, files: Mapping[str, bytes], folder: Path) -> tuple[str, Run]:
    simulation = Simulation(graph, files, folder)
    return simulation.runtime, lambda inputs: simulation.run(inputs)[0]


def _icarus(graph: Graph, files: Mapping[str, bytes], folder: Path) -> tuple[str, Run]:
    simulation = IcarusSimulation(graph, files, folder)
    return simulation.runtime, lambda inputs: simulation.run(inputs)[0]


def _cpp(graph: Graph, files: Mapping[str, bytes], folder: Path) -> tuple[str, Run]:
    program = CSimulation(graph, files, folder, quick=True)
    return program.runtime, program.run


def load(artifact: Path) -> Graph:
    """The circuit of a folder. Raises InvalidModelError where it holds none."""
    place = artifact / serial.FILE
    with file_errors("read", place):
        return serial.load(place.read_bytes(), place.name)


def read_files(artifact: Path) -> dict[str, bytes]:
    """The files of a folder by their path in it. Raises InvalidModelError where there is no Verilog."""
    files = {p.relative_to(artifact).as_posix(): p.read_bytes() for p in artifact.rglob("*") if p.is_file()}
    if "rtl/top.v" not in files:
        raise InvalidModelError(f"'{artifact.name}' has no rtl/top.v", hint="export it again")
    return files


def inspect(artifact: Path) -> dict[str, Any]:
    """What the folder says of its circuit: the report."""
    load(artifact)
    place = artifact / "report.json"
    try:
        found = json.loads(place.read_text())
    except (OSError, ValueError) as error:
        raise InvalidModelError(f"'{place}' is damaged: {type(error).__name__}: {error}") from error
    return {"format": "fpga", **found}


class Circuit:
    """What a folder holds of a circuit, compiled in a folder of its own; every code that it gives is held against
    the circuit's integers. Raises VendorToolError where it does not compile, InvalidModelError."""

    def __init__(self, graph: Graph, device: str, artifact: Path, open_: Open) -> None:
        self._graph, self.device = graph, device
        self._folder = tempfile.TemporaryDirectory(prefix="tapeout-")
        files = read_files(artifact)
        self.runtime, self._run = open_(graph, files, Path(self._folder.name))

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        """The outputs for one inference's inputs, both keyed by the source's names.

        Raises InternalError where a code is not the one that the circuit's integers give.
        """
        tensors, ports = self._graph.tensors, self._graph.output_ports
        fed = {p.tensor: stream(p, tensors[p.tensor], given(inputs, p)) for p in self._graph.input_ports}
        made, expected = self._run(fed), run(self._graph, fed)
        for port in ports:
            _held(port.name, made[port.tensor], expected[port.tensor], self.runtime)
        return {p.name: unstream(p, tensors[p.tensor], made[p.tensor])[0] for p in ports}

    def tensors(self, inputs: Mapping[str, Array], names: Sequence[str]) -> Arrays:
        """The outputs among `names`: nothing else leaves a circuit."""
        ports = {p.name for p in self._graph.output_ports}
        return {k: v for k, v in self.run(inputs).items() if k in names and k in ports}


def _held(name: str, made: Array, expected: Array, runtime: str) -> None:
    wrong = np.argwhere(made != expected)
    if len(wrong):
        place = tuple(int(i) for i in wrong[0])
        raise InternalError(
            f"output '{name}' in {runtime}: {len(wrong):,} of {made.size:,} codes are not those of the circuit's "
            f"integers; at {list(place[1:])} (height, width, channel) {made[place]}, expected {expected[place]}",
            hint="files of the folder have changed since the export, or this is a fault of tapeout: export it again",
        )


def given(inputs: Mapping[str, Array], port: Port) -> Array:
    """The array of an input port with a batch of samples in front. Raises UsageError where there is none like it."""
    dtype = np.dtype(np.float32 if port.real else np.int8)
    found = inputs.get(port.name)
    if found is None or found.shape != port.shape or found.dtype != dtype:
        raise UsageError(f"input '{port.name}' must be given as {dtype} {list(port.shape)}")
    return found[None]
