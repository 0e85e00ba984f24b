"""Pruning and factorization of a model before its target's passes: what is asked, carried out, measured and told.

The result is a plain model without masks, which the target's road, verification and comparison take as their
source; how far it is from the model that was given is measured here, after each step.
"""

from __future__ import annotations

import difflib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from tapeout.calibrating import Samples
from tapeout.compiler.errors import UsageError
from tapeout.compiler.pipeline import Pass, run
from tapeout.road import Prepared, Wish, prepare

if TYPE_CHECKING:
    from tapeout.compiler.calibration import Calibration

Array = np.ndarray[Any, Any]
Build = Callable[["Calibration | None"], Pass]

CHANNELS, CONSTANT = "channels", "constant-channels"
# Samples on which a step's result is compared with the model that was given.
COMPARED = 32


@dataclass(frozen=True)
class Step:
    """One step as the user wrote it, and what makes its pass."""

    text: str
    build: Build


def steps(prune: Sequence[str], factorize: Sequence[str]) -> tuple[Step, ...]:
    """The steps in order: those of `prune`, then those of `factorize`, each METHOD=AMOUNT. Raises UsageError."""
    return (*(_prune(text) for text in prune), *(_factorize(text) for text in factorize))


def _prune(text: str) -> Step:
    from tapeout.passes.sparsity import Pattern, Prune, PruneChannels
    from tapeout.passes.sparsity.solve import SOLVERS

    method, amount = _parts(text, "--prune", (*SOLVERS, CHANNELS, CONSTANT))
    if method == CONSTANT:
        return Step(f"prune {method}", lambda data: PruneChannels(None, _needed(data, text)))
    if method == CHANNELS:
        share = _share(amount, text)
        return Step(f"prune {text}", lambda data: PruneChannels(share, _needed(data, text)))
    pattern = Pattern.parse(amount)
    return Step(f"prune {text}", lambda data: Prune(method, pattern, data))


def _factorize(text: str) -> Step:
    from tapeout.passes.factorization import METHODS, Factorize

    method, amount = _parts(text, "--factorize", METHODS)
    share = _share(amount, text)
    return Step(f"factorize {text}", lambda data: Factorize(method, share, _needed(data, text)))


def _parts(text: str, option: str, methods: Sequence[str]) -> tuple[str, str]:
    method, equals, amount = text.partition("=")
    if method not in methods:
        close = difflib.get_close_matches(method, methods, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'?" if close else f"valid: {', '.join(methods)}"
        raise UsageError(f"{option}: unknown method '{method}'", hint=hint)
    if not equals and method != CONSTANT:
        raise UsageError(f"{option} {text}: says no amount", hint=f"as in {method}=0.5")
    return method, amount


def _share(amount: str, text: str) -> float:
    try:
        share = float(amount)
    except ValueError:
        share = -1.0
    if not 0 < share < 1:
        raise UsageError(
            f"'{text}': {amount} is no share between 0 and 1",
            hint="it is the share of the operations to remove",
        )
    return share


def _needed(data: Calibration | None, text: str) -> Calibration:
    if data is None:
        raise UsageError(
            f"'{text}' looks at calibration data, and there is none", hint="give --calibration DATA"
        )
    return data


def compressed(
    prepared: Prepared, todo: Sequence[Step], samples: Samples | None, folder: Path
) -> tuple[Path, Prepared, list[dict[str, Any]]]:
    """Carry out `todo` on the model: the file in `folder` that holds the result, the result as it is prepared
    from there, and what each step did. Raises UsageError where a step cannot be carried out."""
    from tapeout.compiler.ir.save import save
    from tapeout.passes.canonicalize import CANONICALIZE
    from tapeout.passes.fusion import FUSION

    model = prepared.model
    run(model, (*CANONICALIZE, *FUSION, *CANONICALIZE))
    data = None if samples is None else samples.open(prepared)
    compare = None if data is None or not data.has_samples else Comparison(model, data)
    told = [{"step": "source", **figures(model)}]
    for step in todo:
        start = time.perf_counter()
        history = run(model, (step.build(data), *CANONICALIZE))
        said: dict[str, Any] = {
            "step": step.text,
            "seconds": round(time.perf_counter() - start, 2),
            **figures(model),
        }
        if compare is not None:
            said |= compare(model)
        said["left"] = [f"'{d.node}' {d.reason}" if d.node else d.reason for d in history.steps[0].declined]
        told.append(said)
    path = folder / "compressed.onnx"
    save(model, path)
    again = replace(prepare(path, Wish()), files=prepared.files, framework=prepared.framework)
    return path, again, told


def figures(model: ir.Model) -> dict[str, Any]:
    """What convolutions and matrix products of a model hold and cost: weights, zeros, multiply-accumulates for one
    sample, bytes as they are and with zeros left out (a bit for each weight, and the others)."""
    from tapeout.compiler.operations import operations
    from tapeout.passes.sparsity.layers import layers

    weights = zeros = work = plain = 0
    packed = 0.0
    for found in layers(model.graph):
        tensor = found.stored.const_value
        assert tensor is not None
        none = int(np.count_nonzero(tensor.numpy() == 0))
        weights += tensor.size
        zeros += none
        work += operations(found.node, assume=1) or 0
        plain += tensor.nbytes
        packed += (tensor.size - none) * tensor.dtype.itemsize + -(-tensor.size // 8)
    return {
        "weights": weights, "zeros": zeros, "operations": work, "weight_bytes": plain,
        "weight_bytes_without_zeros": int(min(packed, plain)),
    }  # fmt: skip


class Comparison:
    """Holds the outputs of the model that was given against those of the model in work, on calibration samples."""

    def __init__(self, model: ir.Model, data: Calibration) -> None:
        from tapeout.passes.quantization.layers import spread

        self.feeds = spread(list(data.feeds()), COMPARED)
        self.names = [v.name or "" for v in model.graph.outputs if v.dtype == ir.DataType.FLOAT]
        self.wanted = self._outputs(model)

    def _outputs(self, model: ir.Model) -> list[list[Array]]:
        from tapeout.compiler.reference import Reference

        with Reference(model) as reference:
            return [[reference.run(feed, self.names)[n] for n in self.names] for feed in self.feeds]

    def __call__(self, model: ir.Model) -> Mapping[str, float]:
        """`lost`: share of the outputs' variance; `agreement`: share of samples that keep their largest element of
        the first output, where that is a row of scores."""
        found = self._outputs(model)
        wanted = [np.concatenate([s[i].ravel() for s in self.wanted]) for i in range(len(self.names))]
        ours = [np.concatenate([s[i].ravel() for s in found]) for i in range(len(self.names))]
        lost = [
            float(np.mean((a.astype(np.float64) - b) ** 2) / max(float(np.var(b, dtype=np.float64)), 1e-30))
            for a, b in zip(ours, wanted, strict=True)
        ]
        said = {"lost": max(lost, default=0.0)}
        if self.names and self.wanted[0][0].ndim == 2 and self.wanted[0][0].shape[1] > 1:
            kept = [
                np.mean(a[0].argmax(1) == b[0].argmax(1)) for a, b in zip(found, self.wanted, strict=True)
            ]
            said["agreement"] = float(np.mean(kept))
        return said


def lines(told: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was done, for people: a line for each step."""
    found = []
    for before, said in itertools.pairwise(told):
        parts = []
        if said["operations"] < before["operations"]:
            parts.append(f"{said['operations'] / before['operations']:.1%} of the operations")
        if said["weights"] < before["weights"]:
            parts.append(f"{said['weights'] / before['weights']:.1%} of the weights")
        if said["zeros"] / said["weights"] > before["zeros"] / before["weights"]:
            share = f"{said['zeros'] / said['weights']:.1%} of {said['weights']:,} weights are zero"
            parts.append(f"{share} (fewer bytes where they are packed, no less time)")
        if "lost" in said:
            parts.append(f"{said['lost']:.2%} of the outputs' variance lost on calibration data")
        if "agreement" in said:
            parts.append(f"{said['agreement']:.1%} of the samples keep their largest output")
        left = [reason for reason in said["left"] if reason.startswith("'")]
        if left:
            parts.append(
                left[0] if len(left) == 1 else f"{len(left)} layers stay as they are (the report says why)"
            )
        found.append(f"{said['step']}: {', '.join(parts) or 'changed nothing'}")
    return found
