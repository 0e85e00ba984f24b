"""Runs Arm's compiler Vela on an emitted file, in a process of its own, and reads what it says of the result.

Vela can crash without a word (an int4 convolution ends it by SIGFPE): its exit status is all that counts.
"""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from tapeout.sdk import Finished, MissingToolError, Request, UsageError, VendorToolError, source_name

COMMANDS = b"ethos-u\0"  # the name of the operator that holds the NPU's commands
SECONDS = 1800
# Options of the target that go to Vela as they are.
OPTIONS = ("optimise", "system-config", "memory-mode", "config", "arena-cache-size")
INSTALL = "pip install 'tapeout[vela]' (the package ethos-u-vela)"

_OPERATOR = re.compile(r"^\s+(NPU|CPU): (\S+) = (.*) \(outputs .*\)$")

_LEFT = re.compile(r"^Warning \(supported operators\) operator: (\w+), ofm: '(.*)'$", re.MULTILINE)
_COUNT = re.compile(r"^(NPU|CPU) operators = (\d+) ", re.MULTILINE)


@dataclass(frozen=True)
class Compiled:
    """What Vela has made: the file, each operator as (NPU or CPU, kind, tensor), and the row of its summary."""

    content: bytes
    operators: tuple[tuple[str, str, str], ...]
    summary: dict[str, Any]

    def on(self, place: str) -> list[tuple[str, str]]:
        return [(kind, name) for where, kind, name in self.operators if where == place]


def finish(artifact: Path, model: ir.Model, request: Request) -> Finished:
    """Compile `artifact`, which `model` was emitted as. Raises VendorToolError, UsageError."""
    made = compile_file(artifact, request.device, request.options)
    names = {v.name: source_name(n) for n in model.graph for v in n.outputs}
    hosted = [f"{kind} '{names.get(tensor, tensor)}'" for kind, tensor in made.on("CPU")]
    npu, total = len(made.on("NPU")), len(made.operators)
    s = made.summary
    cycles, rate = int(float(s["cycles_total"])), float(s["inferences_per_second"])
    facts = {
        "tool": f"ethos-u-vela {version()}",
        "placement": {"npu": npu, "cpu": total - npu, "on_cpu": hosted},
        "cycles": {"total": cycles, "npu": int(float(s["cycles_npu"]))},
        "inferences_per_second": rate,
        "memory": {
            "sram_bytes": _bytes(s["sram_memory_used"]),
            "flash_bytes": _bytes(s["off_chip_flash_memory_used"]) + _bytes(s["on_chip_flash_memory_used"]),
        },
        "macs": int(float(s["nn_macs"])),
        "system": {"config": s["system_config"], "memory_mode": s["memory_mode"]},
    }
    used = f"{cycles:,} cycles ({1000 / rate:.2f} ms by Vela's estimate)" if rate else f"{cycles:,} cycles"
    line = (
        f"{npu} of {total} operators on {request.device}, {used}, SRAM {float(s['sram_memory_used']):.1f} KiB"
    )
    return Finished(made.content, facts, hosted, line)


def version() -> str:
    return importlib.metadata.version("ethos-u-vela")


def _bytes(kibibytes: str) -> int:
    return round(float(kibibytes) * 1024)


def command() -> str:
    """The path of the program. Raises MissingToolError where it is not installed."""
    beside = Path(sys.executable).with_name("vela")
    found = str(beside) if beside.exists() else shutil.which("vela")
    if found is None or importlib.util.find_spec("ethosu") is None:
        raise MissingToolError("Arm's compiler Vela is not installed here", hint=INSTALL)
    return found


def compile_file(artifact: Path, device: str, options: Any = None) -> Compiled:
    """Run Vela for `device`. Raises VendorToolError where it is missing, fails or crashes, UsageError for an
    option that it has not."""
    arguments = ["--accelerator-config", device, *_options(options or {})]
    listed = _run(artifact, [*arguments, "--show-cpu-operations"])
    if not isinstance(listed, str):
        return listed
    # The list of operators is what fails where a CPU operator follows one whose shape the NPU has changed.
    made = _run(artifact, arguments)
    if isinstance(made, str):
        raise VendorToolError(f"Vela {made}")
    return made


def _run(artifact: Path, arguments: list[str]) -> Compiled | str:
    """What Vela makes, or how it failed."""
    with tempfile.TemporaryDirectory(prefix="tapeout-") as folder:
        source = Path(folder, "model.tflite")
        shutil.copyfile(artifact, source)
        line = [command(), str(source), "--output-dir", folder, *arguments]
        try:
            done = subprocess.run(line, capture_output=True, text=True, timeout=SECONDS, cwd=folder)
        except subprocess.TimeoutExpired:
            raise VendorToolError(f"Vela did not finish within {SECONDS} s") from None
        except OSError as error:
            raise VendorToolError(f"Vela cannot be run: {error.strerror or error}", hint=INSTALL) from error
        made = Path(folder, "model_vela.tflite")
        if done.returncode != 0 or not made.exists():
            return f"{_how(done.returncode)}: {_last(done.stdout + done.stderr)}"
        return Compiled(made.read_bytes(), _operators(done.stdout), _summary(Path(folder)))


def _operators(said: str) -> tuple[tuple[str, str, str], ...]:
    """Every operator that is listed; else those that warnings name, and as many more as are counted."""
    found = [m.groups() for line in said.splitlines() if (m := _OPERATOR.match(line))]
    if not found:
        found = [("CPU", *m.groups()) for m in _LEFT.finditer(said)]
        for where, count in _COUNT.findall(said):
            known = sum(f[0] == where for f in found)
            found += [(where, "operator", "")] * max(int(count) - known, 0)
    return tuple((str(where), str(kind), str(tensor)) for where, kind, tensor in found)


def _options(options: Any) -> list[str]:
    made: list[str] = []
    for key, value in options.items():
        if key == "threads":
            continue
        if key not in OPTIONS:
            raise UsageError(f"ethos-u has no option '{key}'; it has {', '.join(OPTIONS)}")
        made += [f"--{key}", value]
    return made


def _summary(folder: Path) -> dict[str, Any]:
    for path in sorted(folder.glob("*_summary_*.csv")):
        with path.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        if rows:
            return rows[-1]
    raise VendorToolError("Vela wrote no summary")


def _how(status: int) -> str:
    """An exit status in words; a shell reports a signal as 128 more than its number."""
    number = -status if status < 0 else status - 128 if status > 128 else 0
    if number:
        try:
            return f"crashed ({signal.Signals(number).name})"
        except ValueError:
            pass
    return f"failed (exit {status})"


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("Warning")]
    return lines[-1] if lines else "it said nothing"
