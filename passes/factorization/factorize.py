"""Layers become two thinner ones, or three, where that saves operations: ranks by a budget of operations, or by what
each layer or the model's outputs may lose."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from tapeout.compiler.calibration import Calibration
from tapeout.compiler.errors import UsageError
from tapeout.compiler.ir import graph as g
from tapeout.compiler.operations import operations
from tapeout.compiler.rewriting import Changes, Declined
from tapeout.passes.factorization.forms import FORMS, Form, Stage
from tapeout.passes.factorization.stages import split
from tapeout.passes.quantization.layers import spread
from tapeout.passes.quantization.walk import Walk
from tapeout.passes.sparsity.gains import gains
from tapeout.passes.sparsity.layers import Layer, layers
from tapeout.passes.sparsity.prune import SAMPLES, Sequential
from tapeout.passes.sparsity.rows import Rows, moments_of

Array = np.ndarray[Any, Any]

METHODS = tuple(FORMS)
BUDGET, ENERGY, SENSITIVITY = "budget", "energy", "sensitivity"
CRITERIA = (BUDGET, ENERGY, SENSITIVITY)
CIRCULANT = (
    "a circulant block of b x b holds b numbers and still takes b * b multiplications: as an operator it is a "
    "convolution over its input repeated, and the Fourier transforms that would make it 3 * b * log2(b) are no "
    "operator that kernels for small b exist of"
)


class Option(NamedTuple):
    """One way to have a layer: its ranks (none: as it is), its operations, and what it costs."""

    ranks: tuple[int, ...]
    operations: float
    cost: float  # share of the model's outputs
    lost: float = 0.0  # share of the layer's


class Way(NamedTuple):
    """How a layer is factorized; without `ranks`, those that its share of what is to be saved leads to."""

    method: str
    ranks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Factorize:
    """Removes the share `ratio` of the operations by `method`; all but "plain-svd" need `calibration` for more
    than their ranks. What would not pay is left, with the arithmetic.

    `ways` says by layer name what holds for that layer instead, None that it stays whole; the ratio then holds
    over the layers whose ranks are not stated. Ranks are multiples of `multiple`: kernels work on so many channels at a
    time, and a part of them takes as long as all.

    `by` says what `ratio` means: the "budget" of operations that go, the share of each layer's output that may be
    lost ("energy"), or the share of the model's outputs that each layer may lose ("sensitivity").
    """

    method: str
    ratio: float
    calibration: Calibration | None = None
    ways: Mapping[str, Way | None] = field(default_factory=dict)
    multiple: int = 1
    by: str = BUDGET
    name: str = "factorize"

    def __call__(self, model: ir.Model) -> Changes:
        for method in (self.method, *(w.method for w in self.ways.values() if w is not None)):
            if method in ("circulant", "block-circulant"):
                raise UsageError(f"'{method}' saves no operations on any target", hint=CIRCULANT)
            if method not in METHODS:
                raise UsageError(f"unknown factorization '{method}'", hint=f"valid: {', '.join(METHODS)}")
        if self.by not in CRITERIA:
            raise UsageError(f"ranks by '{self.by}'", hint=f"valid: {', '.join(CRITERIA)}")
        if self.calibration is None:
            raise UsageError(
                "ranks are chosen on calibration data, and there is none", hint="give --calibration DATA"
            )
        feeds = spread(list(self.calibration.feeds()), SAMPLES)
        every = list(layers(model.graph))
        whole = {f.name for f in every if f.name in self.ways and self.ways[f.name] is None}
        found = [f for f in every if f.groups == 1 and f.name not in whole]
        options, declined = self._options(model, found, feeds)
        declined += [Declined(self.name, name, "stays whole: a rule says so") for name in sorted(whole)]
        chosen = self._chosen(options, every, whole, declined)
        factored = [f for f in found if chosen[f.name].ranks]
        self._apply(model, factored, {n: o.ranks for n, o in chosen.items()}, feeds)
        return Changes(len(factored), tuple(declined))

    def _chosen(
        self,
        options: Mapping[str, Sequence[Option]],
        every: Sequence[Layer],
        whole: Collection[str],
        declined: Sequence[Declined],
    ) -> Mapping[str, Option]:
        """One option for each layer. Raises UsageError where the budget cannot be met, or nothing pays."""
        if self.by != BUDGET:
            chosen = {n: cheapest(o, self.ratio, self.by) for n, o in options.items()}
            if any(o.ranks for o in chosen.values()):
                return chosen
            what = "its output" if self.by == ENERGY else "the model's outputs"
            raise UsageError(
                f"no layer takes fewer operations at a loss of {self.ratio:g} of {what}",
                hint=_first(declined),
            )
        free = [f for f in every if f.name not in whole and not self._way(f).ranks]
        total = sum(float(operations(f.node, assume=1) or 0) for f in free)
        found = choose(options, total * self.ratio)
        if found is None:
            most = sum(o[0].operations - min(x.operations for x in o) for o in options.values())
            raise UsageError(
                f"factorization can remove at most {most / max(total, 1):.0%} of the operations, and "
                f"{self.ratio:.0%} are asked for",
                hint=_first(declined),
            )
        return found

    def _way(self, each: Layer) -> Way:
        return self.ways.get(each.name) or Way(self.method)

    def _options(
        self, model: ir.Model, found: Sequence[Layer], feeds: Sequence[Mapping[str, Array]]
    ) -> tuple[dict[str, list[Option]], list[Declined]]:
        """What each layer can be, the first as it is, and those that never pay."""
        reach = gains(model, found, feeds)
        walk, rows = Walk(model, feeds), Rows(model, feeds)
        options: dict[str, list[Option]] = {}
        declined = []
        for each in found:
            walk.until(each.node)
            whole = float(operations(each.node, assume=1) or 0)
            x = rows.inputs(each, walk)[:, 0]
            moments = moments_of(x - x.mean(0) if each.bias is not None else x)
            ways = self._ways(each, moments, whole, reach[each.name])
            if self._way(each).ranks:  # stated: no choice, and nothing that counts as saved
                if ways[0].operations >= whole:
                    raise UsageError(
                        f"'{each.name}' at rank {', '.join(map(str, ways[0].ranks))} would take "
                        f"{ways[0].operations:,.0f} operations, as it is {whole:,.0f}",
                        hint=self._bound(each),
                    )
                options[each.name] = ways
                continue
            options[each.name] = [Option((), whole, 0.0), *(w for w in ways if w.operations < whole)]
            if len(options[each.name]) == 1:
                declined.append(Declined(self.name, each.name, self._bound(each)))
        return options, declined

    def _ways(self, each: Layer, moments: Array, whole: float, reach: float) -> list[Option]:
        """What the layer can be: at the stated ranks, or at multiples below the full ones that save operations."""
        way, form = self._way(each), self._form(each)
        most = form.most(each)
        if way.ranks:
            stated = (way.ranks * len(most))[: len(most)]
            ranks = [tuple(min(r, m) for r, m in zip(stated, most, strict=True))]
        else:
            near = {tuple(map(self._rank, r)) for r in form.ranks(each)}
            ranks = sorted(r for r in near if all(n <= m for n, m in zip(r, most, strict=True)))
        paying = [r for r in ranks if way.ranks or form.share(each, r) < 1]
        lost = form.lost(each, moments, paying)
        return [
            Option(r, whole * form.share(each, r), x * reach, x) for r, x in zip(paying, lost, strict=True)
        ]

    def _form(self, each: Layer) -> Form:
        """How the layer is written: by SVD where its method is for kernels and it has none."""
        form = FORMS[self._way(each).method]
        return form if form.takes(each) else FORMS["svd"]

    def _bound(self, each: Layer) -> str:
        """From where on the layer would pay."""
        form = self._form(each)
        sizes = f"[{each.outputs}, {each.size // each.outputs}]"
        if len(form.most(each)) == 1:
            return f"{sizes} pays below rank {1 / form.share(each, (1,)):.1f} only"
        least = min(form.ranks(each), key=lambda r: form.share(each, r))
        return f"{sizes} takes {form.share(each, least):.2f} of the operations even at ranks {least}"

    def _rank(self, wanted: int) -> int:
        """The multiple next to a rank."""
        return max(1, round(wanted / self.multiple)) * self.multiple

    def _apply(
        self, model: ir.Model, factored: Sequence[Layer], ranks: Mapping[str, tuple[int, ...]],
        feeds: Sequence[Mapping[str, Array]],
    ) -> None:  # fmt: skip
        """Put low-rank weights in place, layer by layer, then split the nodes."""
        stages: dict[str, list[Stage]] = {}

        def solve(found: Layer, weight: Array, moments: Array) -> Array:
            joined, stages[found.name] = self._form(found).parts(found, weight, moments, ranks[found.name])
            return joined

        still = {f.name for f in factored if self._way(f).method == "plain-svd"}
        Sequential(model, feeds, still).run(factored, solve)
        for found in factored:
            split(model.graph, found, stages[found.name])
        g.remove_dead(model.graph)


def choose(options: Mapping[str, Sequence[Option]], saved: float) -> dict[str, Option] | None:
    """One option for each layer, `saved` operations less in all at the least cost (by a Lagrangian: what is
    chosen is best for what it saves); None where that many cannot be saved."""

    def at(price: float) -> dict[str, Option]:
        return {
            n: min(o, key=lambda w: (w.cost + price * w.operations, w.operations)) for n, o in options.items()
        }

    def gone(chosen: Mapping[str, Option]) -> float:
        return sum(options[n][0].operations - w.operations for n, w in chosen.items())

    least = {n: min(o, key=lambda w: w.operations) for n, o in options.items()}
    if gone(least) < saved:
        return None
    low, high = 0.0, 1e-12
    while gone(at(high)) < saved and high < 1e30:
        high *= 4
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if gone(at(middle)) < saved else (low, middle)
    return at(high)


def cheapest(options: Sequence[Option], bound: float, by: str) -> Option:
    """The option of the fewest operations that loses at most `bound` of the layer's output, or of the model's."""
    return min(
        (o for o in options if (o.lost if by == ENERGY else o.cost) <= bound), key=lambda o: o.operations
    )


def _first(declined: Sequence[Declined]) -> str | None:
    return "; ".join(f"'{d.node}' {d.reason}" for d in declined[:6]) or None
