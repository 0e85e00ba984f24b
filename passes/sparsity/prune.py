"""Weights become zero, layer by layer from the inputs, each layer on what the pruned ones before it make of the
calibration data and toward what the dense model computes there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from tapeout.compiler.calibration import Calibration
from tapeout.compiler.errors import UsageError
from tapeout.compiler.operations import RECURRENT
from tapeout.compiler.rewriting import Changes, Declined
from tapeout.passes.quantization.layers import spread
from tapeout.passes.quantization.walk import Walk
from tapeout.passes.sparsity.layers import Layer, layers
from tapeout.passes.sparsity.pattern import Pattern
from tapeout.passes.sparsity.ratios import shared
from tapeout.passes.sparsity.rows import Rows, moments_of
from tapeout.passes.sparsity.solve import SOLVERS, UNMOVED, damped

Array = np.ndarray[Any, Any]
Solve = Callable[[Layer, Array, Array], Array]

# Samples that are walked with.
SAMPLES = 128
# Layers of fewer inputs an output stay dense: they hold nothing worth it.
FEWEST = 16
# How firmly weights are held to what they were while they make good what earlier layers lost: of the mean input's
# power. Less fits the calibration data closer and the data to come worse.
HOLD = 1.0


class Way(NamedTuple):
    """How a layer is pruned."""

    method: str
    pattern: Pattern


@dataclass(frozen=True)
class Prune:
    """Prunes by `method` (of `solve.SOLVERS`) to `pattern`; `calibration` may be None for magnitude only.

    With `own_ratios`, a layer's ratio follows what its weights cost, so that the ratio holds over all of them.
    `ways` says by layer name what holds for that layer instead, None that it stays dense; the ratio then holds
    over the layers that are not named.
    """

    method: str
    pattern: Pattern
    calibration: Calibration | None = None
    own_ratios: bool = True
    ways: Mapping[str, Way | None] = field(default_factory=dict)
    name: str = "prune"

    def __call__(self, model: ir.Model) -> Changes:
        chosen, declined = split(model, self.pattern, self.ways)
        if not chosen:
            raise UsageError(
                f"nothing can be pruned to {self.pattern}: "
                + "; ".join(f"'{d.node}' {d.reason}" for d in declined[:8])
                if declined
                else "the model has no constant weight of a Conv, Gemm or MatMul to prune"
            )
        ways = {f.name: self.ways.get(f.name) or Way(self.method, self.pattern) for f in chosen}
        blind = next((w.method for w in ways.values() if w.method != "magnitude"), None)
        if self.calibration is None and blind is not None:
            raise UsageError(
                f"--prune {blind} looks at calibration data, and there is none",
                hint="give --calibration DATA, or use --prune magnitude=RATIO",
            )
        feeds = None if self.calibration is None else spread(list(self.calibration.feeds()), SAMPLES)
        ratios = self._ratios(model, chosen, feeds)

        def solve(found: Layer, weight: Array, moments: Array) -> Array:
            way = ways[found.name]
            return SOLVERS[way.method](weight, moments, way.pattern, ratios[found.name])

        if feeds is None:
            for found in chosen:
                found.store(np.stack([solve(found, w, w[:0]) for w in found.weight()]))
        else:
            still = {n for n, way in ways.items() if SOLVERS[way.method] in UNMOVED}
            Sequential(model, feeds, still).run(chosen, solve)
        return Changes(len(chosen), tuple(declined))

    def _ratios(
        self, model: ir.Model, chosen: Sequence[Layer], feeds: Sequence[Mapping[str, Array]] | None
    ) -> dict[str, float]:
        """The ratio of each layer."""
        ratios = {n: way.pattern.ratio for n, way in self.ways.items() if way is not None}
        others = [f for f in chosen if f.name not in ratios]
        if not others:
            return ratios
        ratio = self._ratio(model, others)
        if feeds is None or not self.pattern.free or not self.own_ratios or len(others) == 1:
            return ratios | {f.name: ratio for f in others}
        return ratios | shared(model, others, feeds, ratio)

    def _ratio(self, model: ir.Model, chosen: Sequence[Layer]) -> float:
        """The ratio of the layers that take part: they make up for the others, so that it holds over all weights.
        Raises UsageError where they cannot."""
        if not self.pattern.free:
            return self.pattern.ratio
        everything = sum(f.size for f in layers(model.graph) if f.name not in self.ways)
        share = sum(f.size for f in chosen) / everything
        if self.pattern.ratio >= share:
            raise UsageError(
                f"{self.pattern.ratio:.0%} of the weights are to become zero, and layers that can be pruned hold "
                f"{share:.0%} of them",
                hint="ask for less; the others have too few inputs, or the pattern does not divide them",
            )
        return self.pattern.ratio / share


def split(
    model: ir.Model, pattern: Pattern, ways: Mapping[str, Way | None]
) -> tuple[list[Layer], list[Declined]]:
    """The layers that the pattern (or that of their own way) divides, and why others do not take part."""
    recurrent = [n for n in model.graph if not n.domain and n.op_type in RECURRENT]
    chosen = []
    declined = [
        Declined("prune", n.name or "", f"is recurrent ({n.op_type}), its weights stay dense")
        for n in recurrent
    ]
    for found in layers(model.graph):
        inputs = found.size // found.outputs
        way = ways.get(found.name, Way("", pattern))
        if way is None:
            declined.append(Declined("prune", found.name, "stays dense: a rule says so"))
            continue
        reason = way.pattern.misfit(found.outputs // found.groups, inputs)
        if reason is None and inputs < FEWEST:
            reason = f"has {inputs} inputs an output, fewer than {FEWEST}"
        if reason is None:
            chosen.append(found)
        else:
            declined.append(Declined("prune", found.name, reason))
    return chosen, declined


@dataclass
class Sequential:
    """Solves layer after layer on `feeds`: inputs as the model in work makes them, outputs as the dense one does.
    Weights first make good what earlier layers lost, save those of the layers named in `still`."""

    model: ir.Model
    feeds: Sequence[Mapping[str, Array]]
    still: Collection[str] = ()
    dense: ir.Model | None = None  # where the model is no longer the dense one

    def run(self, chosen: Sequence[Layer], solve: Solve) -> None:
        """Give each of `chosen` the weights that `solve(layer, weight [O, K], moments [K, K])` makes of its own."""
        dense = self.dense or self.model.clone()
        theirs = {n.name: n for n in dense.graph}
        wanted, made = Walk(dense, self.feeds), Walk(self.model, self.feeds)
        rows = Rows(dense, self.feeds)
        for found in chosen:
            other = found._replace(node=theirs[found.node.name])
            wanted.until(other.node)
            made.until(found.node)
            target, ours = rows.inputs(other, wanted), rows.inputs(found, made)
            self._solve(found, target, ours, rows.skipped(found, other, wanted, made), solve)

    def _solve(self, found: Layer, target: Array, ours: Array, lost: Array | None, solve: Solve) -> None:
        """`target` and `ours`: what the layer reads in the dense and in this model; `lost` what its sum lacks."""
        biased = found.bias is not None
        old, new = found.weight(), []
        shift = np.zeros((found.groups, found.outputs // found.groups))
        for k, weight in enumerate(old):
            x = ours[:, k]
            # What the outputs lack as long as the weights stay as they are.
            lack = (target[:, k] - x) @ weight.T.astype(np.float32)
            if lost is not None:
                lack = lack + lost[:, k]
            means = (x.mean(0), lack.mean(0)) if biased else (0.0, 0.0)
            x, lack = x - means[0], lack - means[1]
            moments = moments_of(x)
            if found.name not in self.still:
                weight = weight + np.linalg.solve(damped(moments, HOLD), x.T.astype(np.float64) @ lack).T
            new.append(solve(found, weight, moments))
            if biased:
                shift[k] = (old[k] - new[k]) @ means[0] + means[1]
        found.store(np.stack(new))
        if biased:
            found.shift(shift.reshape(-1))
