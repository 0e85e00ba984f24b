"""Runs a case through a target, in a worker process: a crash of a runtime is one case's result."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tapeout.compiler.conformance.case import (
    ERROR,
    FAULTS,
    FINISHED,
    MATCH,
    REFUSED,
    SAME,
    SEPARATOR,
    Array,
    Case,
    Outcome,
    difference,
    line,
)
from tapeout.compiler.conformance.quantized import calibrated, difference_in_integers, is_quantized
from tapeout.compiler.conformance.report import Report
from tapeout.compiler.errors import (
    InternalError,
    InvalidModelError,
    MissingToolError,
    ResourceError,
    TapeoutError,
    UnsupportedError,
    UsageError,
)

if TYPE_CHECKING:
    import onnx_ir as ir

    from tapeout.compiler.declaration import Refusal, Row
    from tapeout.compiler.target import Request, Target

# A target by its name, or what makes it (in the worker: it must be importable there).
Source = str | Callable[[], "Target"]
Result = tuple[str, str, tuple[str, ...]]  # status, reason, runtimes
Progress = Callable[[int, int, Outcome], None]

NODE = "case"  # the node that a generated case is about
HUNG = "no answer within"
# A level is given up where so many cases in a row crash, or so many hang.
DEAD, HANGS = 40, 3


def run_case(case: Case, target: Target, keep: Path | None = None) -> tuple[Outcome, tuple[str, ...]]:
    """Compile, run and compare `case` in this process; also the runtimes that ran it.

    With `keep`, the model, its data and the artifact are left in that folder.
    """
    with tempfile.TemporaryDirectory() as folder:
        where = keep or Path(folder)
        if keep is not None:
            from tapeout.compiler.conformance.kept import write_case

            write_case(case, keep, target.name)
        path = where / f"artifact{target.suffix}"
        if case.expects == ERROR:
            from tapeout.compiler.conformance.damage import run_damaged

            status, reason, runtimes = run_damaged(case, target, path)
        elif case.expects == REFUSED:
            status, reason, runtimes = _refused(case, target, path)
        elif case.expects == SAME:
            status, reason, runtimes = _same(case, target, path)
        elif case.expects == FINISHED:
            status, reason, runtimes = _finished(case, target, path)
        else:
            status, reason, runtimes = _run(case, target, path)
    if case.expects == MATCH and status == "refused":
        status = "dropped"
    return Outcome(case.name, case.op, status, reason, case.level, case.origin), runtimes


def request_of(case: Case, target: Target) -> Request:
    """What the case asks of the target."""
    from tapeout.compiler.target import Request

    request = Request(case.scheme, case.device or target.devices[0], dict(case.options))
    return calibrated(request, case, target) if is_quantized(case) else request


def opened(case: Case, target: Target, request: Request) -> ir.Model:
    """The model as the target's passes leave it; as it is where it is legalized."""
    import onnx

    from tapeout.compiler import pipeline
    from tapeout.compiler.ir.load import from_proto

    model = from_proto(onnx.ModelProto.FromString(case.model))
    if not case.legalized:
        pipeline.run(model, target.passes(request))
    return model


def _run(case: Case, target: Target, path: Path) -> Result:
    from tapeout.compiler.target import write

    request = request_of(case, target)
    try:
        model = opened(case, target, request)
        acceptance = target.declaration(request.device).accept(model)
        if acceptance.refused:
            reasons = dict.fromkeys(str(r) for r in acceptance.refused)
            return "refused", line(SEPARATOR.join(reasons)), ()
        if case.stored and not any(in_integers(r) for n, r in acceptance.placed if n.name == NODE):
            return "refused", "taken in real numbers between conversions, not in integers", ()
        write(target, model, path, request)
    except (UnsupportedError, InvalidModelError, ResourceError, UsageError) as error:
        return "refused", line(error.message), ()
    except (InternalError, TapeoutError) as error:
        return "crash", line(error.message), ()
    except Exception as error:
        return "crash", f"{type(error).__name__}: {line(str(error))}", ()
    runtimes: list[str] = []
    try:
        for runner in target.runners(path, request):
            runtimes.append(runner.runtime)
            if case.steps and not hasattr(runner, "reset"):
                return "refused", "artifacts of this target keep no state", tuple(runtimes)
            if is_quantized(case):
                reason = difference_in_integers(case, model, target.declaration(request.device), runner)
            else:
                reason = _steps(case, runner) if case.steps else _twice(case, runner)
            if reason is not None:
                return "wrong", f"{reason} ({runner.runtime})", tuple(runtimes)
    except Exception as error:
        return "does-not-run", f"{type(error).__name__}: {line(str(error))}", tuple(runtimes)
    return "pass", "", tuple(runtimes)


def in_integers(row: Row) -> bool:
    """Whether a row names the types in which its tensors are stored."""
    return any(rule.dtypes for rule in row.ports.values())


def _twice(case: Case, runner: Any) -> str | None:
    """The case on a runner, and once more: what a run leaves behind must not be seen by the next."""
    first = runner.run(case.inputs)
    reason = difference(case, first)
    if reason is not None:
        return reason
    again = runner.run(case.inputs)
    for name, array in case.outputs.items():
        if array.size and not np.array_equal(first[name], again[name], equal_nan=array.dtype.kind == "f"):
            return f"'{name}' is another one when the artifact runs again"
    return None


def _steps(case: Case, runner: Any) -> str | None:
    """The steps in order on a runner that keeps state, and after a reset once more."""
    for turn in range(2):
        if turn:
            runner.reset()
        for step in range(case.steps):
            found = runner.run({k: v[step] for k, v in case.inputs.items()})
            part = {k: v[step] for k, v in case.outputs.items()}
            reason = difference(_with(case, part), found)
            if reason is not None:
                return f"step {step + 1}{' after a reset' if turn else ''}: {reason}"
    return None


def _with(case: Case, outputs: dict[str, Array]) -> Case:
    from dataclasses import replace

    return replace(case, outputs=outputs)


def parts_of(target: Target, path: Path) -> list[Path]:
    """The files of an artifact: with its parts, or all in its folder."""
    if target.folder is not None:
        return sorted(p for p in path.rglob("*") if p.is_file())
    return [path.with_suffix(s) for s in (path.suffix, *target.parts)]


def _same(case: Case, target: Target, path: Path) -> Result:
    """Emitted twice, from the file on: the same bytes."""
    from tapeout.compiler.target import write

    found: list[bytes] = []
    try:
        for turn in ("first", "second"):
            place = path.with_name(f"{turn}-{path.name}")
            write(target, opened(case, target, request_of(case, target)), place, request_of(case, target))
            found.append(b"".join(part.read_bytes() for part in parts_of(target, place)))
    except Exception as error:
        return "crash", f"{type(error).__name__}: {line(str(error))}", ()
    if found[0] != found[1]:
        return "wrong", "the same model gives other bytes the second time", ()
    return ("pass", "", ()) if found[0] else ("wrong", "the artifact is empty", ())


def _finished(case: Case, target: Target, path: Path) -> Result:
    """A case that the declaration takes, through the vendor's compiler: all of it is on the device."""
    from tapeout.compiler.target import write

    assert target.finish is not None
    request = request_of(case, target)
    try:
        model = opened(case, target, request)
        refused = target.declaration(request.device).accept(model).refused
        if refused:
            return "refused", line(SEPARATOR.join(dict.fromkeys(str(r) for r in refused))), ()
        write(target, model, path, request)
        made = target.finish(path, model, request)
    except (MissingToolError, UnsupportedError, UsageError) as error:
        return "refused", line(error.message), ()
    except TapeoutError as error:
        return "does-not-run", line(error.message), ()
    except Exception as error:
        return "crash", f"{type(error).__name__}: {line(str(error))}", ()
    if made.hosted:
        return "accepted", f"taken by the declaration, left to the host: {', '.join(made.hosted)}", ()
    return "pass", "", ()


def _refused(case: Case, target: Target, path: Path) -> Result:
    """A case outside the declaration: refused, with constraint, value and fix, and never written."""
    from tapeout.compiler.target import write

    request = request_of(case, target)
    try:
        model = opened(case, target, request)
        refused = target.declaration(request.device).accept(model).refused
        if not refused:
            return "accepted", "a case outside the bounds of every row is taken", ()
        for one in refused:
            missing = unexplained(one)
            if missing is not None:
                return "unexplained", f"{missing}: {line(str(one))}", ()
    except Exception as error:
        return "crash", f"{type(error).__name__}: {line(str(error))}", ()
    try:
        write(target, model, path, request)
    except TapeoutError:
        return "refused", line(SEPARATOR.join(dict.fromkeys(str(r) for r in refused))), ()
    except Exception as error:
        return "crash", f"emission: {type(error).__name__}: {line(str(error))}", ()
    if target.extends is not None:  # what the narrower device refuses its host takes
        return "refused", line(SEPARATOR.join(dict.fromkeys(str(r) for r in refused))), ()
    return "accepted", f"emitted although refused: {line(str(refused[0]))}", ()


def unexplained(refusal: Refusal) -> str | None:
    """What a refusal lacks of constraint, value and fix; None where it has all."""
    if refusal.row is not None:
        if not refusal.violations:
            return "no constraint"
        for v in refusal.violations:
            if not v.what or not v.expected:
                return "no constraint"
            if not v.found:
                return f"no value of {v.what}"
    return None if refusal.fixes() else "no fix"


# --- all cases ----------------------------------------------------------------------------------------------


def run_conformance(
    target_name: str,
    *,
    pattern: str | None = None,
    every: int = 1,
    progress: Progress | None = None,
    keep: Path | None = None,
    timeout: float = 60.0,
) -> Report:
    """Run the standard's node cases through `target_name` and report.

    `progress(done, total, outcome)` is called after each case. With `keep`, each case that is at fault
    (neither passes nor is refused) leaves a folder there. A case without an answer after `timeout` seconds
    counts as a crash.
    """
    from tapeout.compiler.conformance.standard import cases

    found = cases(pattern, every)
    return run_cases(target_name, found, progress=progress, keep=keep, timeout=timeout)


def run_cases(
    target: Source,
    found: Sequence[Case],
    *,
    progress: Progress | None = None,
    keep: Path | None = None,
    timeout: float = 60.0,
) -> Report:
    """`run_conformance` on cases of one's own."""
    report = Report(target if isinstance(target, str) else "target")
    with Worker(target) as worker:
        run_into(report, worker, found, len(found), progress, keep, timeout)
    return report


def run_into(
    report: Report,
    worker: Worker,
    found: Iterable[Case],
    total: int,
    progress: Progress | None = None,
    keep: Path | None = None,
    timeout: float = 60.0,
) -> list[tuple[Case, Outcome]]:
    """Add the outcomes of `found` to `report`, one after the other as they are made; returns what failed."""
    start, failed = time.perf_counter(), list[tuple[Case, Outcome]]()
    dead = hung = 0
    runtimes: dict[str, None] = dict.fromkeys(report.runtimes)
    for index, case in enumerate(found):
        outcome, names = worker.run(case, timeout)
        runtimes.update(dict.fromkeys(names))
        report.outcomes.append(outcome)
        if outcome.status in FAULTS:
            failed.append((case, outcome))
            if keep is not None:
                worker.run(case, timeout, keep / case.name)
        if progress is not None:
            progress(index + 1, max(total, index + 1), outcome)
        dead = dead + 1 if outcome.status == "crash" else 0
        hung += outcome.status == "crash" and outcome.reason.startswith(HUNG)
        if dead >= DEAD or hung >= HANGS:
            report.notes.append(f"level {case.level} was given up: {hung or dead} cases crash or hang")
            break
    report.runtimes = tuple(runtimes)
    report.seconds += time.perf_counter() - start
    return failed


class Worker:
    """A process that runs cases; started when first needed and again after it died."""

    def __init__(self, target: Source) -> None:
        self._target = target
        self._process: Any = None
        self._pipe: Any = None
        self._spent = 0.0

    def cpu_seconds(self) -> float:
        """Processor time of the workers so far."""
        return self._spent + _seconds(self._process)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, case: Case, timeout: float, keep: Path | None = None) -> tuple[Outcome, tuple[str, ...]]:
        """The outcome of one case, and the runtimes that ran it. Raises what loading the target raises."""
        self._start()
        try:
            self._pipe.send((case, keep))
            if self._pipe.poll(timeout):
                result: tuple[Outcome, tuple[str, ...]] | TapeoutError = self._pipe.recv()
                if isinstance(result, TapeoutError):
                    raise result
                return result
            reason = f"{HUNG} {timeout:g} s"
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join(10)
            code = self._process.exitcode
            reason = (
                f"the process died by signal {-code}"
                if code is not None and code < 0
                else f"the process exited with {code}"
            )
        self.close()
        return Outcome(case.name, case.op, "crash", reason, case.level, case.origin), ()

    def _start(self) -> None:
        if self._process is not None and self._process.is_alive():
            return
        import multiprocessing

        context = multiprocessing.get_context("spawn")
        self._pipe, end = context.Pipe()
        self._process = context.Process(target=_work, args=(self._target, end), daemon=True)
        self._process.start()
        end.close()

    def close(self) -> None:
        if self._process is not None:
            self._spent += _seconds(self._process)
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None


def _seconds(process: Any) -> float:
    """Processor time of a process, 0 where the system does not tell."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return 0.0


def load(target: Source) -> Target:
    """The target of a name, or what its maker makes."""
    if callable(target):
        return target()
    from tapeout.compiler.target import target as by_name

    return by_name(target)


def _work(target: Source, pipe: Any) -> None:
    """The worker: cases in, outcomes out. What runtimes print goes nowhere."""
    import faulthandler

    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    faulthandler.disable()
    try:
        found = load(target)
        found.declaration(found.devices[0])
    except TapeoutError as error:
        pipe.recv()
        pipe.send(error)
        return
    while True:
        try:
            case, keep = pipe.recv()
        except EOFError:
            return
        pipe.send(run_case(case, found, keep))
