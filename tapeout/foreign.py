"""Artifacts without a manifest: held against a model, or against each other."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tapeout.compiler.comparison import Comparison, Layer
from tapeout.compiler.errors import InvalidModelError, UsageError
from tapeout.compiler.foreign import QUANTIZED, Fitted, Ported, carried, hold, model_of, ports_of
from tapeout.compiler.frontends.imported import Imported
from tapeout.compiler.metrics import Array, difference, is_inexact, relative
from tapeout.compiler.reference import Reference
from tapeout.compiler.target import Request, Target
from tapeout.compiler.verification import FLOAT32, SPREAD, TOLERANCES, Verification
from tapeout.proof import feeds, running
from tapeout.road import Model, Prepared, target_of


def artifact_target(model: Model) -> Target | None:
    """The target that writes files such as `model`, None where it is no path of an artifact."""
    if not isinstance(model, str | os.PathLike) or not os.path.isfile(model):
        return None
    return target_of(Path(model))


def is_foreign(chosen: Target, artifact: Path, request: Request, prepared: Prepared) -> bool:
    """Whether the artifact's inputs are called, shaped or typed otherwise than the model's."""
    try:
        found = chosen.runners(artifact, request)
    except InvalidModelError:
        return False
    if not found or not isinstance(found[0], Ported):
        return False
    inputs, outputs = found[0].ports()
    graph = prepared.model.graph

    def key(ports: Any) -> set[tuple[str, str, int]]:
        return {(p.name, p.dtype, len(p.shape)) for p in ports}

    return not (key(ports_of(graph.inputs)) == key(inputs) and key(ports_of(graph.outputs)) <= key(outputs))


def verify_foreign(
    artifact: Path,
    chosen: Target,
    request: Request,
    against: Model,
    prepared: Prepared | None,
    data: Any,
    samples: int,
    jobs: int | None,
) -> Verification:
    """The artifact's numbers against a model (`prepared`), or against another artifact (None)."""
    found = _runners(artifact, chosen, running(request, jobs))
    least = TOLERANCES.get(request.scheme, FLOAT32)
    if prepared is None:
        source = _runners(Path(str(against)), chosen, running(request, jobs))
        inputs, outputs = map(carried, source[0].ports())
        given, name = feeds(model_of(inputs), data, samples)
        own = [Fitted(r, inputs, outputs) for r in source]

        def run(feed: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, float]]:
            first, last = own[0].run(feed), own[-1].run(feed)
            return last, {k: relative(v, first[k]) for k, v in last.items()}

        return hold(
            run,
            f"{Path(str(against)).name} on {own[-1].runtime}",
            _fitted(found, inputs, outputs),
            given,
            name,
            least,
        )
    inputs, outputs = ports_of(prepared.model.graph.inputs), ports_of(prepared.model.graph.outputs)
    given, name = feeds(prepared.model, data, samples)
    original = against.path if isinstance(against, Imported) else against
    with (
        Reference(original, threads=jobs) as plain,
        Reference(original, threads=jobs, optimized=True) as fast,
    ):

        def run_model(feed: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, float]]:
            a = plain.run(feed, [p.name for p in outputs])
            b = fast.run(feed, list(a))
            return a, {k: relative(v, b[k]) for k, v in a.items()}

        return hold(run_model, plain.runtime, _fitted(found, inputs, outputs), given, name, least)


def compare_artifacts(
    first: Path, second: Path, chosen: Target, request: Request, data: Any, sample: int, jobs: int | None
) -> Comparison:
    """Tensors that two artifacts of one target show by the same name, in the first one's order, and the outputs."""
    a, b = (_runners(p, chosen, running(request, jobs))[-1] for p in (first, second))
    inputs, outputs = map(carried, a.ports())
    there = Fitted(b, inputs, outputs)
    feed = _sample(feeds(model_of(inputs), data, sample + 1)[0], sample)
    here = Fitted(a, inputs, outputs)
    common = set(b.names())
    names = [n for n in a.names() if n in common]
    ours, theirs = a.tensors(here.feed(feed), names), b.tensors(there.feed(feed), names)
    result = Comparison(runtime=a.runtime, hidden=len(a.names()) - len(names))
    pairs = {n: (ours[n], theirs[n]) for n in names if n in ours and n in theirs}
    last = there.run(feed)
    pairs |= {n: (v, last[n]) for n, v in here.run(feed).items()}
    for name, (x, y) in pairs.items():
        if x.shape != y.shape or x.dtype != y.dtype:
            continue
        allowed = max(SPREAD * FLOAT32, TOLERANCES.get(request.scheme, 0.0)) if is_inexact(x) else 0.0
        found = difference(x, y)
        result.layers.append(Layer(name, (name,), found, found.relative, allowed))
    return result


def compare_with_model(
    path: Path, chosen: Target, request: Request, model: Model, prepared: Prepared, data: Any, sample: int,
    jobs: int | None,
) -> Comparison:  # fmt: skip
    """The outputs of an artifact of another tool against those of the model, and inner tensors of the same name
    and shape: what lies between cannot be told from the artifact."""
    runner = _runners(path, chosen, running(request, jobs))[-1]
    graph = prepared.model.graph
    there = Fitted(runner, ports_of(graph.inputs), ports_of(graph.outputs))
    feed = _sample(feeds(prepared.model, data, sample + 1)[0], sample)
    original = model.path if isinstance(model, Imported) else model
    result = Comparison(runtime=f"{runner.runtime} on {runner.device}")
    with Reference(original, threads=jobs) as reference:
        inner = [n for n in reference.names() if n in set(runner.names()) - set(reference.outputs())]
        shown = runner.tensors(there.feed(feed), inner) | there.run(feed)
        for values in reference.batches(feed, [n for n in (*inner, *reference.outputs()) if n in shown]):
            for name, expected in values.items():
                found = shown[name]
                if found.shape != expected.shape or found.dtype != expected.dtype:
                    continue
                allowed = QUANTIZED if runner.quantized else SPREAD * FLOAT32 if is_inexact(expected) else 0.0
                error = difference(expected, found)
                result.layers.append(Layer(name, (name,), error, error.relative, allowed))
        result.hidden = len(reference.names()) - len(result.layers)
    return result


def _fitted(runners: list[Ported], inputs: Any, outputs: Any) -> list[Fitted]:
    return [Fitted(r, inputs, outputs) for r in runners]


def _runners(path: Path, chosen: Target, request: Request) -> list[Ported]:
    found = [r for r in chosen.runners(path, request) if isinstance(r, Ported)]
    if not found:
        raise UsageError(f"target '{chosen.name}' does not tell what '{path}' takes and gives")
    return found


def _sample(samples: Iterable[Mapping[str, Array]], index: int) -> dict[str, Array]:
    for place, feed in enumerate(samples):
        if place == index:
            return dict(feed)
    raise UsageError(f"there is no sample {index}")
