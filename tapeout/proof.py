"""Proof of an export: its numbers on the target's runtimes, the verdict, and where the fault lies."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler import data as inputs
from tapeout.compiler.errors import AccuracyError, InternalError, InvalidModelError, TapeoutError, UsageError
from tapeout.compiler.frontends.imported import Imported
from tapeout.compiler.integer_verification import Grid, QuantizedEntry
from tapeout.compiler.ir import graph as g
from tapeout.compiler.memory import LARGE, trimmed
from tapeout.compiler.metrics import Array
from tapeout.compiler.reference import Reference, Source
from tapeout.compiler.states import OPTION as STATE
from tapeout.compiler.states import Feedback, stateless, states, step_sizes, zeros
from tapeout.compiler.target import Request, Target
from tapeout.compiler.verification import TOLERANCES, Adapter, Entry, Verification, number, verify
from tapeout.road import Model, Prepared, Wish, prepare

# Samples of the user's data that an export is checked on; `tapeout verify --samples` takes more.
SAMPLES = 8

# Steps that an artifact which keeps states is checked on at least.
STEPS = 20

# Metrics that --gate knows, and whether the bound is the least ("min") or the most ("max") that is right.
GATES = {"sqnr": "min", "cosine": "min", "argmax": "min", "error": "max", "relative": "max"}


@dataclass(frozen=True)
class Claim:
    """An artifact, and the model and wishes that it is said to fulfil. `prepared` may have been through the
    passes (`legalized`): then it is what was emitted, and for integers is held against; else of it only the
    interface is used, and `grids` say how integer inputs and outputs are read."""

    model: Model
    wish: Wish
    prepared: Prepared
    target: Target
    request: Request
    artifact: Path
    data: str | os.PathLike[str] | None = None
    jobs: int | None = None
    samples: int = SAMPLES
    legalized: bool = False
    grids: Mapping[str, Grid] = field(default_factory=dict)


def running(request: Request, jobs: int | None) -> Request:
    """The request as runners get it: their option `threads` follows --jobs."""
    return request if jobs is None else replace(request, options={"threads": str(jobs), **request.options})


def feeds(
    model: ir.Model, data: str | os.PathLike[str] | None, limit: int = SAMPLES
) -> tuple[Iterable[Mapping[str, Array]], str]:
    """What to run on, and its name: the user's data, else random inputs (where the batch is free at 2, 1 and
    3)."""
    if data is not None:
        return inputs.Data(data, model).samples(limit), os.fspath(data)
    drawn = inputs.random_inputs(model)
    free = any(isinstance(s[0], str) for v in model.graph.inputs if (s := g.dims(v)))
    if free:
        drawn += inputs.random_inputs(model, 1, 1, batch=1) + inputs.random_inputs(model, 2, 1, batch=3)
    return drawn, "random"


def steps(claim: Claim) -> tuple[Iterable[Mapping[str, Array]], str]:
    """What to run an artifact on that keeps states: the inputs of consecutive steps, without the states."""
    model, pairs = claim.prepared.model, states(claim.prepared.model, claim.request.options)
    if claim.data is not None:
        plain = stateless(model, pairs)
        return inputs.Data(claim.data, plain).samples(max(claim.samples, STEPS)), os.fspath(claim.data)
    sizes = itertools.islice(step_sizes(model, pairs, inputs.bindings(model)), STEPS)
    drawn = [inputs.random_inputs(model, k, 1, sizes=found)[0] for k, found in enumerate(sizes)]
    return [{k: v for k, v in feed.items() if k not in pairs} for feed in drawn], "random steps"


def source_of(claim: Claim, feed: Mapping[str, Array]) -> tuple[Source, Adapter | None]:
    """What stands for the source: the file itself where ONNX Runtime can run it, else the model as it was
    read."""
    reference, adapter = opened_source(claim, feed)
    with reference:
        return reference.source, adapter


def opened_source(claim: Claim, feed: Mapping[str, Array]) -> tuple[Reference, Adapter | None]:
    """As `source_of`, opened; it runs on `feed`."""
    reference, adapter = unproven_source(claim)
    try:
        reference.run(feed if adapter is None else adapter.inputs(feed))
    except InvalidModelError:
        reference.close()
        reference = read_source(claim)
    return reference, adapter


def unproven_source(claim: Claim) -> tuple[Reference, Adapter | None]:
    """The file itself, which ONNX Runtime may be unable to run."""
    adapter = Adapter(claim.prepared.perms) if claim.prepared.perms else None
    pairs = states(claim.prepared.model, claim.request.options)
    if pairs:
        first = Adapter(claim.prepared.perms).inputs(zeros(claim.prepared.model, pairs))
        adapter = Feedback(claim.prepared.perms, pairs, first)
    original: Source = claim.model.path if isinstance(claim.model, Imported) else claim.model
    return Reference(original, threads=claim.jobs, lean=_large(claim)), adapter


def read_source(claim: Claim) -> Reference:
    """The model as it was read."""
    plain = Wish(claim.wish.shape, {}, claim.wish.outputs)
    return Reference(prepare(claim.model, plain).model, threads=claim.jobs, lean=_large(claim))


def _large(claim: Claim) -> bool:
    """Whether the model's files are too large to lie in memory, once for each runtime."""
    return sum(f.stat().st_size for f in claim.prepared.files if f.exists()) >= LARGE


def prove(claim: Claim) -> Verification | None:
    """Run the artifact on every runtime of its target against the source; None where the target has none
    here."""
    if not _large(claim):
        return _proven(claim)
    with trimmed([*claim.prepared.files, claim.artifact]):
        return _proven(claim)


def _proven(claim: Claim) -> Verification | None:
    try:
        runners = claim.target.runners(claim.artifact, running(claim.request, claim.jobs))
    except (InternalError, InvalidModelError) as error:
        return Verification(failure=error.message, samples=1)
    if not runners:
        return None
    if claim.request.scheme not in TOLERANCES:
        from tapeout.integer_proof import prove_quantized

        return prove_quantized(claim, runners)
    kept = states(claim.prepared.model, claim.request.options)
    samples, name = steps(claim) if kept else feeds(claim.prepared.model, claim.data, claim.samples)
    samples = iter(samples)
    first = next(samples)
    source, adapter = source_of(claim, first)
    names = [v.name or "" for v in claim.prepared.model.graph.outputs]
    with Reference(source, threads=claim.jobs, lean=_large(claim)) as reference:
        return verify(
            reference, source, runners, _chain(first, samples),
            scheme=claim.request.scheme, adapt=adapter, data=name, outputs=names,
        )  # fmt: skip


def _chain(first: Mapping[str, Array], rest: Iterable[Mapping[str, Array]]) -> Iterable[Mapping[str, Array]]:
    yield first
    yield from rest


def judge(
    proof: Verification | None, gates: Mapping[str, float], require_proof: bool, claim: Claim
) -> AccuracyError | None:
    """The error that the proof calls for, if any."""
    where = f"{claim.target.name} on {claim.request.device}"
    if proof is None:
        if require_proof or gates:
            return AccuracyError(
                f"nothing here can run the artifact for {where}: it is unproven",
                hint="without --require-proof and --gate it is written all the same",
            )
        return None
    if require_proof and proof.entries and not proof.on(claim.request.device):
        return AccuracyError(
            f"the artifact for {where} ran on {', '.join(proof.proven)} only: it is unproven",
            hint="without --require-proof it is written all the same",
        )
    if proof.failure is not None:
        return AccuracyError(f"the artifact does not run: {proof.failure}")
    broken = next((d for d in proof.clusters if not d.holds), None)
    if broken is not None:
        return AccuracyError(
            broken.text(),
            hint="a fault of tapeout or of the runtime: please report it; --keep-rejected keeps the file",
            nodes=[broken.name],
        )
    worst = proof.worst()
    if worst is not None and not worst.holds:
        hint = None
        if isinstance(worst, QuantizedEntry) and worst.far:
            hint = "calibrate on data like what the model meets, or keep layers wider with a recipe"
        return AccuracyError(describe(worst, proof), hint=hint)
    return _gated(proof, gates)


def judge_numbers(proof: Verification, gates: Mapping[str, float]) -> AccuracyError | None:
    """The same of an artifact that another tool made: nothing is said about causes."""
    worst = proof.worst()
    if worst is not None and not worst.holds:
        hint = "--data gives real inputs, --gate METRIC=BOUND asks for what another tool promises"
        return AccuracyError(describe(worst, proof), hint=hint)
    return _gated(proof, gates)


def _gated(proof: Verification, gates: Mapping[str, float]) -> AccuracyError | None:
    for metric, bound in gates.items():
        if metric not in GATES:
            raise UsageError(f"no metric '{metric}'; --gate knows {', '.join(GATES)}")
        for entry in proof.entries:
            value = getattr(entry.difference, metric)
            if value is not None and (value < bound if GATES[metric] == "min" else value > bound):
                side = "at least" if GATES[metric] == "min" else "at most"
                return AccuracyError(
                    f"output '{entry.output}' on {entry.runtime}: {metric} {number(value, '.6g')}, "
                    f"{side} {bound:g} is asked for"
                )
    return None


def describe(entry: Entry, proof: Verification) -> str:
    """What is wrong with an output, in one line."""
    if isinstance(entry, QuantizedEntry):
        return entry.describe()
    d, where = entry.difference, f"output '{entry.output}' on {entry.runtime}"
    if d.shape != d.found_shape:
        return f"{where} has shape {list(d.found_shape)}, expected {list(d.shape)}"
    if d.dtype != d.found_dtype:
        return f"{where} is {d.found_dtype}, expected {d.dtype}"
    if not d.pattern:
        return f"{where} has NaN or infinity where the source has none, or the other way round"
    if entry.tolerance == 0:
        return f"{where} differs by up to {number(d.error)}, expected equal"
    return (
        f"{where} is off by {number(d.relative)} of the largest value, "
        f"at most {number(entry.tolerance)} is allowed ({proof.data} data, sample {entry.sample})"
    )


def locate(error: AccuracyError, claim: Claim, proof: Verification) -> AccuracyError:
    """The same error with the first source node beyond tolerance and the pass that introduced it, where
    found."""
    if claim.artifact.is_dir():  # parts on several runtimes: `compare` shows where they leave the source
        return error
    from tapeout.compiler.location import find

    worst = proof.worst()
    if claim.request.options.get(STATE):
        return error  # what a step is off by may come from any step before it
    if claim.request.dtypes or (isinstance(worst, QuantizedEntry) and proof.failure is None):
        return error  # its clusters have been looked at
    index = proof.samples - 1 if proof.failure is not None or worst is None else worst.sample
    try:
        samples, _ = feeds(claim.prepared.model, claim.data, claim.samples)
        feed = next(itertools.islice(samples, index, None))
        expected = _expected(claim, feed)
        fault = find(
            lambda: prepare(claim.model, claim.wish).model,
            claim.target,
            claim.request,
            claim.artifact,
            feed,
            expected=expected,
            threads=claim.jobs,
        )
    except TapeoutError as other:
        return AccuracyError(
            f"{error.message}; looking for the cause failed: {other.message}", hint=error.hint
        )
    if fault is None:
        return error
    return AccuracyError(
        f"{error.message}; {fault.describe()}",
        hint="a fault of tapeout or of the runtime: please report it; --keep-rejected keeps the file",
        nodes=fault.nodes,
    )


def _expected(claim: Claim, feed: Mapping[str, Array]) -> dict[str, Array] | None:
    """The outputs of the original, where it is not the model as it was read."""
    source, adapter = source_of(claim, feed)
    if isinstance(source, ir.Model):
        return None
    names = [v.name or "" for v in claim.prepared.model.graph.outputs]
    with Reference(source, threads=claim.jobs) as reference:
        if adapter is None:
            return reference.run(feed, names)
        return adapter.outputs(reference.run(adapter.inputs(feed), names))


def inner_spread(model: ir.Model, feed: Mapping[str, Array], threads: int | None) -> dict[str, float]:
    """How far rounding alone moves the outputs, for the tolerance of what lies before them."""
    from tapeout.compiler.reference import spread

    try:
        return spread(model, [feed], threads=threads)
    except InvalidModelError:
        return {}


def interface_model(manifest: Mapping[str, Any], artifact: Path) -> ir.Model:
    """A model with the artifact's inputs and nothing else, to draw inputs for."""
    known = manifest.get("interface", {}).get("inputs")
    if not known:
        raise UsageError(f"there is no manifest beside '{artifact}'", hint="name the model with --against")
    values = [
        ir.Value(
            name=i["name"],
            type=ir.TensorType(ir.DataType.from_numpy(np.dtype(i["dtype"]))),
            shape=ir.Shape(i["shape"]),
        )
        for i in known
    ]
    return ir.Model(ir.Graph(values, [], nodes=[], opset_imports={"": 25}), ir_version=10)
