"""The public functions: export here, the others from `questions`. Every failure is a TapeoutError."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tapeout.compiler import artifact as files
from tapeout.compiler.errors import (
    BudgetError,
    UsageError,
)
from tapeout.compiler.target import Target
from tapeout.failures import failures
from tapeout.questions import Timing, Verified, bench, compare, explain, inspect, verify
from tapeout.road import Model, Prepared, Wish, choose, legalize, placement, prepare, refuse

Notify = Callable[[str], None]
Shapes = Mapping[str, Sequence[int]]

__all__ = [
    "Export", "Timing", "Verified", "bench", "compare", "explain", "export", "failures", "inspect", "verify",
]  # fmt: skip

MANIFEST = "tapeout.manifest/1"
REPORT = "tapeout.report/1"


@dataclass(frozen=True)
class Export:
    """A finished export: the artifact's path, what went into it (deterministic), and what happened on the
    way.

    With `dry_run`, `artifact` is where the file would lie.
    """

    artifact: Path
    manifest: dict[str, Any]
    report: dict[str, Any]
    outputs: list[Path] = field(default_factory=list)


def export(
    model: Model,
    target: str | Target = "tflite",
    *,
    device: str | None = None,
    output: str | os.PathLike[str] | None = None,
    quantize: str | None = None,
    shape: Shapes | None = None,
    layout: Mapping[str, str] | None = None,
    outputs: Sequence[str] | None = None,
    options: Mapping[str, str] | None = None,
    data: str | os.PathLike[str] | None = None,
    gates: Mapping[str, float] | None = None,
    max_size: int | None = None,
    verify: bool = True,
    require_proof: bool = False,
    keep_rejected: bool = False,
    dry_run: bool = False,
    depfile: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    notify: Notify | None = None,
) -> Export:
    """Turn `model` (a path, an onnx.ModelProto or an onnx_ir.Model) into an artifact for `target`, checked on
    the target's own runtimes against the source.

    `output` is the artifact's file (default: the model's name in the current folder); beside it lie
    `OUTPUT.manifest.json` and `OUTPUT.report.json`. `quantize` is a scheme that the target offers, `shape`
    binds input sizes, `layout` asks for another axis order of inputs and outputs ({"x": "NHWC"}), `outputs`
    keeps only those, `data` is checked on in place of random inputs, `gates` bounds metrics (sqnr, cosine,
    argmax: at least; error, relative: at most), `max_size` is in bytes, `jobs` bounds threads. Files appear
    whole or not at all.

    Raises TapeoutError: UsageError, InvalidModelError, UnsupportedError, AccuracyError, BudgetError, ResourceError,
    OutputError (each with `.exit_code`).
    """
    with failures():
        clock = _Clock(notify)
        chosen, request = choose(target, device, quantize, options)
        wish = Wish(shape or {}, layout or {}, tuple(outputs or ()))
        place = files.check_output(Path(output) if output is not None else Path(_stem(model) + chosen.suffix))
        if isinstance(model, str | os.PathLike) and os.path.realpath(model) == str(place):
            raise UsageError(
                f"the output '{place.name}' is the model itself", hint="choose another name with -o"
            )
        manifest_place, report_place = _beside(place, ".manifest.json"), _beside(place, ".report.json")
        depfile_place = None if depfile is None else files.check_output(Path(depfile))
        all_places = [place, report_place, manifest_place, *([depfile_place] if depfile_place else [])]
        for each in all_places[1:]:
            files.check_output(each)

        with clock("read"):
            prepared = prepare(model, wish)
        source = _summary(prepared)
        read = _Later(lambda: [files.digest(f) for f in prepared.files])
        with clock("passes"):
            history, acceptance = legalize(prepared.model, chosen, request)
        refuse(acceptance, chosen)
        manifest: dict[str, Any] = {
            "schema": MANIFEST,
            "target": chosen.name,
            "device": request.device,
            "scheme": request.scheme,
            "options": dict(sorted(request.options.items())),
            "wish": {
                "shape": {k: list(v) for k, v in wish.shape.items()},
                "layout": dict(wish.layout),
                "outputs": list(wish.outputs),
            },
            "inputs": [
                {"name": p.name, "sha256": d, "bytes": n}
                for p, (d, n) in zip(prepared.files, read.result(), strict=True)
            ],
            "packages": _packages(),
            "passes": [{"name": s.name, "changes": s.count} for s in history.steps],
            "placement": placement(acceptance),
            "interface": _interface(prepared),
        }
        report: dict[str, Any] = {
            "schema": REPORT,
            "source": source,
            "passes": [
                {"name": s.name, "changes": s.count, "seconds": round(s.seconds, 4)} for s in history.steps
            ],
        }
        if dry_run:
            report |= {"seconds": clock.seconds, "host": _host()}
            return Export(place, manifest, report, all_places)

        with files.Stage() as stage:
            with clock("emit"), stage.open(place) as sink:
                chosen.emit(prepared.model, sink, request)  # type: ignore[arg-type]
            manifest["artifact"] = {"name": place.name, "sha256": sink.digest, "bytes": sink.size}
            if max_size is not None and sink.size > max_size:
                raise BudgetError(f"the artifact has {sink.size:,} bytes, at most {max_size:,} are allowed",
                                  hint="--quantize float16 halves the weights" if request.scheme == "float32" else None)  # fmt: skip
            report["proof"] = {"proven": [], "unproven": True}
            if verify or require_proof or gates:
                from tapeout.proof import Claim, judge, locate, prove

                claim = Claim(model, wish, prepared, chosen, request, stage.path(place), data, jobs)
                with clock("verify"):
                    proof = prove(claim)
                report["verification"] = proof.as_json() if proof else None
                report["proof"] = {"proven": proof.proven if proof else [], "unproven": proof is None}
                error = judge(proof, gates or {}, require_proof, claim)
                if error is not None:
                    if proof is not None and not proof.holds:
                        error = locate(error, claim, proof)
                    if keep_rejected:
                        stage.redirect(place, _beside(place, ".rejected"))
                        stage.publish()
                    raise error
            report |= {"seconds": clock.seconds, "host": _host()}
            stage.write(report_place, files.json_bytes(report))
            if depfile_place is not None:
                stage.write(depfile_place, files.depfile(place, prepared.files))
            stage.write(manifest_place, files.json_bytes(manifest))
            with clock("write"):
                stage.publish()
        return Export(place, manifest, report, all_places)


class _Clock:
    """Seconds per part of the road, and word of it to whoever shows progress."""

    def __init__(self, notify: Notify | None) -> None:
        self.seconds: dict[str, float] = {}
        self._notify = notify

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        if self._notify is not None:
            self._notify(part)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = round(time.perf_counter() - start, 4)


def _stem(model: Model) -> str:
    return Path(model).stem if isinstance(model, str | os.PathLike) else "model"


def _beside(place: Path, suffix: str) -> Path:
    return place.with_name(place.name + suffix)


class _Later:
    """Work done beside the main thread; its result or its exception when asked for."""

    def __init__(self, work: Callable[[], list[tuple[str, int]]]) -> None:
        self._work = work
        self._found: list[tuple[str, int]] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._found = self._work()
        except BaseException as error:
            self._error = error

    def result(self) -> list[tuple[str, int]]:
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._found


def _packages() -> dict[str, str]:
    """Versions of tapeout and of what it requires: all that can make a difference to the bytes."""
    from importlib import metadata

    found: dict[str, str] = {}
    required = [re.split(r"[^\w.-]", r)[0] for r in metadata.requires("tapeout") or () if "extra ==" not in r]
    for name in ("tapeout", *sorted(required)):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def _summary(prepared: Prepared) -> dict[str, Any]:
    graph = prepared.model.graph
    return {
        "nodes": len(graph),
        "weights": sum(
            v.const_value.nbytes for v in graph.initializers.values() if v.const_value is not None
        ),
    }


def _interface(prepared: Prepared) -> dict[str, Any]:
    from tapeout.compiler.ir import graph as g

    def entry(value: Any) -> dict[str, Any]:
        shape = g.dims(value)
        return {
            "name": value.name,
            "dtype": value.dtype.name.lower() if value.dtype is not None else "unknown",
            "shape": None if shape is None else list(shape),
        }

    graph = prepared.model.graph
    return {"inputs": [entry(v) for v in graph.inputs], "outputs": [entry(v) for v in graph.outputs]}


def _host() -> dict[str, Any]:
    import platform

    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }
