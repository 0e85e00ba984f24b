"""Does an artifact that computes in integers compute what its graph says, and is that near enough to the source?

End to end two right runtimes differ by many quanta, for one quantum early on moves everything behind it. So the
promise is one of noise: RMS(device - source) is at most `FACTOR` times RMS(graph - source), the graph in ONNX
Runtime, over many samples (`LUCK` says what few add). Where the device is noisier than that, it is either wrong
or unlucky: up to `UNLUCKY` times, the clusters decide, each held to its row's bound (`cluster_check`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tapeout.compiler.errors import AccuracyError, InternalError, InvalidModelError
from tapeout.compiler.metrics import Array, Difference, difference, is_inexact
from tapeout.compiler.reference import Reference
from tapeout.compiler.target import Runner
from tapeout.compiler.verification import Adapter, Entry, Verification

FACTOR = 1.1
UNLUCKY = 4.0
# What chance adds to the ratio over n samples, a few of which carry the error: measured on outputs of softmax, whose
# ratio wanders by this over the square root of n around 1.
LUCK = 0.5
# A graph this near to its source, in dB, is the source: a model that came quantized. The device's roundings are
# then all the noise there is, and the clusters alone decide, as long as the result keeps `KEPT` dB.
SAME = 70.0
KEPT = 15.0
# Noise that every float32 computation has, as a share of the largest magnitude.
FLOOR = 1e-5
# The least SQNR in dB of an output of a quantized model on real data: below, it is another function.
LEAST = 3.0


@dataclass(frozen=True)
class Grid:
    """How the integers of an input or output are read as real numbers: (code - zero) * scale."""

    scale: float
    zero: int
    dtype: np.dtype[Any]

    def codes(self, real: Array) -> Array:
        """The nearest codes of real numbers."""
        if real.dtype == self.dtype:
            return real
        limits = np.iinfo(self.dtype)
        steps = np.rint(real.astype(np.float32) / np.float32(self.scale)) + self.zero
        made: Array = np.clip(steps, limits.min, limits.max).astype(self.dtype)
        return made

    def real(self, codes: Array) -> Array:
        """The real numbers that codes stand for."""
        made: Array = ((codes.astype(np.int64) - self.zero) * np.float32(self.scale)).astype(np.float32)
        return made

    def as_json(self) -> dict[str, Any]:
        return {"scale": self.scale, "zero_point": self.zero, "dtype": self.dtype.name}

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> Grid:
        return Grid(found["scale"], found["zero_point"], np.dtype(found["dtype"]))


@dataclass(frozen=True)
class QuantizedEntry(Entry):
    """One output on one runtime, over all samples. `ratio` is RMS(device - source) over RMS(graph - source),
    `graph_sqnr` the graph's own distance from the source, where there is a `graph`; `cleared` where every cluster
    keeps its bound."""

    ratio: float = 1.0
    graph_sqnr: float = math.inf
    least: float | None = None
    cleared: bool = False
    samples: int = 1
    graph: bool = True

    @property
    def most(self) -> float:
        """The ratio that is allowed."""
        return UNLUCKY if self.cleared else FACTOR * (1 + LUCK / math.sqrt(self.samples))

    @property
    def holds(self) -> bool:
        d = self.difference
        return d.shape == d.found_shape and d.dtype == d.found_dtype and not self.noisy and not self.far

    @property
    def noisy(self) -> bool:
        """Whether the device is further from the source than the graph explains."""
        if self.cleared and self.graph_sqnr >= SAME and self.difference.sqnr >= KEPT:
            return False
        return not self.ratio <= self.most

    @property
    def far(self) -> bool:
        """Whether too little of the source is left."""
        return self.least is not None and not self.difference.sqnr >= self.least

    @property
    def badness(self) -> float:
        d = self.difference
        if d.shape != d.found_shape or d.dtype != d.found_dtype:
            return math.inf
        return max(self.ratio / self.most, 1e6 if self.far else 0.0)

    @property
    def allowed(self) -> str:
        if not self.graph:
            return "-" if self.least is None else f"SQNR >= {self.least:g} dB"
        return f"noise x{self.ratio:.2f} <= {self.most:.2f}"

    def describe(self) -> str:
        """What does not hold, in one line."""
        d, where = self.difference, f"output '{self.output}' on {self.runtime}"
        if d.shape != d.found_shape or d.dtype != d.found_dtype:
            found, right = f"{d.found_dtype}{list(d.found_shape)}", f"{d.dtype}{list(d.shape)}"
            return f"{where} is {found}, expected {right}"
        if self.noisy:
            return (
                f"{where} is {self.ratio:.2f} times as far from the source as the quantized graph in ONNX "
                f"Runtime, at most {self.most:.2f} times is allowed"
            )
        return (
            f"{where} keeps too little of the source: SQNR {d.sqnr:.1f} dB (cosine {d.cosine:.3f}), "
            f"at least {self.least:g} dB is expected; the graph itself has {self.graph_sqnr:.1f} dB"
        )

    def as_json(self) -> dict[str, Any]:
        return {
            **super().as_json(),
            "ratio": self.ratio,
            "most_ratio": self.most,
            "graph_sqnr": self.graph_sqnr,
            "least_sqnr": self.least,
            "clusters_hold": self.cleared,
        }


@dataclass
class Pool:
    """The difference between two tensors over many samples, as sums."""

    noise: float = 0.0
    power: float = 0.0
    other: float = 0.0
    cross: float = 0.0
    error: float = 0.0
    largest: float = 0.0
    rows: float = 0.0
    agreeing: float = 0.0
    elements: int = 0
    last: Difference | None = None
    broken: Difference | None = None

    def add(self, reference: Array, found: Array) -> None:
        d = difference(reference, found)
        self.last = d
        if d.shape != d.found_shape or d.dtype != d.found_dtype:
            self.broken = self.broken or d
            return
        a, b = (np.nan_to_num(v.astype(np.float64)).reshape(-1) for v in (reference, found))
        gap = a - b
        self.noise += float(gap @ gap)
        self.power += float(a @ a)
        self.other += float(b @ b)
        self.cross += float(a @ b)
        self.error = max(self.error, d.error)
        self.largest = max(self.largest, float(np.abs(a).max(initial=0.0)))
        self.elements += a.size
        if d.argmax is not None:
            rows = max(a.size // reference.shape[-1], 1)
            self.rows += rows
            self.agreeing += d.argmax * rows

    @property
    def sqnr(self) -> float:
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.power / self.noise) if self.power else -math.inf

    def difference(self) -> Difference:
        """All samples as one."""
        d = self.broken or self.last
        assert d is not None
        if self.broken is not None:
            return d
        norm = math.sqrt(self.power * self.other)
        return Difference(
            error=self.error,
            relative=0.0 if self.error == 0 else self.error / self.largest if self.largest else math.inf,
            sqnr=self.sqnr,
            cosine=self.cross / norm if norm else float(self.power == self.other),
            argmax=self.agreeing / self.rows if self.rows else None,
            exact=self.noise == 0,
            pattern=math.isfinite(self.error),
            shape=d.shape,
            found_shape=d.found_shape,
            dtype=d.dtype,
            found_dtype=d.found_dtype,
        )

    def ratio(self, graph: Pool) -> float:
        """How much further from the source than `graph`, noise that float32 has anyway left aside."""
        floor = (FLOOR * self.largest) ** 2 * self.elements
        return math.sqrt(self.noise / (graph.noise + floor)) if self.noise > floor else 0.0


@dataclass
class Tally:
    """What an output that holds no real numbers (positions, booleans) shares with the source."""

    differing: int = 0
    elements: int = 0
    last: Difference | None = None

    def add(self, reference: Array, found: Array) -> None:
        self.last = difference(reference, found)
        self.elements += reference.size
        same = reference.shape == found.shape
        self.differing += int((reference != found).sum()) if same else reference.size

    def ratio(self, graph: Tally) -> float:
        """The share that differs over the graph's, and what chance explains where few elements do."""
        count = max(self.elements, 1)
        share = max(graph.differing / count, 0.01)
        chance = share + 3 * math.sqrt(share / count) + 1 / count
        return FACTOR * (self.differing / count) / chance


@dataclass
class Question:
    """What an artifact in integers is asked: on which `samples` (of the source's types), against which
    `source` and `graph` (None: only the source is held against it), how its integer inputs and outputs are read
    (`grids`), and the least SQNR to the source, if any. `adapt` and `graph_adapt` stand before the source and the
    graph, where what they take and give is something else."""

    source: Reference
    graph: Reference | None
    samples: Iterable[Mapping[str, Array]]
    outputs: Sequence[str]
    grids: Mapping[str, Grid] = field(default_factory=dict)
    adapt: Adapter | None = None
    least: float | None = None
    data: str = "random"
    graph_adapt: Adapter | None = None


def verify_quantized(question: Question, runners: Sequence[Runner]) -> Verification:
    """Run every sample through the source, the graph and every runner, and hold the noise of each output against
    the graph's. The sessions of source and graph are closed."""
    q = question
    result = Verification(data=q.data, reference=q.source.runtime)
    result.proven = [f"{r.runtime} on {r.device}" for r in runners]
    found: dict[tuple[str, int], Pool | Tally] = {}
    # One after the other: sessions hold the weights, each in an order of its own.
    samples = list(q.samples)
    wanted = [_adapted(q.source, q.adapt, given, q.outputs) for given in samples]
    q.source.close()
    codes = [{k: q.grids[k].codes(v) if k in q.grids else v for k, v in s.items()} for s in samples]
    made: list[Mapping[str, Array]] = []
    if q.graph is not None:
        made = [_adapted(q.graph, q.graph_adapt, coded, q.outputs) for coded in codes]
        q.graph.close()
    for index, (expected, coded) in enumerate(zip(wanted, codes, strict=True)):
        result.samples = index + 1
        answers: list[tuple[int, Mapping[str, Array]]] = [(-1, made[index])] if made else []
        try:
            answers += [(place, runner.run(coded)) for place, runner in enumerate(runners)]
        except (InternalError, InvalidModelError) as error:
            result.failure = error.message
            return result
        for place, answer in answers:
            for name, right in expected.items():
                if name not in answer:
                    raise AccuracyError(f"the artifact has no output '{name}', only {', '.join(answer)}")
                real = q.grids[name].real(answer[name]) if name in q.grids else answer[name]
                key = (name, place)
                if key not in found:
                    found[key] = Pool() if is_inexact(right) else Tally()
                found[key].add(right, real)
    for (name, place), pool in found.items():
        if place >= 0:
            entry = _entry(name, runners[place], pool, found.get((name, -1)), q)
            result.entries.append(replace(entry, samples=result.samples))
    return result


def _adapted(
    reference: Reference, adapt: Adapter | None, feed: Mapping[str, Array], outputs: Sequence[str]
) -> Mapping[str, Array]:
    if adapt is None:
        return reference.run(feed, outputs)
    return adapt.outputs(reference.run(adapt.inputs(feed), outputs))


def _entry(
    name: str, runner: Runner, pool: Pool | Tally, graph: Pool | Tally | None, q: Question
) -> QuantizedEntry:
    if isinstance(pool, Tally):
        assert pool.last is not None
        ratio = 1.0 if not isinstance(graph, Tally) else pool.ratio(graph)
        return QuantizedEntry(name, runner.runtime, runner.device, 0.0, pool.last, 0, ratio)
    ratio, own = 1.0, math.inf
    if isinstance(graph, Pool):
        ratio, own = pool.ratio(graph), graph.sqnr
    # An output that is all but 0 has no signal to be lost.
    least = q.least if pool.power > (FLOOR**2) * pool.elements else None
    return QuantizedEntry(
        name, runner.runtime, runner.device, 0.0, pool.difference(), 0, ratio, own, least,
        graph=isinstance(graph, Pool),
    )  # fmt: skip
