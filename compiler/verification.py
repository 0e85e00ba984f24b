"""Does the artifact compute what the source computes? On the target's own runtimes, on several inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tapeout.compiler.errors import AccuracyError, InternalError, InvalidModelError, UsageError
from tapeout.compiler.metrics import Array, Difference, difference, is_inexact, relative
from tapeout.compiler.reference import Reference, Source
from tapeout.compiler.target import Runner

if TYPE_CHECKING:
    from tapeout.compiler.cluster_check import Deviation

# max|a-b| / max|reference| that a float32 artifact may show, or this many times ORT's own spread.
FLOAT32 = 1e-5
SPREAD = 4.0
# The same for schemes that compute or store in half precision. bfloat16 has three bits less than float16: each of
# the same roundings is eight times as far (docs/decisions/0010-bfloat16-tolerance.md).
HALF = 1e-2
TOLERANCES = {"float32": FLOAT32, "float16": HALF, "bfloat16": 8 * HALF}


@dataclass(frozen=True)
class Entry:
    """One output on one runtime: the worst of all inputs."""

    output: str
    runtime: str
    device: str
    tolerance: float
    difference: Difference
    sample: int

    @property
    def holds(self) -> bool:
        d = self.difference
        return d.pattern and d.shape == d.found_shape and (d.exact or d.relative <= self.tolerance)

    @property
    def badness(self) -> float:
        """The error relative to what is allowed, for finding the worst of many."""
        d = self.difference
        if not d.pattern or d.shape != d.found_shape:
            return math.inf
        return d.relative / self.tolerance if self.tolerance else (0.0 if d.exact else math.inf)

    @property
    def allowed(self) -> str:
        """What is allowed, for tables."""
        return "-" if math.isinf(self.tolerance) else number(self.tolerance)

    def as_json(self) -> dict[str, Any]:
        return {
            "output": self.output,
            "runtime": self.runtime,
            "device": self.device,
            "tolerance": self.tolerance,
            "sample": self.sample,
            "holds": self.holds,
            **self.difference.as_json(),
        }


@dataclass
class Verification:
    """The result for an artifact: entries per output and runtime; `proven` names runtime and device that
    ran."""

    entries: list[Entry] = field(default_factory=list)
    proven: list[str] = field(default_factory=list)
    samples: int = 0
    data: str = "random"
    reference: str = ""
    failure: str | None = None  # why the artifact did not even run
    clusters: list[Deviation] = field(default_factory=list)  # integer kernels, where they were looked at

    @property
    def holds(self) -> bool:
        return self.failure is None and all(e.holds for e in self.entries)

    def on(self, device: str) -> bool:
        """Whether it ran on `device` itself; what one device computes proves nothing about another."""
        return any(e.device == device for e in self.entries)

    def worst(self) -> Entry | None:
        """The entry that fails first, else the one with the largest error relative to its tolerance."""
        failing = [e for e in self.entries if not e.holds]
        return max(failing or self.entries, key=lambda e: e.badness, default=None)

    def as_json(self) -> dict[str, Any]:
        return {
            "holds": self.holds,
            "failure": self.failure,
            "proven": self.proven,
            "samples": self.samples,
            "data": self.data,
            "reference": self.reference,
            "outputs": [e.as_json() for e in self.entries],
            "clusters": [d.as_json() for d in self.clusters],
        }

    def table(self) -> str:
        """The same for people, one line per output and runtime."""
        rows = [("output", "runtime", "max error", "relative", "allowed", "SQNR dB", "cosine", "argmax", "")]
        for e in self.entries:
            d = e.difference
            argmax = "-" if d.argmax is None else f"{d.argmax:.2%}"
            numbers = (number(d.error), number(d.relative), e.allowed, number(d.sqnr, ".1f"))
            rows.append(
                (e.output, e.runtime, *numbers, f"{d.cosine:.7f}", argmax, "ok" if e.holds else "FAILS")
            )
        return text_table(rows)


def number(value: float, form: str = ".2e") -> str:
    """A float for people: "0" and "equal" where there is nothing to say."""
    return "0" if value == 0 else "inf" if math.isinf(value) else format(value, form)


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows, the first of which is the head, in columns."""
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows)


def tolerance(scheme: str, own_spread: float) -> float:
    """What max|a-b| / max|reference| may be for a float output (integers and booleans are exact)."""
    if scheme not in TOLERANCES:
        raise UsageError(f"no tolerance is known for the scheme '{scheme}'; known: {', '.join(TOLERANCES)}")
    if not math.isfinite(own_spread):
        own_spread = 0.0
    return max(TOLERANCES[scheme], SPREAD * own_spread)


def verify(
    reference: Reference,
    source: Source,
    runners: Sequence[Runner],
    samples: Iterable[Mapping[str, Array]],
    *,
    scheme: str = "float32",
    adapt: Adapter | None = None,
    data: str = "random",
    outputs: Sequence[str] | None = None,
) -> Verification:
    """Run every sample through `reference` and every runner, and keep the worst difference of each output.

    `source` is what ORT's own spread is measured on. `adapt` maps inputs and
    outputs of the artifact to those of the reference where the user asked for another layout.
    """
    result = Verification(data=data, reference=reference.runtime)
    result.proven = [f"{r.runtime} on {r.device}" for r in runners]
    own: dict[str, float] = {}
    worst: dict[tuple[str, int], tuple[Difference, int]] = {}
    exact: set[str] = set()
    with Reference(source, threads=reference.threads, optimized=True, lean=reference.lean) as fast:
        for index, given in enumerate(samples):
            feed = given if adapt is None else adapt.inputs(given)
            expected = reference.run(feed, outputs)
            _widen(own, expected, fast, feed)
            if adapt is not None:
                expected = adapt.outputs(expected)
            result.samples = index + 1
            for place, runner in enumerate(runners):
                try:
                    found = runner.run(given)
                except (InternalError, InvalidModelError) as error:
                    result.failure = error.message
                    return result
                for name, array in expected.items():
                    if name not in found:
                        raise AccuracyError(
                            f"the artifact has no output '{name}', only {', '.join(found) or 'none'}"
                        )
                    if not is_inexact(array):
                        exact.add(name)
                    now = difference(array, found[name])
                    known = worst.get((name, place))
                    if known is None or _size(now) > _size(known[0]):
                        worst[name, place] = now, index
    for (name, place), (largest, index) in worst.items():
        allowed = 0.0 if name in exact else tolerance(scheme, own.get(name, 0.0))
        runner = runners[place]
        result.entries.append(Entry(name, runner.runtime, runner.device, allowed, largest, index))
    return result


def _widen(
    own: dict[str, float], expected: Mapping[str, Array], fast: Reference, feed: Mapping[str, Array]
) -> None:
    """Raise ORT's own spread per output to what this sample shows."""
    try:
        found = fast.run(feed, list(expected))
    except InvalidModelError:  # where optimized ORT cannot run the model there is no spread to allow for
        return
    for name, array in expected.items():
        own[name] = max(own.get(name, 0.0), relative(array, found[name]))


def _size(d: Difference) -> float:
    return d.relative if d.pattern and d.shape == d.found_shape else math.inf


@dataclass(frozen=True)
class Adapter:
    """Between an artifact whose inputs and outputs have another axis order, and the source: `perms[name]`
    makes the artifact's array from the source's, as in `numpy.transpose(source, perm)`."""

    perms: Mapping[str, tuple[int, ...]]

    def inputs(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """The source's inputs from the artifact's."""
        return {k: v.transpose(_inverse(self.perms[k])) if k in self.perms else v for k, v in feed.items()}

    def outputs(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """The artifact's outputs from the source's."""
        return {k: v.transpose(self.perms[k]) if k in self.perms else v for k, v in values.items()}


def _inverse(perm: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(perm)), key=lambda i: perm[i]))
