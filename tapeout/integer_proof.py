"""Proof of an export in integers: on real data where there is some, against the source and the quantized graph."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler import data as inputs
from tapeout.compiler.cluster_check import check_clusters
from tapeout.compiler.errors import InvalidModelError
from tapeout.compiler.integer_verification import (
    LEAST,
    UNLUCKY,
    Grid,
    QuantizedEntry,
    Question,
    verify_quantized,
)
from tapeout.compiler.metrics import Array
from tapeout.compiler.operations import operations
from tapeout.compiler.reference import Reference
from tapeout.compiler.states import Feedback, states, zeros
from tapeout.compiler.target import Runner
from tapeout.compiler.verification import Adapter, Verification
from tapeout.proof import Claim, feeds, read_source, running, steps, unproven_source
from tapeout.road import prepare

# Multiply-accumulates that the samples of one proof come to, and the least number of samples.
WORK = 1e9
LEAST_SAMPLES = 2
# Steps of an artifact that keeps states.
LEAST_STEPS = 5
# Samples that the clusters are looked at on, where it comes to that.
CLUSTER_SAMPLES = 2


def prove_quantized(claim: Claim, runners: Sequence[Runner]) -> Verification:
    """Hold an artifact that computes in integers against the source, and against its own graph where that is
    at hand: by noise, and where that leaves a doubt cluster by cluster."""
    pairs = states(claim.prepared.model, claim.request.options)
    given, name, real = (*steps(claim), claim.data is not None) if pairs else samples_of(claim)
    drawn = list(itertools.islice(given, max(count_for(claim), LEAST_STEPS if pairs else 0)))
    graph = claim.prepared.model if claim.legalized else None
    outputs = [v.name or "" for v in claim.prepared.model.graph.outputs]
    grids = claim.grids if graph is None else grids_of(graph)

    def held(source: Reference, adapter: Adapter | None) -> Verification:
        own = None if graph is None or not pairs else Feedback({}, pairs, zeros(graph, pairs))
        question = Question(source, None, drawn, outputs, grids, adapter, LEAST if real else None, name, own)
        with source:
            if graph is None:
                return verify_quantized(question, runners)
            with Reference(graph, threads=claim.jobs) as second:
                return verify_quantized(replace(question, graph=second), runners)

    source, adapter = unproven_source(claim)
    try:
        result = held(source, adapter)
    except InvalidModelError:  # ONNX Runtime may be unable to run the file as it is
        result = held(read_source(claim), unproven_source(claim)[1])
    if graph is None:
        return result
    if pairs:
        return result  # a step of a kernel cannot be looked at without the state that it had
    if result.failure is None and any(isinstance(e, QuantizedEntry) and e.noisy for e in result.entries):
        _clear(claim, graph, runners, drawn, grids, result)
    return result


def count_for(claim: Claim) -> int:
    """How many samples: for large models fewer, since four computations of each are made."""
    if not claim.legalized:
        return claim.samples
    work = sum(operations(node, 1) or 0 for node in claim.prepared.model.graph)
    return max(min(claim.samples, int(WORK // max(work, 1))), LEAST_SAMPLES)


def samples_of(claim: Claim) -> tuple[Iterable[Mapping[str, Array]], str, bool]:
    """What to run on, in the source's types, its name, and whether it is real data: the user's, else what the
    model was calibrated on, else random numbers."""
    model = claim.prepared.model
    if claim.legalized and claim.request.dtypes:
        model = prepare(claim.model, claim.wish).model  # its inputs may be integers by now
    calibration = claim.request.calibration
    if claim.data is None and calibration is not None and calibration.has_samples:
        return itertools.islice(calibration.feeds(), claim.samples), "calibration data", True
    if claim.data is not None:
        return inputs.Data(claim.data, model).samples(claim.samples), str(claim.data), True
    return *feeds(model, None), False


def grids_of(model: ir.Model) -> dict[str, Grid]:
    """How the integer inputs and outputs of the quantized graph are read."""
    from tapeout.passes.quantization.interface import border

    return {
        name: Grid(found.scale, found.zero, np.dtype(found.dtype.numpy()))
        for name, found in border(model).items()
    }


def stated_grids(manifest: Mapping[str, Any]) -> dict[str, Grid]:
    """The same of an artifact, as its manifest says."""
    ports = {p["name"]: p for side in manifest.get("interface", {}).values() for p in side}
    known = manifest.get("quantization", {}).get("interface", {})
    return {name: Grid.from_json(ports[name] | grid) for name, grid in known.items() if name in ports}


def _clear(
    claim: Claim,
    graph: ir.Model,
    runners: Sequence[Runner],
    drawn: Sequence[Mapping[str, Array]],
    grids: Mapping[str, Grid],
    result: Verification,
) -> None:
    """Look at every cluster: where each keeps its bound, what is left is chance."""
    if any(isinstance(e, QuantizedEntry) and e.ratio > UNLUCKY for e in result.entries):
        shown = drawn[:1]
    else:
        shown = drawn[:CLUSTER_SAMPLES]
    coded = [{k: grids[k].codes(v) if k in grids else v for k, v in feed.items()} for feed in shown]
    names = [v.name or "" for node in graph.graph for v in node.outputs]
    # Of those that show as much, the last: targets list the runtime that fuses most first.
    runner = max(reversed(runners), key=lambda r: len(r.tensors(coded[0], names)))
    try:
        result.clusters = check_clusters(
            graph, claim.target, running(claim.request, claim.jobs), runner, coded
        )
    except InvalidModelError:
        return
    if result.clusters and all(d.holds for d in result.clusters):
        result.entries = [
            replace(e, cleared=True) if isinstance(e, QuantizedEntry) else e for e in result.entries
        ]
