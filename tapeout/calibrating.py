"""Calibration data of an export, and `tapeout calibrate`: statistics of a model, made once for many exports."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tapeout.compiler import artifact as files
from tapeout.compiler.declaration import source_name
from tapeout.compiler.errors import UnsupportedError, UsageError
from tapeout.compiler.schemes import STATIC
from tapeout.compiler.target import Request, Target, loadable
from tapeout.failures import failures
from tapeout.road import Model, Prepared, Wish, choose, prepare

if TYPE_CHECKING:
    from tapeout.compiler.calibration import Calibration, Statistics

PathLike: TypeAlias = "str | os.PathLike[str]"
Given: TypeAlias = "PathLike | Callable[[], Iterable[Any]] | Statistics"
# Schemes whose numbers are real numbers: nothing to calibrate.
REAL = ("float32", "float16", "bfloat16")
# What messages name first of a model, and how many of them.
LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Attention"})
SHOWN = 10


@dataclass(frozen=True)
class Samples:
    """Where calibration data is and how it is read, as the user said it."""

    source: Given
    preprocess: str | None = None
    cache: PathLike | None = None
    jobs: int | None = None

    def open(self, prepared: Prepared) -> Calibration:
        """The data for a model. Raises UsageError where it is none."""
        from tapeout.compiler.calibration import Calibration

        source = self.source
        if isinstance(source, str) and (function := _function(source)) is not None:
            source = function
        return Calibration(
            source, prepared.model, preprocess=self.preprocess, jobs=self.jobs, cache=self.cache
        )


def with_stand_in(request: Request, samples: Samples | None, prepared: Prepared) -> Request:
    """`request` with the calibration data given, else random data where the scheme asks for some: what goes where
    hardly depends on ranges."""
    static = request.scheme in STATIC and not any(n.op_type == "QuantizeLinear" for n in prepared.model.graph)
    if samples is not None or not static:
        return with_calibration(request, samples, prepared)
    calibration = Samples("random").open(prepared)
    calibration.stand_in = True
    return replace(request, calibration=calibration)


def with_calibration(
    request: Request, samples: Samples | None, prepared: Prepared, integers_only: str | None = None
) -> Request:
    """`request` with its calibration data.

    Raises UsageError where a static scheme has none (saying what there is without data), or where a float
    scheme has some; UnsupportedError where the user named no scheme and `integers_only` names the target, which
    has no other.
    """
    if samples is None:
        given = any(n.op_type == "QuantizeLinear" for n in prepared.model.graph)
        if request.scheme in STATIC and not given:
            raise no_data(request.scheme) if integers_only is None else not_quantized(prepared, integers_only)
        return request
    if request.scheme in REAL:
        raise UsageError(
            f"--calibration is given, and --quantize {request.scheme} has nothing to calibrate",
            hint="say the scheme: --quantize int8",
        )
    return replace(request, calibration=samples.open(prepared))


def not_quantized(prepared: Prepared, target: str) -> UnsupportedError:
    """What a target that computes on integers only says of a model of real numbers."""
    nodes = [n for n in prepared.model.graph if n.op_type in LAYERS] or list(prepared.model.graph)
    lines = [f"  {n.op_type} '{source_name(n)}': float32, must be int8 on {target}" for n in nodes[:SHOWN]]
    if len(nodes) > SHOWN:
        lines.append(f"  and {len(nodes) - SHOWN} more")
    return UnsupportedError(
        "\n".join([f"{target} computes on integers, and the model is not quantized:", *lines]),
        hint="quantize it on the way with typical inputs: --quantize int8 --calibration DATA (.npz, folder of arrays "
        "or images, stats.json); or give the int8 model of another tool as ONNX with QuantizeLinear",
        nodes=[source_name(n) for n in nodes[:SHOWN]],
    )


def no_data(scheme: str) -> UsageError:
    """What to do where a static scheme has no data."""
    return UsageError(
        f"--quantize {scheme} needs calibration data: it sets the range of every activation",
        hint="give typical inputs with --calibration DATA (.npz, folder of arrays or images, stats.json); without "
        "data choose a scheme that needs none, such as --quantize w8 or int8-dynamic where the target offers "
        "it, or draw inputs at random with --calibration random, which is rarely accurate",
    )


def described(request: Request) -> dict[str, Any] | None:
    """What the manifest says about the calibration."""
    calibration = request.calibration
    if calibration is None or calibration.collected is None:
        return None
    found = calibration.collected
    return {"samples": found.samples, "data": found.data, "notes": list(found.notes)}


def calibration_files(request: Request) -> list[Path]:
    """The files that the calibration was read from."""
    return [] if request.calibration is None else list(request.calibration.files)


def same_model(request: Request, digests: Sequence[tuple[str, int]]) -> None:
    """Raise UsageError where a statistics file was made from another model file."""
    calibration = request.calibration
    if calibration is None or calibration.collected is None or not digests:
        return
    known = calibration.collected.about.get("model")
    if known is not None and known != digests[0][0]:
        raise UsageError(
            f"the statistics '{calibration.name}' were made from another model file (sha256 {known[:12]}..., "
            f"this one is {digests[0][0][:12]}...)",
            hint="make them again with 'tapeout calibrate'",
        )


@dataclass(frozen=True)
class Calibrated:
    """Statistics, and where they were written."""

    statistics: Statistics
    output: Path | None
    targets: tuple[str, ...]


def calibrate(
    model: Model,
    calibration: Given,
    *,
    target: str | Target | Sequence[str | Target] | None = None,
    device: str | None = None,
    quantize: str | None = None,
    output: PathLike | None = None,
    preprocess: str | None = None,
    shape: Mapping[str, Sequence[int | str]] | None = None,
    layout: Mapping[str, str] | None = None,
    outputs: Sequence[str] | None = None,
    options: Mapping[str, str] | None = None,
    cache: PathLike | None = None,
    jobs: int | None = None,
    notify: Callable[[str], None] | None = None,
) -> Calibrated:
    """Measure what the tensors of `model` hold on the calibration data, for one or more targets (default: all
    that have a static scheme and take the model), and write it to `output` (a `.json`): one file serves many exports.

    `calibration` is a path, "random", "FILE.py:FUNCTION", a callable that gives samples, or Statistics;
    `quantize` is the scheme that the passes before the measurement are chosen for (default: int8). The other
    arguments are those of `export`.

    Raises TapeoutError.
    """
    from tapeout.compiler.calibration.source import portable
    from tapeout.compiler.calibration.store import is_statistics, to_bytes

    with failures():
        place = None
        if output is not None:
            if not is_statistics(output):
                raise UsageError(f"the output '{output}' is no .json file", hint="for example -o stats.json")
            place = files.check_output(Path(output))
            if isinstance(model, str | os.PathLike) and os.path.realpath(model) == str(place):
                raise UsageError(f"the output '{output}' is the model itself")
        if target is None:
            chosen: list[str | Target] = [t for t in loadable()[0] if any(s in STATIC for s in t.schemes)]
        else:
            chosen = [target] if isinstance(target, str | Target) else list(target)
        wish = Wish(shape or {}, layout or {}, tuple(outputs or ()))
        samples = Samples(calibration, preprocess, cache, jobs)
        merged: Statistics | None = None
        names = []
        refused: UnsupportedError | None = None
        for one in chosen:
            if notify is not None:
                notify("read")
            prepared = prepare(model, wish)
            found, request = _choose(one, device, quantize, options)
            request = replace(request, calibration=samples.open(prepared))
            if notify is not None:
                notify("measure")
            try:
                measured = portable(_measured(prepared, found, request), prepared.model)
            except UnsupportedError as error:
                if target is not None:
                    raise
                refused = error  # nobody asked for this one
                continue
            if prepared.files:
                measured.about["model"] = files.digest(prepared.files[0])[0]
            merged = measured if merged is None else _both(merged, measured)
            names.append(found.name)
        if merged is None:
            raise refused or UsageError("no target that is installed has a static scheme")
        if place is not None:
            with files.Stage() as stage:
                stage.write(place, to_bytes(merged))
                stage.publish()
        return Calibrated(merged, Path(output) if output is not None else None, tuple(names))


def _choose(
    target: str | Target, device: str | None, scheme: str | None, options: Mapping[str, str] | None
) -> tuple[Target, Request]:
    """The target, for the scheme asked for or the first static one that it has."""
    if scheme is not None:
        return choose(target, device, scheme, options)
    found, request = choose(target, device, None, options)
    static = next((s for s in found.schemes if s in STATIC), None)
    return found, request if static is None else replace(request, scheme=static)


def _measured(prepared: Prepared, target: Target, request: Request) -> Statistics:
    """Run the target's passes up to the measurement. Raises UsageError where it has none."""
    from tapeout.compiler.calibration import Calibrate
    from tapeout.compiler.pipeline import run

    passes = target.passes(request)
    place = next((i for i, p in enumerate(passes) if isinstance(p, Calibrate)), None)
    if place is None or request.calibration is None:
        raise UsageError(f"target '{target.name}' does not calibrate for --quantize {request.scheme}")
    run(prepared.model, passes[: place + 1])
    assert request.calibration.collected is not None
    return request.calibration.collected


def _both(a: Statistics, b: Statistics) -> Statistics:
    """The tensors of both; where both have one, that of the first."""
    return replace(a, tensors={**b.tensors, **a.tensors})


def _function(text: str) -> Callable[[], Iterable[Any]] | None:
    """The function of FILE.py:FUNCTION; None where `text` is no such thing."""
    path, colon, name = text.rpartition(":")
    if not colon or not path.endswith(".py"):
        return None
    import importlib.util

    if not os.path.isfile(path):
        raise UsageError(f"the file '{path}' of --calibration {text} does not exist")
    spec = importlib.util.spec_from_file_location("tapeout_calibration_data", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"'{path}' does not run: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"'{path}' has no function '{name}'")
    return function  # type: ignore[no-any-return]
