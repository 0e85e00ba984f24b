"""Which weights stay wide so that narrow storage of the others holds its tolerance: measured, not guessed.

Rounding a weight W to W + d moves the outputs by J d, to first order, and the moves of several weights add up.
So every narrowed weight's move e_i is measured alone, on the samples that suffer most, by one ONNX Runtime
session over the wide graph whose weights are inputs with defaults. Until the worst element of the outputs is
expected within the tolerance, the weight that adds most to it per byte becomes wide again, where the moves are
taken as independent: sum of e_i**2. The shortest such list that really holds, by a run with all other weights
narrow on all samples, is then relieved of what it can do without.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from tapeout.compiler.errors import InvalidModelError
from tapeout.compiler.ir import graph as g
from tapeout.compiler.metrics import Array, is_inexact, relative
from tapeout.compiler.reference import Reference

# On a narrow initializer: the name of the wide weight that it stands for.
_NARROWED = "tapeout.narrowed"
# The option of targets by which weights are named that stay wide, and what fits every name.
OPTION = "wide"
ALL = "*"
# Of a tolerance, so much may be used up by the rounding of weights.
MARGIN = 0.85
# Where more than this share of the narrowed bytes must become wide again, narrow storage is no answer.
MOST = 0.75
# Samples on which every weight is measured alone, and how many weights, or groups of neighbours, at most.
SAMPLES = 2
GROUPS = 256
# Elements of an output that are kept of each measurement.
ELEMENTS = 1 << 16
# Bytes of rounded weights that are kept between measurements.
HELD = 512 << 20
# Weights that the final list may be relieved of: each costs a run on all samples.
RELIEVED = 16


# --- names ------------------------------------------------------------------------------------------------


def mark_narrowed(narrow: ir.Value, wide: ir.Value) -> None:
    """Note on an initializer that it stands for the weight `wide`, in fewer bits."""
    narrow.metadata_props[_NARROWED] = wide.name or ""


def narrowed(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """What passes have narrowed: the narrow tensor by the name of the wide weight."""
    found: dict[str, ir.TensorProtocol] = {}
    for graph in g.graphs(model):
        for value in graph.initializers.values():
            name = value.metadata_props.get(_NARROWED)
            if name is not None and value.const_value is not None:
                found[name] = value.const_value
    return found


def patterns(option: str) -> tuple[str, ...]:
    """The patterns in the value of the option `wide`."""
    return tuple(p.strip() for p in option.split(",") if p.strip())


def as_option(names: Iterable[str], known: str = "") -> str:
    """Names as a value of the option `wide`, behind what it was."""
    made = [name.replace(",", "?").strip() for name in names]
    return ",".join(dict.fromkeys([*patterns(known), *made]))


def matches(name: str, wanted: Iterable[str]) -> bool:
    """Whether a weight fits one of the patterns: its name, or the source's name that it was made from, where
    `*` stands for any text and `?` for any character."""
    return any(_fits(name, p) or _fits(name.split("~")[0], p) for p in wanted)


def _fits(name: str, pattern: str) -> bool:
    text = "".join(".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern)
    return re.fullmatch(text, name, re.DOTALL) is not None


# --- the choice -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """The weights, by name, that stay wide; counts and bytes (of the wide type) of these and of all that
    would be narrow; `before` and `after` are the largest deviations of an output, over its tolerance."""

    wide: tuple[str, ...]
    weights: int
    wide_bytes: int
    bytes: int
    before: float
    after: float

    @property
    def share(self) -> float:
        """Of the bytes that would be narrow, those that stay wide."""
        return self.wide_bytes / self.bytes

    @property
    def helps(self) -> bool:
        """Whether narrow storage of the rest is within the tolerances and worth it."""
        return self.after <= 1 and self.share <= MOST

    def describe(self) -> str:
        """For people, in one line."""
        return (
            f"{len(self.wide)} of {self.weights} weights ({self.share:.0%} of their bytes) stay wide: rounding all "
            f"moved the outputs by up to {self.before:.2g} times what is allowed, now {self.after:.2g}"
        )

    def as_json(self) -> dict[str, Any]:
        return {"summary": self.describe(), **asdict(self), "wide": list(self.wide)}


@dataclass(frozen=True)
class _Group:
    names: tuple[str, ...]
    size: int


def choose(
    model: ir.Model,
    narrow: Mapping[str, ir.TensorProtocol],
    samples: Sequence[Mapping[str, Array]],
    allowed: Mapping[str, float],
    *,
    threads: int | None = None,
) -> Choice | None:
    """The weights of `model`, a graph in which all of them are wide, that must not be stored as in `narrow`.

    `allowed` bounds max|a-b| / max|a| per output. None where the rounding of weights is not what moves the
    outputs too far, or where ONNX Runtime cannot run the model.
    """
    found = model.graph.initializers
    sizes = {n: v.nbytes for n in narrow if n in found and (v := found[n].const_value) is not None}
    if not sizes:
        return None
    everything = frozenset(sizes)
    groups = _grouped(sizes)
    with _Probe(model, {n: narrow[n] for n in sizes}, samples, allowed, threads) as probe:
        try:
            order = probe.badness(everything)
        except InvalidModelError:
            return None
        if max(order) <= 1:
            return None
        worst = sorted(range(len(samples)), key=lambda i: (-order[i], i))
        probe.order = worst
        ranked = _ranked(groups, probe.moves(groups, everything, worst[:SAMPLES]))
        kept = _relieved(probe, groups, _shortest(probe, groups, ranked, everything), everything)
        wide = tuple(sorted(n for i in kept for n in groups[i].names))
        after = max(probe.badness(everything - frozenset(wide)))
    return Choice(wide, len(sizes), sum(sizes[n] for n in wide), sum(sizes.values()), max(order), after)


def _grouped(sizes: Mapping[str, int]) -> list[_Group]:
    """Weights one by one, or neighbours together where there are very many."""
    names = list(sizes)
    step = -(-len(names) // GROUPS)
    parts = [tuple(names[i : i + step]) for i in range(0, len(names), step)]
    return [_Group(part, sum(sizes[n] for n in part)) for part in parts]


def _ranked(groups: Sequence[_Group], moves: Array) -> list[int]:
    """Groups in the order in which they become wide. `moves` has shape (groups, elements), in tolerances."""
    square = np.square(moves, dtype=np.float64)
    left = set(range(len(groups)))
    total = square.sum(0)
    ranked: list[int] = []
    while left:
        element = int(total.argmax())
        best = min(left, key=lambda i: (-square[i, element] / groups[i].size, i))
        if square[best, element] <= 0:
            break
        ranked.append(best)
        left.remove(best)
        total = np.maximum(total - square[best], 0)
    return ranked + sorted(left, key=lambda i: (groups[i].size, i))


def _shortest(
    probe: _Probe, groups: Sequence[_Group], ranked: list[int], everything: frozenset[str]
) -> list[int]:
    """The shortest beginning of `ranked` found with which the outputs hold, by doubling and halving."""

    def holds(count: int) -> bool:
        kept = {n for i in ranked[:count] for n in groups[i].names}
        return probe.holds(everything - kept)

    fails, enough = 0, 1
    while enough < len(ranked) and not holds(enough):
        fails, enough = enough, min(2 * enough, len(ranked))
    while enough - fails > 1:
        middle = (fails + enough) // 2
        fails, enough = (fails, middle) if holds(middle) else (middle, enough)
    return ranked[:enough]


def _relieved(
    probe: _Probe, groups: Sequence[_Group], kept: list[int], everything: frozenset[str]
) -> list[int]:
    """`kept` without the largest that need not be in it."""
    for index in sorted(kept, key=lambda i: (-groups[i].size, i))[:RELIEVED]:
        fewer = [i for i in kept if i != index]
        wide = {n for i in fewer for n in groups[i].names}
        if probe.holds(everything - wide):
            kept = fewer
    return kept


# --- measuring --------------------------------------------------------------------------------------------


class _Probe:
    """The wide graph with its weights as inputs that have defaults, open in ONNX Runtime."""

    def __init__(
        self,
        model: ir.Model,
        narrow: Mapping[str, ir.TensorProtocol],
        samples: Sequence[Mapping[str, Array]],
        allowed: Mapping[str, float],
        threads: int | None,
    ) -> None:
        with Reference(model, threads=threads) as plain:
            proto = onnx.ModelProto()
            proto.CopyFrom(plain.proto)
        for name in narrow:
            if name in model.graph.initializers:
                value = model.graph.initializers[name]
                proto.graph.input.append(
                    onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, g.dims(value))
                )
        self._reference = Reference(proto, threads=threads, optimized=True)
        self._narrow = narrow
        self._samples = samples
        self._allowed = allowed
        self._held: dict[str, Array] = {}
        self._room = HELD
        self._known: dict[tuple[frozenset[str], int], float] = {}
        self._exact: dict[int, dict[str, Array]] = {}
        self.order: list[int] = list(range(len(samples)))  # of the samples: the worst first

    def __enter__(self) -> _Probe:
        return self

    def __exit__(self, *_: object) -> None:
        self._reference.close()

    def _run(self, sample: Mapping[str, Array], names: Iterable[str]) -> dict[str, Array]:
        weights = {n: self._rounded(n) for n in names}
        return self._reference.run({**sample, **weights}, list(self._allowed))

    def _rounded(self, name: str) -> Array:
        """A weight as it comes back from narrow storage; kept while there is room."""
        if name in self._held:
            return self._held[name]
        array = self._narrow[name].numpy().astype(np.float32)
        self._room -= array.nbytes
        if self._room >= 0:
            self._held[name] = array
        return array

    def exact(self, index: int) -> dict[str, Array]:
        """The outputs for a sample with all weights wide."""
        if index not in self._exact:
            self._exact[index] = self._run(self._samples[index], ())
        return self._exact[index]

    def badness(self, names: frozenset[str]) -> list[float]:
        """For each sample the largest deviation of an output with `names` narrow, over its tolerance."""
        return [self._deviation(names, i) for i in range(len(self._samples))]

    def holds(self, names: frozenset[str]) -> bool:
        """Whether the outputs stay within `MARGIN` of their tolerances with `names` narrow."""
        return all(self._deviation(names, i) <= MARGIN for i in self.order)

    def _deviation(self, names: frozenset[str], index: int) -> float:
        if (names, index) not in self._known:
            found, right = self._run(self._samples[index], names), self.exact(index)
            over = [self._over(n, relative(a, found[n])) for n, a in right.items()]
            self._known[names, index] = max(over, default=0.0)
        return self._known[names, index]

    def _over(self, name: str, deviation: float) -> float:
        allowed = self._allowed[name]
        return 0.0 if deviation == 0 else deviation / allowed if allowed else math.inf

    def moves(self, groups: Sequence[_Group], everything: frozenset[str], worst: Sequence[int]) -> Array:
        """What each group alone does to the outputs for the samples `worst`, in tolerances; of large outputs the
        elements that suffer most from all together, and some between."""
        parts: list[list[Array]] = [[] for _ in groups]
        for index in worst:
            right = self.exact(index)
            together = self._run(self._samples[index], everything)
            floats = [n for n, a in right.items() if is_inexact(a) and a.size]
            chosen = {n: _chosen(together[n], right[n]) for n in floats}
            units = {n: self._allowed[n] * _largest(right[n]) for n in floats}
            for part, group in zip(parts, groups, strict=True):
                found = self._run(self._samples[index], group.names)
                part.extend(_moved(right[n], found[n], chosen[n], units[n]) for n in floats)
                # Of integers and booleans only that they change, which none may.
                rest = [n for n in right if n not in floats]
                part.append(np.array([not np.array_equal(right[n], found[n]) for n in rest], np.float32))
        return np.stack([np.concatenate(p) for p in parts])


def _largest(array: Array) -> float:
    finite = array[np.isfinite(array)]
    return float(np.abs(finite).max()) if finite.size else 0.0


def _chosen(found: Array, right: Array) -> Any:
    if right.size <= ELEMENTS:
        return slice(None)
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.abs(np.nan_to_num((found.astype(np.float32) - right.astype(np.float32)).reshape(-1)))
    most = np.argpartition(gap, -ELEMENTS // 2)[-ELEMENTS // 2 :]
    return np.union1d(most, np.linspace(0, gap.size - 1, ELEMENTS // 2).astype(np.int64))


def _moved(right: Array, found: Array, chosen: Any, unit: float) -> Array:
    """`found - right` at `chosen`, in units; 0 where one is not finite."""
    if unit == 0:
        return np.zeros(right.reshape(-1)[chosen].shape, np.float32)
    with np.errstate(invalid="ignore"):
        gap = found.reshape(-1)[chosen].astype(np.float64) - right.reshape(-1)[chosen]
    return np.where(np.isfinite(gap), gap / unit, 0).astype(np.float32)
