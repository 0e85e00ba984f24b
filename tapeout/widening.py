"""The second attempt at an export that lost too much in narrow storage: with the weights wide that need it."""

from __future__ import annotations

from dataclasses import replace

from tapeout.compiler.errors import AccuracyError
from tapeout.compiler.narrowing import ALL, OPTION, Choice, as_option, choose, narrowed
from tapeout.compiler.target import Request
from tapeout.compiler.verification import Verification
from tapeout.proof import Claim, feeds
from tapeout.road import legalize, prepare


def widening(claim: Claim, proof: Verification | None) -> Choice | None:
    """The weights that must stay wide for the artifact to hold, measured on what it was verified with.

    None where the proof does not fail, or not by the rounding of weights. `claim.prepared` has been through
    the passes.
    """
    if proof is None or proof.holds or proof.failure is not None:
        return None
    narrow = narrowed(claim.prepared.model)
    if not narrow:
        return None
    wide = prepare(claim.model, claim.wish).model
    legalize(wide, claim.target, replace(claim.request, options={**claim.request.options, OPTION: ALL}))
    samples = [dict(s) for s in feeds(claim.prepared.model, claim.data, claim.samples)[0]]
    allowed = {v.name or "": 0.0 for v in wide.graph.outputs}
    for entry in proof.entries:
        allowed[entry.output] = entry.tolerance
    return choose(wide, narrow, samples, allowed, threads=claim.jobs)


def keeping(request: Request, choice: Choice) -> Request:
    """The request by which the chosen weights stay wide: the same as the user's option would ask for."""
    value = as_option(choice.wide, request.options.get(OPTION, ""))
    return replace(request, options={**request.options, OPTION: value})


def hopeless(error: AccuracyError, choice: Choice, request: Request) -> AccuracyError:
    """The error of an artifact that too many weights would have to stay wide for."""
    return AccuracyError(
        f"{error.message}; it is the rounding of the weights: {choice.share:.0%} of their bytes "
        f"would have to stay float32",
        hint=f"this model does not hold in {request.scheme}: export it with --quantize float32",
    )
