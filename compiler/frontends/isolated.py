"""Runs a front end's script in an interpreter of its own: a framework that is large, crashes or is not trusted
stays outside this process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from tapeout.compiler.errors import (
    InternalError,
    InvalidModelError,
    ResourceError,
    TapeoutError,
    UnsupportedError,
    UsageError,
    VendorToolError,
)

Array = np.ndarray[Any, Any]
STEPS = Path(__file__).parent / "steps"
_KINDS: dict[str, type[TapeoutError]] = {
    c.kind: c for c in (InvalidModelError, ResourceError, UnsupportedError, UsageError)
}


@contextmanager
def about(path: Path) -> Iterator[None]:
    """Failures of the block name the model file."""
    try:
        yield
    except TapeoutError as error:
        error.message = f"'{path}': {error.message}"
        error.args = (error.message,)
        raise


class Isolated:
    """A script of `steps/` that runs while this context is open. `name` is the framework, `extra` the extra of
    tapeout that installs it, `variable` the environment variable that names another interpreter."""

    def __init__(
        self, script: str, folder: Path, *, name: str, extra: str, variable: str, threads: int | None = None
    ) -> None:
        self._script, self._folder = STEPS / script, folder
        self._name, self._extra, self._variable = name, extra, variable
        self._threads = threads
        self._process: subprocess.Popen[str] | None = None
        self._log: IO[str] | None = None
        self._count = 0

    def __enter__(self) -> Isolated:
        return self

    def __exit__(self, *_: object) -> None:
        process = self._process
        if process is not None:
            if process.stdin is not None and process.poll() is None:
                process.stdin.close()
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
        if self._log is not None:
            self._log.close()

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """The answer to a request. Raises what the script refused with, VendorToolError where it is missing or
        has died, InternalError where it failed in a way that nobody foresaw."""
        process = self._started()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None
        line = process.stdout.readline()
        if not line:
            raise self._died()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise self._error(answer["error"])
        return dict(answer["result"])

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """What the original computes for `feed`."""
        self._count += 1
        given, made = (self._folder / f"{kind}{self._count}.npz" for kind in ("feed", "result"))
        np.savez(given, **feed)  # type: ignore[arg-type]
        self.ask("run", feed=str(given), result=str(made))
        with np.load(made, allow_pickle=False) as found:
            return dict(found)

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            interpreter = os.environ.get(self._variable) or sys.executable
            self._log = open(self._folder / "log", "w+", encoding="utf-8", errors="replace")  # noqa: SIM115
            try:
                self._process = subprocess.Popen(
                    [interpreter, "-I", str(self._script)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._log,
                    cwd=self._folder,
                    env=self._environment(),
                    text=True,
                    encoding="utf-8",
                )
            except OSError as error:
                raise VendorToolError(
                    f"the interpreter '{interpreter}' does not start: {error.strerror}",
                    hint=f"{self._variable} names the Python that has {self._name}",
                ) from error
        return self._process

    def _environment(self) -> dict[str, str]:
        made = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        made |= {
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "TF_ENABLE_ONEDNN_OPTS": "0",
            "CUDA_VISIBLE_DEVICES": "",
            "KERAS_BACKEND": "tensorflow",
            "KERAS_HOME": str(self._folder),
            "PYTHONHASHSEED": "0",
        }
        if self._threads is not None:
            made["OMP_NUM_THREADS"] = str(self._threads)
        return made

    def _error(self, error: Mapping[str, Any]) -> TapeoutError:
        message, hint = str(error["message"]), error["hint"]
        if error["kind"] == "missing":
            return self._missing(message)
        kind = _KINDS.get(error["kind"])
        if kind is None:
            return InternalError(f"reading the model with {self._name} failed: {message}")
        return kind(message, hint=hint)

    def _missing(self, packages: str) -> VendorToolError:
        return VendorToolError(
            f"{self._name} is needed to read this model, and {packages} is not installed",
            hint=f"pip install 'tapeout[{self._extra}]', or name a Python that has it in {self._variable}",
        )

    def _died(self) -> VendorToolError:
        assert self._process is not None and self._log is not None
        code = self._process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        self._log.seek(0)
        last = [line.strip() for line in self._log.read()[-4000:].splitlines() if line.strip()][-1:]
        absent = re.match(r"ModuleNotFoundError: No module named '([\w.]+)'", last[0]) if last else None
        if absent is not None:
            return self._missing(absent[1])
        return VendorToolError(
            f"{self._name} ended with {how} while it read the model" + (f": {last[0][:300]}" if last else "")
        )
