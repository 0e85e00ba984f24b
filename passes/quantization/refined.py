"""Quantization with what measuring on the calibration data says: ranges, islands, codes and biases.

1. ranges that count behind activations (`clipping.py`), from statistics alone
2. channels made as large as each other between products (`equalization.py`)
3. islands of floating-point, by the error that tensors add at the outputs (`islands.py`)
4. scales per channel where integers meet them (`smoothquant.py`)
5. codes and biases, layer by layer (`layers.py`, `rounding.py`), kept where they bring the outputs nearer

Only the first can be done from a statistics file, without samples. Where it is fine by itself, or the model too large,
the others are left out, unless `refine=full` asks for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.calibration.statistics import Statistics
from tapeout.compiler.errors import UsageError
from tapeout.compiler.ir import graph as g
from tapeout.compiler.operations import operations
from tapeout.compiler.pipeline import Pass
from tapeout.compiler.recipe import Recipe
from tapeout.compiler.reference import Reference
from tapeout.compiler.rewriting import Changes
from tapeout.compiler.schemes import FLOAT32, STATIC, WEIGHTS, Scheme
from tapeout.passes.quantization.clipping import saturating
from tapeout.passes.quantization.dynamic import declare_rounding, forget_rounding
from tapeout.passes.quantization.equalization import Equalize
from tapeout.passes.quantization.islands import Chosen, Islands, spectral, tail
from tapeout.passes.quantization.layers import Algorithm, Edit, Fit, apply, spread
from tapeout.passes.quantization.products import product
from tapeout.passes.quantization.quantize import Quantize, widen
from tapeout.passes.quantization.report import META as REPORT
from tapeout.passes.quantization.rounding import AdaRound, BiasCorrection, Gptq
from tapeout.passes.quantization.sensitivity import Switchboard, lost, power
from tapeout.passes.quantization.smoothquant import SmoothQuant
from tapeout.passes.quantization.weights import PLACES, Store, readers

if TYPE_CHECKING:
    from tapeout.compiler.calibration import Calibration
    from tapeout.compiler.declaration import Declaration
    from tapeout.compiler.target import Request

Array = np.ndarray[Any, Any]
Feed = Mapping[str, Array]

# Scales that equalization and SmoothQuant bring in must shrink the error by this share.
BETTER = 0.9

# Multiply-accumulates that one measurement of the outputs may take, and the samples that it uses at least and most.
WORK = 1.5e9
FEWEST, MOST = 6, 32
# What the refinement of a model may take, in operations of `effort`: beyond it ranges alone are refined.
MOST_WORK = 6e11
# A model whose outputs lose no more of their variance by plain quantization is left at that: 36 dB with 8-bit
# activations, 56 dB with wider ones.
FINE = (2.5e-4, 2.5e-6)
FIRST = 3  # samples that say so
# Fitted codes must leave this share of the error at most, on one sample in so many that they were not fitted on, where
# there are so many of these.
FITS, APART, LEAST_APART = 0.95, 5, 3
# How often islands grow; channels are scaled at their borders before and afterwards.
TURNS = 2
# Samples of both graphs that the walk counts.
FITTED = 100

# The scheme of products in islands whose kernels round what they read.
ROUNDED = "int8-dynamic"

OPTION = "refine"
CHOICES = ("auto", "full", "off")


@dataclass(frozen=True)
class Refined:
    """`quantize`, refined on the samples that `samples()` gives (None: there are none)."""

    quantize: Quantize
    samples: Callable[[], Sequence[Feed] | None]
    islands: Islands | None = Islands()  # noqa: RUF009
    algorithms: tuple[Algorithm, ...] = (BiasCorrection(), Gptq(), AdaRound())
    most: float | None = MOST_WORK
    name: str = "quantize"
    notes: dict[str, Any] = field(default_factory=dict, compare=False)

    def __call__(self, model: ir.Model) -> Changes:
        given = self.quantize.measured
        measured = given() if callable(given) else given
        ranges = saturating(model, measured) if measured is not None else {}
        quantize = replace(self.quantize, measured=measured, ranges={**ranges, **self.quantize.ranges})
        feeds = None if self.most is not None and effort(model) > self.most else self.samples()
        if not feeds:
            return quantize(model)
        few = spread(feeds, samples_for(model))
        quantize = replace(quantize, borders=False)  # the samples are real numbers
        source = model.clone()
        chosen = Chosen()
        trial = model.clone()
        quantize(trial)
        fine = FINE[self._bits() > 8]
        if self.most is not None and distances(source, (trial,), few[:FIRST])[0] <= fine:
            self.notes["fine"] = True
            behind = tail(model) if self.islands is not None else ()
            changes = with_floats(quantize, behind)(model)
            quantize.give_borders(model)
            return changes
        equalize = self._equalized(model, trial, quantize, few)
        if equalize is not None:
            equalize(model)
            quantize = replace(quantize, measured=equalize.result)
            source, trial = model.clone(), model.clone()
            quantize(trial)
        if self.islands is not None:
            islands = replace(self.islands, rounds=self._rounds)
            board = Switchboard(trial, source, few)
            chosen = islands.start(board)
            for turn in range(TURNS + 1):
                smooth = self._smoothed(model, quantize, chosen, few)
                if smooth is not None:
                    smooth(model)
                    quantize = replace(quantize, measured=smooth.result)
                    chosen = replace(chosen, nodes=chosen.nodes | set(smooth.made))
                    source = model.clone()
                if turn == TURNS:
                    break
                if smooth is not None:
                    trial = model.clone()
                    with_floats(quantize, chosen.nodes)(trial)
                    board = Switchboard(trial, source, few)
                grown = islands.grow(board, chosen)
                if grown.nodes == chosen.nodes:
                    chosen = grown
                    break
                chosen = grown
            quantize = with_floats(quantize, chosen.nodes)
            self.notes["islands"] = chosen
        changes = quantize(model)
        if chosen.nodes:
            self._round(model, chosen.nodes - spectral(source))
        for edit, node in self._fitted(model, source, feeds, few):
            apply(model, node, edit)
        quantize.give_borders(model)
        return changes

    def _equalized(
        self, model: ir.Model, trial: ir.Model, quantize: Quantize, feeds: Sequence[Feed]
    ) -> Equalize | None:
        """The pass that equalizes channels, where it brings the outputs nearer than `trial` has them."""
        statistics = quantize.measured
        if not isinstance(statistics, Statistics):
            return None
        tried = model.clone()
        equalize = Equalize(statistics)
        if not equalize(tried).count:
            return None
        replace(quantize, measured=equalize.result)(tried)
        before, after = distances(model, (trial, tried), feeds)
        self.notes["equalized"] = (before, after)
        return Equalize(statistics) if after < BETTER * before else None

    def _smoothed(
        self, model: ir.Model, quantize: Quantize, chosen: Chosen, feeds: Sequence[Feed]
    ) -> SmoothQuant | None:
        """The pass that scales what crosses between integers and floats, where it brings the outputs nearer."""
        statistics = quantize.measured
        if not isinstance(statistics, Statistics) or not chosen.nodes:
            return None
        plain, tried = model.clone(), model.clone()
        with_floats(quantize, chosen.nodes)(plain)
        floats = {n.name or "" for n in plain.meta[REPORT]["left"]} | chosen.nodes
        smooth = SmoothQuant(statistics, floats)
        if not smooth(tried).count:
            return None
        with_floats(replace(quantize, measured=smooth.result), chosen.nodes | set(smooth.made))(tried)
        before, after = distances(model, (plain, tried), feeds)
        self.notes["smooth"] = (before, after)
        return SmoothQuant(statistics, floats) if after < BETTER * before else None

    def _bits(self) -> int:
        act = self.quantize.scheme.act
        return 8 if act is None else act.bitwidth

    def _rounds(self, node: ir.Node) -> bool:
        """Whether a kernel of the target can round the real activations that `node` reads, row by row."""
        place = PLACES.get((node.domain, node.op_type))
        return place is not None and place.rounds == "rows" and self.quantize.scheme.act == ir.DataType.INT8

    def _round(self, model: ir.Model, inside: frozenset[str]) -> None:
        """Let products in islands multiply activations that their kernels round with codes, where rows take it."""
        widened = widen(model)
        declare_rounding(model)
        store = Store(model, self.quantize.declaration)
        for node, place in readers(model):
            if node.name in inside and self._rounds(node):
                store.put(node, place, WEIGHTS[ROUNDED])
        for value, cast in widened.items():
            value.replace_all_uses_with(cast.outputs[0])
        forget_rounding(model)
        g.remove_dead(model.graph)

    def _fitted(
        self, model: ir.Model, source: ir.Model, feeds: Sequence[Feed], few: Sequence[Feed]
    ) -> list[tuple[Edit, ir.Node]]:
        """The edits that bring the outputs nearer to those of `source`."""
        if not self.algorithms or all(product(n) is None for n in model.graph):
            return []
        trial = model.clone()
        seen, apart = held_out(feeds, len(few))
        fit = Fit(source, trial, seen, self.algorithms)
        fit.run()
        self.notes["fit"] = fit.found
        before, after = distances(source, (model, trial), apart)
        self.notes["error"] = (before, after)
        if after >= FITS * before:
            return []
        nodes = {n.name: n for n in model.graph}
        return [(edit, nodes[edit.node]) for edit in fit.edits]


def held_out(feeds: Sequence[Feed], count: int) -> tuple[list[Feed], list[Feed]]:
    """Samples to fit on, and about `count` others (twice as many where that is few) to judge by; where there are
    hardly any, all serve both."""
    if len(feeds) < LEAST_APART * APART:
        return list(feeds), spread(feeds, count)
    apart = [f for i, f in enumerate(feeds) if i % APART == APART - 1]
    return [f for i, f in enumerate(feeds) if i % APART != APART - 1], spread(apart, max(count, FEWEST))


def with_floats(quantize: Quantize, nodes: Iterable[str]) -> Quantize:
    """`quantize`, nodes of these names left in floating-point."""
    return replace(quantize, overrides={**dict.fromkeys(sorted(nodes), FLOAT32), **quantize.overrides})


def refined(
    quantize: Quantize,
    calibration: Calibration | None,
    choice: str,
    integers_only: bool,
    islands: Islands = Islands(),  # noqa: B008
) -> Pass:
    """`quantize` as the option `refine` says: "auto" (unless the model is too large for it), "full" or "off".

    `integers_only` allows no islands, else `islands` says how they are chosen. Raises UsageError for an unknown choice.
    """
    if choice not in CHOICES:
        raise UsageError(f"option '{OPTION}' is '{choice}'", hint=f"choose one of {', '.join(CHOICES)}")
    if choice == "off" or calibration is None or calibration.stand_in:
        return quantize
    data = calibration

    def samples() -> list[Feed] | None:
        return list(data.feeds()) if data.has_samples else None

    chosen = None if integers_only else islands
    return Refined(quantize, samples, chosen, most=None if choice == "full" else MOST_WORK)


def static_quantization(
    request: Request,
    rows: Declaration,
    scheme: Scheme | None = None,
    integers_only: bool = False,
    islands: Islands = Islands(),  # noqa: B008
) -> tuple[Pass, ...]:
    """What makes integers of activations and weights by `scheme` (None: by the request's, where that is static) as the
    target's `rows` take them; nothing without a static scheme. Where `scheme` is not the request's, only what rules
    of the recipe name is quantized. `integers_only` and `islands` as for `refined`."""
    scheme = scheme or STATIC.get(request.scheme)
    if scheme is None:
        return ()
    calibration, recipe = request.calibration, request.recipe or Recipe()
    quantize = Quantize(
        scheme,
        rows,
        None if calibration is None else lambda: calibration.collected,
        recipe if scheme.name == request.scheme else recipe.otherwise(FLOAT32),
        request.dtypes,
    )
    whole = integers_only or bool(request.dtypes) or not recipe.islands
    return (refined(quantize, calibration, request.options.get(OPTION, "auto"), whole, islands),)


def effort(model: ir.Model) -> float:
    """About how many operations it takes to refine `model`: walking with samples, and fitting each product."""
    total = 0.0
    for node in model.graph:
        total += FITTED * float(operations(node, 1) or 0)
        found = product(node)
        shape = g.static_dims(found.weight) if found is not None else None
        if found is not None and shape is not None:
            inputs = math.prod(shape[1:]) if found.window else shape[1]
            total += found.groups * float(inputs) ** 3 + 3.0 * math.prod(shape) * inputs
    return total


def samples_for(model: ir.Model) -> int:
    """With how many samples the outputs of `model` are measured: as many as WORK allows."""
    work = sum(operations(n, 1) or 0 for n in model.graph)
    return int(min(max(WORK // max(work, 1), FEWEST), MOST))


def distances(source: ir.Model, others: Sequence[ir.Model], feeds: Sequence[Feed]) -> list[float]:
    """The mean over the outputs of each other's squared error as a share of the output's variance (`power`)."""
    names = [
        v.name or "" for v in source.graph.outputs if v.dtype is not None and v.dtype.is_floating_point()
    ]
    with Reference(source) as reference:
        wanted = [reference.run(f, names) for f in feeds]
    whole = {n: power([w[n] for w in wanted]) for n in names}
    result = []
    for other in others:
        with Reference(other) as reference:
            made = [reference.run(f, names) for f in feeds]
        shares = [sum(lost(m[n], w[n]) for m, w in zip(made, wanted, strict=True)) / whole[n] for n in names]
        result.append(sum(shares) / max(len(shares), 1))
    return result
