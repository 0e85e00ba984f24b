"""The command line as a user runs it: a process of its own, its answer, its seconds and its memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Exported:
    """How `tapeout export` ended: exit code, seconds on the clock and of processors, its largest resident set in bytes,
    its JSON answer (empty where it gave none) and what it said on standard error."""

    code: int
    seconds: float
    processor: float
    peak: int
    answer: dict[str, Any]
    said: str

    def must(self) -> dict[str, Any]:
        """The answer. Raises RuntimeError with the end of what was said where the export failed."""
        if self.code:
            raise RuntimeError(f"exit code {self.code}: {self.said[-500:]}")
        return self.answer


def export(model: Path, target: str, out: Path, *options: object) -> Exported:
    """Runs `tapeout export MODEL --target TARGET -o OUT --json OPTIONS`."""
    command = [
        sys.executable,
        "-m",
        "tapeout",
        "export",
        str(model),
        "--target",
        target,
        "-o",
        str(out),
        "--json",
    ]
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        process = subprocess.Popen([*command, *map(str, options)], stdout=output, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        answer, said = output.read(), errors.read().strip()
    found = json.loads(answer) if answer.lstrip().startswith("{") else {}
    return Exported(
        process.returncode, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, found, said
    )
