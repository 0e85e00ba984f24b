"""Runs emitted C: compiled by gcc on the host, or for a Cortex-M4 on QEMU; none where a tool is not installed."""

import json
import math
import re
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tapeout.sdk import InternalError, InvalidModelError, Port, Request, UsageError

Arrays = dict[str, np.ndarray[Any, Any]]
HERE = Path(__file__).parent
FLAGS = ("-std=c99", "-Wall", "-Werror", "-pedantic", "-O2", "-DTAPEOUT_TRACE")
BOARD = ("-mcpu=cortex-m4", "-mthumb", "--specs=rdimon.specs", "-T", HERE / "cortex_m.ld")
QEMU = ("qemu-system-arm", "-M", "mps2-an386", "-nographic", "-monitor", "none", "-semihosting", "-kernel")
TOOLS = {"host": (("gcc",), ()), "cortex-m": (("arm-none-eabi-gcc", *BOARD), QEMU)}  # a compiler, an emulator


def runners(artifact: Path, request: Request) -> Sequence["Compiled"]:
    tools = [command[0] for command in TOOLS[request.device] if command]
    return (Compiled(artifact, request.device),) if all(map(shutil.which, tools)) else ()


class Compiled:
    """An artifact, compiled. Raises InvalidModelError where it is none, or not as it was written."""

    quantized = True

    def __init__(self, artifact: Path, device: str) -> None:
        body, _, end = artifact.read_bytes().rpartition(b"/* crc32 ")
        start = re.match(rb"/\* c99 (\[.*\]) \*/\n", body)
        if start is None or end != f"{zlib.crc32(body):08x} */\n".encode():
            raise InvalidModelError(f"'{artifact.name}' is not as c99 has written it")
        facts = [[Port(n, t, tuple(s), *grid) for n, t, s, *grid in ports] for ports in json.loads(start[1])]
        self._inputs, self._outputs, self._steps = facts
        (compiler, *board), self._emulator = TOOLS[device]
        self._folder = tempfile.TemporaryDirectory(prefix="c99-")
        source = artifact.absolute()
        sources = ("-include", source.with_suffix(".h"), HERE / "main.c", source)
        self._call(compiler, *board, *FLAGS, *sources, "-lm", "-o", "program")
        version = self._call(compiler, "-dumpfullversion").strip()
        self.device, self.runtime = device, f"{compiler} {version}{' on QEMU' if self._emulator else ''}"

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        """The outputs for `inputs`, both keyed by the source's names."""
        return self.tensors(inputs, [port.name for port in self._outputs])

    def tensors(self, inputs: Mapping[str, np.ndarray[Any, Any]], names: Sequence[str]) -> Arrays:
        """The tensors among `names` that kernels write, and outputs."""
        for name, dtype, shape in ((port.name, port.dtype, port.shape) for port in self._inputs):
            if name not in inputs or inputs[name].dtype != dtype or inputs[name].shape != shape:
                raise UsageError(f"input '{name}' must be given as {dtype} {list(shape)}")
        folder, found, at = Path(self._folder.name), Arrays(), 0
        (folder / "in.bin").write_bytes(b"".join(inputs[port.name].tobytes() for port in self._inputs))
        self._call(*self._emulator, folder / "program")
        data = (folder / "out.bin").read_bytes()
        for port in (*self._steps, *self._outputs):
            array = np.frombuffer(data, port.dtype, math.prod(port.shape), at).reshape(port.shape)
            found[port.name], at = array, at + array.nbytes
        return {name: found[name] for name in names if name in found}

    def ports(self) -> tuple[list[Port], list[Port]]:
        return self._inputs, self._outputs

    def names(self) -> list[str]:
        return [port.name for port in self._steps]

    def _call(self, *command: str | Path) -> str:
        where = {"cwd": self._folder.name, "stdin": subprocess.DEVNULL, "timeout": 600}
        done = subprocess.run(list(map(str, command)), **where, capture_output=True, text=True, check=False)
        if done.returncode:
            raise InternalError(f"'{Path(command[0]).name}' ends with {done.returncode}: {done.stderr[:500]}")
        return done.stdout
