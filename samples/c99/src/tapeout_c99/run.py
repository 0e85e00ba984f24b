"""Runs emitted C: compiled by gcc on the host, or for a Cortex-M4 on QEMU; none where a tool is not installed."""

import json
import re
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tapeout.sdk import InternalError, InvalidModelError, Request, UsageError

Arrays = dict[str, np.ndarray[Any, Any]]
HERE = Path(__file__).parent
FLAGS = ("-std=c99", "-Wall", "-Werror", "-pedantic", "-O2")
BOARD = ("-mcpu=cortex-m4", "-mthumb", "--specs=rdimon.specs", "-T", HERE / "cortex_m.ld")
COMPILERS = {"host": ("gcc",), "cortex-m": ("arm-none-eabi-gcc", *BOARD)}
QEMU = ("qemu-system-arm", "-M", "mps2-an386", "-nographic", "-monitor", "none", "-semihosting", "-kernel")
EMULATORS = {"host": (), "cortex-m": QEMU}


def runners(artifact: Path, request: Request) -> Sequence["Compiled"]:
    tools = [COMPILERS[request.device][0], *EMULATORS[request.device][:1]]
    return (Compiled(artifact, request.device),) if all(map(shutil.which, tools)) else ()


class Compiled:
    """An artifact, compiled. Raises InvalidModelError where it is none, or not as it was written."""

    def __init__(self, artifact: Path, device: str) -> None:
        body, _, end = artifact.read_bytes().rpartition(b"/* crc32 ")
        start = re.match(rb"/\* c99 (\{.*\}) \*/\n", body)
        if start is None or end != f"{zlib.crc32(body):08x} */\n".encode():
            raise InvalidModelError(f"'{artifact.name}' is not as c99 has written it")
        self.facts, self.device, compiler = json.loads(start[1]), device, COMPILERS[device][0]
        self._folder = tempfile.TemporaryDirectory(prefix="c99-")
        source, main = artifact.absolute(), HERE / "main.c"
        self._sources = ("-include", source.with_suffix(".h"), main, source)
        version = self._call(compiler, "-dumpfullversion").strip()
        self.runtime = f"{compiler} {version}{' on QEMU' if EMULATORS[device] else ''}"

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        """The outputs for `inputs`, both keyed by the source's names."""
        return self._run(inputs, self.facts["outputs"], "out.bin")

    def tensors(self, inputs: Mapping[str, np.ndarray[Any, Any]], names: Sequence[str]) -> Arrays:
        """The tensors among `names` that kernels write."""
        found = self._run(inputs, self.facts["steps"], "trace.bin", "-DTAPEOUT_TRACE")
        return {n: found[n] for n in names if n in found}

    def _run(self, inputs: Mapping[str, Any], ports: Sequence[Any], result: str, *flags: str) -> Arrays:
        for name, dtype, shape in self.facts["inputs"]:
            if name not in inputs or inputs[name].dtype != dtype or list(inputs[name].shape) != shape:
                raise UsageError(f"input '{name}' must be given as {dtype} {shape}")
        folder = Path(self._folder.name)
        (folder / "in.bin").write_bytes(b"".join(inputs[n].tobytes() for n, _, _ in self.facts["inputs"]))
        program = folder / f"program{''.join(flags)}"
        if not program.exists():
            self._call(*COMPILERS[self.device], *FLAGS, *flags, *self._sources, "-lm", "-o", program)
        self._call(*EMULATORS[self.device], program)
        data, at, found = (folder / result).read_bytes(), 0, Arrays()
        for name, dtype, shape in ports:
            found[name] = np.frombuffer(data, dtype, int(np.prod(shape)), at).reshape(shape)
            at += found[name].nbytes
        return found

    def _call(self, *command: str | Path) -> str:
        where = {"cwd": self._folder.name, "stdin": subprocess.DEVNULL, "timeout": 600}
        done = subprocess.run(list(map(str, command)), **where, capture_output=True, text=True, check=False)
        if done.returncode:
            raise InternalError(f"'{Path(command[0]).name}' ends with {done.returncode}: {done.stderr[:500]}")
        return done.stdout
