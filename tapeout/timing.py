"""How long artifacts take: `tapeout bench`."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from tapeout.compiler.errors import AccuracyError, TapeoutError, UsageError
from tapeout.compiler.target import Request, Target
from tapeout.failures import failures
from tapeout.questions import manifest_of, opened_artifact
from tapeout.road import Model, Wish, opened, prepare

PathLike: TypeAlias = "str | os.PathLike[str]"


@dataclass(frozen=True)
class Timing:
    """Latency in milliseconds; `ratio` is ONNX Runtime's median over this one's (above 1: faster than ORT); `rate`
    inferences in a second, many at once, where a runtime was asked for that."""

    runtime: str
    threads: int
    median: float
    least: float
    runs: int
    ratio: float | None = None
    reference: bool = False
    rate: float | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def bench(
    artifact: PathLike,
    *,
    against: Model | None = None,
    target: str | Target | None = None,
    device: str | None = None,
    data: PathLike | None = None,
    runs: int = 50,
    jobs: int | None = None,
    hint: str | None = None,
    options: Mapping[str, str] | None = None,
) -> list[Timing]:
    """Measure an artifact on each of its runtimes at batch 1, after a warm-up, and ONNX Runtime on `against`.

    Without `against` the inputs are drawn from the artifact's manifest; raises UsageError where there is
    none. A target with timers of its own takes more: `device` is whatever its runtime calls devices, `hint` one of
    "latency" and "throughput" (default: both), `options` what its runtime can be told.
    """
    from tapeout.proof import interface_model, running

    with failures(), ExitStack() as stack:
        threads = jobs or 1
        path, chosen, request, wish = timed_artifact(artifact, target, device, options)
        if chosen.timers is None and (hint is not None or options):
            raise UsageError(
                f"target '{chosen.name}' takes no --{'hint' if hint is not None else 'option'} here"
            )
        if against is not None:
            against = opened(stack, against, proven=False)
        model = (
            prepare(against, wish).model if against is not None else interface_model(manifest_of(path), path)
        )

        def made() -> Sequence[Any]:
            return chosen.runners(path, running(request, threads))

        feed = _bench_feed(model, data, made, known=against is not None)
        reference: float | None = None
        timings: list[Timing] = []
        if against is not None:
            from tapeout.compiler.reference import Reference

            with Reference(model, threads=threads, optimized=True) as ort:
                times = _timed(lambda: ort.run(feed), runs)
                reference = statistics.median(times)
                timings.append(Timing(ort.runtime, threads, reference, min(times), runs, 1.0, True))
        for timer in chosen.timers(path, running(request, jobs), hint) if chosen.timers is not None else ():
            times, rate = timer.measure(feed, runs)
            median = statistics.median(times)
            ratio = reference and reference / median
            timings.append(Timing(timer.runtime, jobs or 0, median, min(times), len(times), ratio, rate=rate))
        for runner in made() if chosen.timers is None else ():
            times = _timed(lambda runner=runner: runner.run(feed), runs)  # type: ignore[misc]
            median = statistics.median(times)
            timings.append(
                Timing(runner.runtime, threads, median, min(times), runs, reference and reference / median)
            )
        if not timings:
            raise AccuracyError(f"nothing here can run the artifact for {chosen.name} on {request.device}")
        return timings


def _bench_feed(
    model: Any, data: PathLike | None, runners: Callable[[], Sequence[Any]], known: bool
) -> dict[str, Any]:
    """The first of `data`, or random inputs. Of an interface alone (not `known` further) nothing says at which
    free sizes the artifact runs: the first that its runtimes take are used."""
    from tapeout.compiler.data import FREE, SIZES, Data, bindings, random_inputs

    if data is not None:
        return next(Data(data, model).samples(1))
    if known:
        return random_inputs(model, 0, 1, batch=1)[0]
    feeds = [random_inputs(model, 0, 1, sizes=bindings(model, 1, (s,)))[0] for s in (FREE, *SIZES)]
    for feed in feeds:
        try:
            for runner in runners():
                runner.run(feed)
            return feed
        except TapeoutError:
            continue
    return feeds[0]


def _timed(call: Callable[[], object], runs: int) -> list[float]:
    for _ in range(min(5, runs)):
        call()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    return times


def timed_artifact(
    artifact: PathLike, target: str | Target | None, device: str | None, options: Mapping[str, str] | None
) -> tuple[Path, Target, Request, Wish]:
    """An artifact with its target; a device that only the target's timers know stays as it is written."""
    path, chosen, request, wish = opened_artifact(artifact, target, None)
    if device is not None and chosen.timers is None:
        return opened_artifact(artifact, target, device)
    return (
        path,
        chosen,
        replace(request, device=device or request.device, options={**request.options, **(options or {})}),
        wish,
    )
