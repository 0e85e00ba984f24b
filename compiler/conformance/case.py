"""One case of the kit: a model, its data, what is expected of it, and how far a result may be off."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from tapeout.compiler.metrics import relative

Array = np.ndarray[Any, Any]

# pass: within tolerance on every runner; refused: with a reason; wrong: a number, shape or dtype differs;
# does-not-run: a file was written that a runtime rejects; crash: the process died, hung, or a fault of ours;
# dropped: refused although the declaration promises it; unexplained: refused without constraint, value and fix;
# accepted: taken although it lies outside, or although the file is damaged.
STATUSES = ("pass", "refused", "wrong", "does-not-run", "crash")
MORE = ("dropped", "unexplained", "accepted")
FAULTS = frozenset({*STATUSES[2:], *MORE})
SEPARATOR = " | "  # between the reasons of the nodes of a case

# What is expected: a right result or a refusal with a reason; a right result; a refusal that explains itself;
# one clear error; the same bytes twice; that the vendor's compiler takes the whole artifact.
EITHER, MATCH, REFUSED, ERROR, SAME, FINISHED = "either", "match", "refused", "error", "same", "finished"


@dataclass(frozen=True)
class Case:
    """A serialized model, its inputs and expected outputs by name, and the tolerance: per element (`rtol`,
    `atol`), of the largest magnitude (`relative`), or in quanta of the output at a `rate` of the elements.

    A `legalized` model is held against the declaration as it is, without the target's passes. With `steps` the
    arrays have one more axis in front: the runs, in order, of an artifact that keeps state.
    """

    name: str
    op: str
    model: bytes
    inputs: dict[str, Array]
    outputs: dict[str, Array]
    rtol: float = 0.0
    atol: float = 0.0
    level: str = "nodes"
    expects: str = EITHER
    legalized: bool = False
    scheme: str = "float32"
    device: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    relative: float = 0.0
    quanta: int | None = None
    rate: float = 1.0
    steps: int = 0
    origin: str = ""  # what it was made from: the row, the bound
    stored: bool = (
        False  # the row that takes it is for stored integers, not for reals between two conversions
    )


@dataclass(frozen=True)
class Outcome:
    """What became of a case; `reason` is one line, empty for a pass."""

    case: str
    op: str
    status: str
    reason: str = ""
    level: str = "nodes"
    origin: str = ""

    @property
    def fault(self) -> bool:
        return self.status in FAULTS


def difference(case: Case, results: Mapping[str, Array]) -> str | None:
    """Where `results` leave what is expected: dtype, shape, or a number beyond the tolerance; else None.

    Without a tolerance of the whole tensor each element is held to |a-b| <= atol + rtol*|b|; an expected number
    below the rounding of its own tensor, |b| <= eps*max|b|, is noise of what made the case (a transform that
    cancels to 2e-7 beside 54); there `a` must lie below that rounding as well.
    """
    for name, wanted in case.outputs.items():
        found = results.get(name)
        if found is None:
            return f"output '{name}' is missing"
        if found.dtype != wanted.dtype:
            return f"'{name}' is {found.dtype}, expected {wanted.dtype}"
        if found.shape != wanted.shape:
            return f"'{name}' has shape {list(found.shape)}, expected {list(wanted.shape)}"
        if case.quanta is not None and wanted.dtype.kind in "iu":
            reason = _in_quanta(name, found, wanted, case)
        elif case.relative and (wanted.dtype.kind == "f" or wanted.dtype.name == "bfloat16"):
            far = relative(wanted.astype(np.float64), found.astype(np.float64))
            reason = None if far <= case.relative else f"'{name}' is {far:.2e} of its largest magnitude off"
        else:
            reason = _by_element(name, found, wanted, case)
        if reason is not None:
            return reason
    return None


def _in_quanta(name: str, found: Array, wanted: Array, case: Case) -> str | None:
    assert case.quanta is not None
    apart = np.abs(found.astype(np.int64) - wanted.astype(np.int64))
    most, count = int(apart.max(initial=0)), int((apart > 0).sum())
    size = max(apart.size, 1)
    # What chance adds where there are few elements: three sigma and one more.
    allowed = case.rate + 3 * math.sqrt(case.rate * (1 - case.rate) / size) + 1 / size
    if most <= case.quanta and (case.quanta == 0 or count / size <= allowed):
        return None
    return (
        f"'{name}' is {most} quanta off, {count} of {apart.size} elements differ; "
        f"at most {case.quanta} at {case.rate:.1%}"
    )


def _by_element(name: str, found: Array, wanted: Array, case: Case) -> str | None:
    close = _close(found, wanted, case.rtol, case.atol)
    if np.all(close):
        return None
    at = tuple(int(i) for i in np.argwhere(np.asarray(~close))[0])
    first = f"first at {list(at)}: {found[at]}, expected {wanted[at]}"
    return f"'{name}' differs in {int(np.sum(~close))} of {wanted.size}, {first}"


def _close(found: Array, wanted: Array, rtol: float, atol: float) -> Array:
    if wanted.dtype.kind == "b":
        return np.asarray(found == wanted)
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    close = np.isclose(a, b, rtol=rtol, atol=atol, equal_nan=True)
    finite = np.abs(b[np.isfinite(b)])
    if wanted.dtype.kind == "f" and finite.size:
        rounding = float(ml_dtypes.finfo(wanted.dtype).eps) * finite.max()  # type: ignore[no-untyped-call]
        close |= (np.abs(a) <= rounding) & (np.abs(b) <= rounding)
    # Beyond 2^53 float64 does not tell integers apart.
    return np.asarray(
        close & ((found == wanted) | (np.abs(b) < 2**53)) if wanted.dtype.kind in "iu" else close
    )


def line(text: str) -> str:
    """The text on one line, cut where it is long."""
    return " ".join(text.split())[:2000]
