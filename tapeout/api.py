"""The public functions: export here, the others from `questions`. Every failure is a TapeoutError."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tapeout.calibrating import (
    REAL,
    Calibrated,
    Given,
    Samples,
    calibrate,
    calibration_files,
    same_model,
    with_calibration,
)
from tapeout.compiler import artifact as files
from tapeout.compiler.bundle import bundled
from tapeout.compiler.errors import UsageError
from tapeout.compiler.partition import Limits
from tapeout.compiler.recipe import Recipe
from tapeout.compiler.schemes import FLOAT32, STATIC
from tapeout.compiler.steps import Step
from tapeout.compiler.target import Target
from tapeout.emitting import also, emitted, finish, legalized
from tapeout.failures import failures
from tapeout.fallback import Fallback
from tapeout.manifest import host, summary
from tapeout.places import beside, laid_out, of_bundle, of_file, places_of
from tapeout.quantizing import (
    AUTO,
    RecipeLike,
    read_recipe,
    recipe_files,
    scheme_of,
    with_borders,
    with_quantization,
)
from tapeout.questions import Verified, compare, explain, inspect, verify
from tapeout.road import (
    Model,
    Wish,
    choose,
    opened,
    prepare,
)
from tapeout.sensitivity import sensitivity
from tapeout.timing import Timing, bench

Notify = Callable[[str], None]
Shapes = Mapping[str, Sequence[int | str]]

__all__ = [
    "Calibrated", "Export", "Timing", "Verified", "bench", "calibrate", "compare", "explain", "export", "failures",
    "inspect", "sensitivity", "verify",
]  # fmt: skip

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
    prune: Sequence[str] = (),
    factorize: Sequence[str] = (),
    recipe: RecipeLike | None = None,
    max_drop: float | None = None,
    dtype: Mapping[str, str] | None = None,
    data: str | os.PathLike[str] | None = None,
    gates: Mapping[str, float] | None = None,
    max_size: int | None = None,
    verify: bool = True,
    require_proof: bool = False,
    fallback: str = "error",
    max_fallback: float | None = None,
    smallest_island: int = 1,
    largest_transfer: int | None = None,
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
    keeps what was measured, `prune` and `factorize` are steps before quantization, each METHOD=AMOUNT
    ("sparsegpt=0.5", "wanda=2:4", "channels=0.3,multiple=16"; "svd=0.3"), `recipe` (a TOML file or a Recipe) says
    which part is quantized how, and may have such steps with rules for layers, `max_drop` bounds what the outputs
    may lose of their variance where `quantize` is "auto" (default: 0.01), `dtype` gives inputs and outputs a
    type of integers ({"x": "int8"}), `data` is checked on in place of random inputs, `gates` bounds metrics (sqnr,
    cosine, argmax: at least; error, relative: at most), `max_size` is in bytes, `jobs` bounds threads. What a
    device refuses is an error, or with `fallback` "host" left to the CPU beside it, at most `max_fallback` percent
    of the operators: within the artifact where its format allows, else the artifact is a folder (a bundle) of
    parts with a schedule, in which a part on the device has at least `smallest_island` operators and at most
    `largest_transfer` bytes go to and from it. Files appear whole or not at all.

    Raises TapeoutError: UsageError, InvalidModelError, UnsupportedError, AccuracyError, BudgetError,
    FallbackError, VendorToolError, ResourceError, OutputError (each with `.exit_code`).
    """
    with failures(), ExitStack() as stack:
        clock = _Clock(notify)
        rules, rules_files = read_recipe(recipe), [Path(f) for f in recipe_files(recipe)]
        todo = steps(prune, factorize, rules)
        rules = rules and rules.quantization
        searched = quantize == AUTO
        if max_drop is not None and not searched:
            raise UsageError("--max-drop is for the search of precisions", hint=f"add --quantize {AUTO}")
        chosen, request = choose(target, device, None if searched else scheme_of(quantize, rules), options)
        if not searched:
            request = with_quantization(request, rules, dtype)
        if rules is not None:
            rules.check_schemes(chosen.name, chosen.schemes)
        wish = Wish(shape or {}, layout or {}, tuple(outputs or ()))
        policy = Fallback(fallback, max_fallback, Limits(smallest_island, largest_transfer))
        output = laid_out(stack, output, chosen, request)
        places = places_of(model, output, depfile, chosen, policy.to_host)
        further = {} if chosen.also is None else dict(chosen.also(places.artifact, request))
        with clock("read"):
            model = opened(
                stack, model, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes,
                data=None if layout else data, threads=jobs, proven=verify and not dry_run,
            )  # fmt: skip
            prepared = prepare(model, wish)
        samples = None if calibration is None else Samples(calibration, preprocess, cache, jobs)
        told: dict[str, Any] = {"source": summary(prepared)}
        asked, taken = wish, samples
        if todo:
            from tapeout.compressing import compressed, stored_zeros

            with clock("compress"):
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tapeout-")))
                smaller = compressed(prepared, todo, samples, folder)
            model, prepared, told["compression"] = smaller.path, smaller.prepared, smaller.told
            wish = Wish()  # the compressed model has been shaped as asked
            taken = None if request.scheme in REAL else samples
        if searched:
            from tapeout.automatic import DROP, Search, automatic

            data_of = None if samples is None else samples.open(prepared)
            request = replace(request, recipe=rules, calibration=data_of)
            most = DROP if max_drop is None else max_drop
            with clock("choose"):
                search = Search(model, wish, chosen, request, most, notify)
                request, told["auto"] = automatic(search, dtype)
        else:
            named = quantize is not None or rules is not None or set(chosen.schemes) - set(STATIC)
            request = with_calibration(request, taken, prepared, None if named else chosen.name)
        request = with_borders(request, chosen, prepared.model)
        digests = _Later(lambda: [files.digest(f) for f in prepared.files])
        report: dict[str, Any] = {"schema": REPORT, **told}
        with clock("passes"):
            manifest = legalized(prepared, chosen, request, asked, report, policy)
            if todo:
                manifest |= smaller.manifest(todo)
        in_parts = prepared.parts is not None
        places = of_bundle(places, output is not None, chosen) if in_parts else of_file(places, chosen)
        proving = bundled(chosen) if in_parts else chosen
        same_model(request, digests.result())

        with files.Stage() as stage:
            if not dry_run:
                with clock("emit"):
                    manifest["artifact"] = emitted(prepared, chosen, request, stage, places, max_size)
            manifest["inputs"] = [
                {"name": p.name, "sha256": d, "bytes": n}
                for p, (d, n) in zip(prepared.files, digests.result(), strict=True)
            ]
            if dry_run:
                report |= {"seconds": clock.seconds, "host": host()}
                return Export(places.shown, manifest, report, [*places.all(), *further])
            report["proof"] = {"proven": [], "unproven": True}
            if verify or require_proof or gates:
                from tapeout.proof import Claim, judge, locate, prove

                claim = Claim(
                    model,
                    wish,
                    prepared,
                    proving,
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
                            manifest |= legalized(prepared, chosen, request, asked, report, policy)
                            for place in (places.artifact, *places.parts):
                                stage.drop(place)
                            manifest["artifact"] = emitted(prepared, chosen, request, stage, places, max_size)
                            place = stage.path(places.artifact)
                            claim = Claim(
                                model, wish, prepared, proving, request, place, data, jobs, legalized=True
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
                            stage.redirect(place, beside(place, ".rejected"))
                        stage.publish()
                    raise error
            if chosen.finish is not None:
                with clock("finish"):
                    finish(prepared, chosen, request, stage, places, policy, manifest, report)
            if further:
                with clock("also"):
                    report["also"] = also(stage, places, further)
            report |= {"seconds": clock.seconds, "host": host()}
            if todo and not in_parts:
                with clock("compare"):
                    if request.scheme != FLOAT32:
                        report["compression"].append(smaller.quantized(prepared.model, request.scheme))
                    report["zeros"] = stored_zeros(chosen, request, stage.path(places.artifact))
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
        return Export(places.shown, manifest, report, [*places.all(), *further])


def _data_files(data: str | os.PathLike[str] | None) -> list[Path]:
    """The files that --data names, themselves or by their folder."""
    if data is None:
        return []
    from tapeout.compiler.data import files_of

    return files_of(Path(data))


def steps(prune: Sequence[str], factorize: Sequence[str], recipe: Recipe | None) -> tuple[Step, ...]:
    """What is done before quantization; reads no pass where there is nothing."""
    if not prune and not factorize and (recipe is None or not recipe.steps):
        return ()
    from tapeout.compressing import asked

    return asked(prune, factorize, recipe)


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
