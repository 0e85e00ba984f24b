"""The public functions: export here, the others from `questions`. Every failure is a TapeoutError."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tapeout.calibrating import (
    Calibrated,
    Given,
    Samples,
    calibrate,
    calibration_files,
    described,
    same_model,
    with_calibration,
)
from tapeout.compiler import artifact as files
from tapeout.compiler.errors import (
    BudgetError,
    UsageError,
)
from tapeout.compiler.pipeline import History
from tapeout.compiler.target import Request, Target
from tapeout.failures import failures
from tapeout.fallback import Fallback
from tapeout.quantizing import (
    RecipeLike,
    quantized,
    read_recipe,
    recipe_files,
    scheme_of,
    with_borders,
    with_quantization,
)
from tapeout.questions import Timing, Verified, bench, compare, explain, inspect, verify
from tapeout.road import (
    Model,
    Prepared,
    Wish,
    choose,
    dtype_name,
    leave_to_host,
    legalize,
    opened,
    placement,
    prepare,
    refuse,
)

if TYPE_CHECKING:
    from tapeout.compiler.declaration import Acceptance

Notify = Callable[[str], None]
Shapes = Mapping[str, Sequence[int | str]]

__all__ = [
    "Calibrated", "Export", "Timing", "Verified", "bench", "calibrate", "compare", "explain", "export", "failures",
    "inspect", "verify",
]  # fmt: skip

MANIFEST = "tapeout.manifest/1"
# Requirements of the command line, which make no difference to an artifact.
FACE = ("typer", "rich")
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
    calibration: Given | None = None,
    preprocess: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    recipe: RecipeLike | None = None,
    dtype: Mapping[str, str] | None = None,
    data: str | os.PathLike[str] | None = None,
    gates: Mapping[str, float] | None = None,
    max_size: int | None = None,
    verify: bool = True,
    require_proof: bool = False,
    fallback: str = "error",
    max_fallback: float | None = None,
    keep_rejected: bool = False,
    dry_run: bool = False,
    depfile: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    notify: Notify | None = None,
) -> Export:
    """Turn `model` (a path, an onnx.ModelProto, an onnx_ir.Model, a torch.nn.Module or ExportedProgram) into an
    artifact for `target`, checked on the target's own runtimes against the source.

    A path leads to an ONNX file, an ExportedProgram (`.pt2`), a Keras file (`.keras`, `.h5`) or the folder of a
    SavedModel; what is no ONNX is converted first, and the conversion checked against the original framework. A
    torch module needs `example_inputs` (a tensor, a tuple, or a dict of keywords) and may have `dynamic_shapes`
    (as for torch.export; text names a size: {"x": {0: "N"}}).

    `output` is the artifact's file (default: the model's name in the current folder); beside it lie
    `OUTPUT.manifest.json` and `OUTPUT.report.json`. `quantize` is a scheme that the target offers, `shape`
    states input sizes (a number fixes one, a name or "?" keeps it free: {"x": ("N", 3, 64, 64)}), `layout` asks
    for another axis order of inputs and outputs ({"x": "NHWC"}), `outputs` keeps only those, `calibration` is
    what a static scheme takes its ranges from (a path to arrays, images or statistics, "random", a callable
    that gives samples, or Statistics), `preprocess` says how images become inputs, `cache` is a folder that
    keeps what was measured, `recipe` (a TOML file or a Recipe) says which part is quantized how, `dtype`
    gives inputs and outputs a type of integers ({"x": "int8"}), `data` is checked on in place of random
    inputs, `gates` bounds metrics (sqnr, cosine, argmax: at least; error, relative: at most), `max_size` is
    in bytes, `jobs` bounds threads. What a device refuses is an error, or with `fallback` "host" left to the
    CPU beside it, at most `max_fallback` percent of the operators. Files appear whole or not at all.

    Raises TapeoutError: UsageError, InvalidModelError, UnsupportedError, AccuracyError, BudgetError,
    FallbackError, VendorToolError, ResourceError, OutputError (each with `.exit_code`).
    """
    with failures(), ExitStack() as stack:
        clock = _Clock(notify)
        rules, rules_files = read_recipe(recipe), [Path(f) for f in recipe_files(recipe)]
        chosen, request = choose(target, device, scheme_of(quantize, rules), options)
        request = with_quantization(request, rules, dtype)
        if rules is not None:
            rules.check_schemes(chosen.name, chosen.schemes)
        wish = Wish(shape or {}, layout or {}, tuple(outputs or ()))
        places = _places(model, output, depfile, chosen)
        with clock("read"):
            model = opened(
                stack, model, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes,
                data=None if layout else data, threads=jobs, proven=verify and not dry_run,
            )  # fmt: skip
            prepared = prepare(model, wish)
        samples = None if calibration is None else Samples(calibration, preprocess, cache, jobs)
        request = with_calibration(request, samples, prepared)
        request = with_borders(request, chosen, prepared.model)
        policy = Fallback(fallback, max_fallback)
        digests = _Later(lambda: [files.digest(f) for f in prepared.files])
        report: dict[str, Any] = {"schema": REPORT, "source": _summary(prepared)}
        with clock("passes"):
            manifest = _legalized(prepared, chosen, request, wish, report, policy)
        same_model(request, digests.result())

        with files.Stage() as stage:
            if not dry_run:
                with clock("emit"):
                    manifest["artifact"] = _emitted(prepared, chosen, request, stage, places, max_size)
            manifest["inputs"] = [
                {"name": p.name, "sha256": d, "bytes": n}
                for p, (d, n) in zip(prepared.files, digests.result(), strict=True)
            ]
            if dry_run:
                report |= {"seconds": clock.seconds, "host": _host()}
                return Export(places.shown, manifest, report, places.all())
            report["proof"] = {"proven": [], "unproven": True}
            if verify or require_proof or gates:
                from tapeout.proof import Claim, judge, locate, prove

                claim = Claim(
                    model,
                    wish,
                    prepared,
                    chosen,
                    request,
                    stage.path(places.artifact),
                    data,
                    jobs,
                    legalized=True,
                )
                with clock("verify"):
                    proof = prove(claim)
                choice = None
                if proof is not None and not proof.holds:
                    from tapeout.widening import hopeless, keeping, widening

                    with clock("widen"):
                        choice = widening(claim, proof)
                    report["narrowing"] = choice.as_json() if choice else None
                    if choice is not None and choice.helps:
                        request = keeping(request, choice)
                        with clock("again"):
                            prepared = prepare(model, wish)
                            manifest |= _legalized(prepared, chosen, request, wish, report, policy)
                            for place in (places.artifact, *places.parts):
                                stage.drop(place)
                            manifest["artifact"] = _emitted(
                                prepared, chosen, request, stage, places, max_size
                            )
                            place = stage.path(places.artifact)
                            claim = Claim(
                                model, wish, prepared, chosen, request, place, data, jobs, legalized=True
                            )
                            proof = prove(claim)
                report["verification"] = proof.as_json() if proof else None
                report["proof"] = {
                    "proven": proof.proven if proof else [],
                    "unproven": proof is None or not proof.on(request.device),
                }
                error = judge(proof, gates or {}, require_proof, claim)
                if error is not None:
                    if choice is not None and not choice.helps:
                        error = hopeless(error, choice, request)
                    elif proof is not None and not proof.holds:
                        with clock("locate"):
                            error = locate(error, claim, proof)
                    if keep_rejected:
                        for place in (places.artifact, *places.parts):
                            stage.redirect(place, _beside(place, ".rejected"))
                        stage.publish()
                    raise error
            if chosen.finish is not None:
                with clock("finish"):
                    _finish(prepared, chosen, request, stage, places, policy, manifest, report)
            report |= {"seconds": clock.seconds, "host": _host()}
            stage.write(places.report, files.json_bytes(report))
            if places.depfile is not None:
                stage.write(
                    places.depfile,
                    files.depfile(
                        places.shown,
                        [*prepared.files, *calibration_files(request), *rules_files, *_data_files(data)],
                    ),
                )
            stage.write(places.manifest, files.json_bytes(manifest))
            stage.publish()
        return Export(places.shown, manifest, report, places.all())


def _legalized(
    prepared: Prepared,
    target: Target,
    request: Request,
    wish: Wish,
    report: dict[str, Any],
    policy: Fallback,
) -> dict[str, Any]:
    """Run the passes on the model, in place; the manifest. Raises UnsupportedError, FallbackError."""
    history, acceptance = legalize(prepared.model, target, request)
    if policy.to_host:
        acceptance, left = leave_to_host(acceptance, prepared.model, target, request)
        report["fallback"] = policy.hold([r.name for r in left], len(acceptance.placed), target.name) | {
            "reasons": [str(r) for r in left]
        }
    refuse(acceptance, target)
    report["passes"] = [
        {"name": s.name, "changes": s.count, "seconds": round(s.seconds, 4)} for s in history.steps
    ]
    said, told = quantized(prepared.model, request)
    if told is not None:
        report["quantization"] = told
    manifest = _manifest(target, request, wish, prepared, history, acceptance)
    return manifest if said is None else manifest | {"quantization": said}


def _emitted(
    prepared: Prepared,
    target: Target,
    request: Request,
    stage: files.Stage,
    places: _Places,
    most: int | None,
) -> dict[str, Any]:
    """Stage the artifact; what the manifest says of it. Raises BudgetError where it is larger than `most`."""
    with ExitStack() as stack:
        sink = stack.enter_context(stage.open(places.artifact))
        parts = [stack.enter_context(stage.open(p, places.artifact)) for p in places.parts]
        target.emit(prepared.model, sink, request, *parts)
    _within(sink.size + sum(p.size for p in parts), most, request)
    made: dict[str, Any] = {"name": places.artifact.name, "sha256": sink.digest, "bytes": sink.size}
    if parts:
        made["parts"] = [
            {"name": place.name, "sha256": part.digest, "bytes": part.size}
            for place, part in zip(places.parts, parts, strict=True)
        ]
    return made


def _finish(
    prepared: Prepared,
    target: Target,
    request: Request,
    stage: files.Stage,
    places: _Places,
    policy: Fallback,
    manifest: dict[str, Any],
    report: dict[str, Any],
) -> None:
    """Put what the vendor's compiler makes of the staged artifact in its place. Raises VendorToolError,
    UnsupportedError, FallbackError."""
    assert target.finish is not None
    made = target.finish(stage.path(places.artifact), prepared.model, request)
    total = sum(v for k, v in made.facts.get("placement", {}).items() if isinstance(v, int))
    report["fallback"] = report.get("fallback", {}) | policy.hold(list(made.hosted), total, request.device)
    stage.drop(places.artifact)
    with stage.open(places.artifact) as sink:
        sink.write(made.content)
    manifest["artifact"] = {"name": places.artifact.name, "sha256": sink.digest, "bytes": sink.size}
    manifest["finished"] = dict(made.facts)
    report["finished"] = {"summary": made.summary, **made.facts}
    # What ran was the file before it was compiled, on another device.
    report["proof"]["unproven"] = True


@dataclass(frozen=True)
class _Places:
    """Where an export writes: `artifact` and what lies beside it; `shown` is the artifact as the user wrote
    it."""

    shown: Path
    artifact: Path
    parts: tuple[Path, ...]
    report: Path
    manifest: Path
    depfile: Path | None

    def all(self) -> list[Path]:
        """Every file, as the user would write it."""
        beside = [self.shown.with_suffix(p.suffix) for p in self.parts]
        beside += [_beside(self.shown, ".report.json"), _beside(self.shown, ".manifest.json")]
        return [self.shown, *beside, *([self.depfile] if self.depfile is not None else [])]


def _places(
    model: Model,
    output: str | os.PathLike[str] | None,
    depfile: str | os.PathLike[str] | None,
    target: Target,
) -> _Places:
    """Raises UsageError or OutputError where one of them cannot be written or is the model itself."""
    shown = Path(output) if output is not None else Path(_stem(model) + target.suffix)
    place = files.check_output(shown)
    parts = tuple(files.check_output(place.with_suffix(suffix)) for suffix in target.parts)
    if place in parts:
        raise UsageError(
            f"the output '{shown}' is a file beside the artifact",
            hint=f"-o {shown.with_suffix(target.suffix)}",
        )
    beside = [files.check_output(_beside(place, suffix)) for suffix in (".report.json", ".manifest.json")]
    listed = None if depfile is None else files.check_output(Path(depfile))
    if isinstance(model, str | os.PathLike) and os.path.realpath(model) in map(
        str, (place, *parts, *beside, listed)
    ):
        raise UsageError(f"the output '{shown}' is the model itself", hint="choose another name with -o")
    if listed in (place, *parts, *beside):
        raise UsageError(f"the dependency file '{depfile}' is an output of the export itself")
    return _Places(shown, place, parts, beside[0], beside[1], listed)


def _data_files(data: str | os.PathLike[str] | None) -> list[Path]:
    """The files that --data names, themselves or by their folder."""
    if data is None:
        return []
    from tapeout.compiler.data import files_of

    return files_of(Path(data))


def _within(size: int, most: int | None, request: Request) -> None:
    if most is not None and size > most:
        half = "--quantize float16 halves the weights" if request.scheme == "float32" else None
        raise BudgetError(f"the artifact has {size:,} bytes, at most {most:,} are allowed", hint=half)


def _manifest(
    target: Target, request: Request, wish: Wish, prepared: Prepared, history: History, acceptance: Acceptance
) -> dict[str, Any]:
    """What went into the artifact: the same for the same input, options and versions, wherever it is made."""
    return {
        "schema": MANIFEST,
        "target": target.name,
        "device": request.device,
        "scheme": request.scheme,
        "options": dict(sorted(request.options.items())),
        "wish": {
            "shape": {k: list(v) for k, v in sorted(wish.shape.items())},
            "layout": dict(sorted(wish.layout.items())),
            "outputs": list(wish.outputs),
        },
        **({} if prepared.framework is None else {"framework": prepared.framework}),
        "packages": _packages(),
        "calibration": described(request),
        "passes": [{"name": s.name, "changes": s.count} for s in history.steps],
        "placement": placement(acceptance),
        "interface": _interface(prepared, request),
    }


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
    required = [r for r in required if r not in FACE]
    for name in ("tapeout", *sorted(required)):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def _summary(prepared: Prepared) -> dict[str, Any]:
    graph = prepared.model.graph
    came: dict[str, Any] = {}
    if prepared.framework is not None:
        came = {"framework": prepared.framework, "conversion_error": prepared.conversion_error}
    return came | {
        "nodes": len(graph),
        "weights": sum(
            v.const_value.nbytes for v in graph.initializers.values() if v.const_value is not None
        ),
    }


def _interface(prepared: Prepared, request: Request) -> dict[str, Any]:
    from tapeout.compiler.ir import graph as g
    from tapeout.compiler.states import states

    def entry(value: Any) -> dict[str, Any]:
        shape = g.dims(value)
        return {
            "name": value.name,
            "dtype": dtype_name(value),
            "shape": None if shape is None else list(shape),
        }

    graph, kept = prepared.model.graph, states(prepared.model, request.options)
    found: dict[str, Any] = {
        "inputs": [entry(v) for v in graph.inputs if v.name not in kept],
        "outputs": [entry(v) for v in graph.outputs if v.name not in kept.values()],
    }
    if kept:
        found["states"] = [entry(v) | {"next": kept[v.name]} for v in graph.inputs if v.name in kept]
    return found


def _host() -> dict[str, Any]:
    import platform

    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }
