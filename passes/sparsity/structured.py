"""Channels, neurons and heads are removed for real, and what reads them is fitted anew on calibration data.

Those that are worth least (`importance`) for the operations they cost go first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.calibration import Calibration
from tapeout.compiler.errors import UsageError
from tapeout.compiler.operations import operations
from tapeout.compiler.rewriting import Changes, Declined
from tapeout.passes.quantization.layers import spread
from tapeout.passes.quantization.walk import Walk
from tapeout.passes.sparsity.atoms import Ties
from tapeout.passes.sparsity.channels import analyse
from tapeout.passes.sparsity.cut import cut
from tapeout.passes.sparsity.gains import gains
from tapeout.passes.sparsity.importance import MEASURES, RECONSTRUCTION, Reader, reconstruction
from tapeout.passes.sparsity.layers import Layer, layers
from tapeout.passes.sparsity.prune import SAMPLES, Sequential
from tapeout.passes.sparsity.rows import Rows, moments_of
from tapeout.passes.sparsity.solve import damped

Array = np.ndarray[Any, Any]

# A channel whose readers lose less than this share of their output is constant: the next bias takes its part.
CONSTANT = 1e-7
# Rounds in which channels are chosen; after each, what the others are worth is found again.
ROUNDS = 8
# A channel that saves more than so many times what is still to be saved waits for others, unless that is a small
# share of all.
OVER, LEAST = 1.5, 0.01


@dataclass(frozen=True)
class Cost:
    """One layer among channels: the roots of its inputs and outputs (one for each row and column), operations of
    one input and output, and groups."""

    layer: Layer
    inputs: Array
    outputs: Array
    each: float

    def operations(self, removed: set[int]) -> float:
        """Operations that are left."""
        gone = list(removed)
        outer = np.count_nonzero(~np.isin(self.outputs, gone))
        if self.layer.groups > 1:
            return self.each * outer * (len(self.inputs) / self.layer.groups)
        return self.each * outer * np.count_nonzero(~np.isin(self.inputs, gone))


@dataclass(frozen=True)
class PruneChannels:
    """Removes the share `ratio` of the operations; with None, only channels that are constant. The layers named in
    `kept` keep all that they read and make. Beyond constant ones, channels go so that a layer is left a multiple of
    `multiple`: kernels work on so many at a time, and a part of them takes as long as all.

    `importance` names what a channel is worth (`importance.py`). In `rounds` > 1 a part goes at a time, and what is
    left is fitted and measured anew before the next."""

    ratio: float | None
    calibration: Calibration
    kept: Collection[str] = ()
    multiple: int = 1
    importance: str = RECONSTRUCTION
    rounds: int = 1
    name: str = "prune channels"

    def __call__(self, model: ir.Model) -> Changes:
        if self.importance not in (RECONSTRUCTION, *MEASURES):
            raise UsageError(
                f"unknown importance '{self.importance}'",
                hint=f"valid: {', '.join((RECONSTRUCTION, *MEASURES))}",
            )
        feeds = spread(list(self.calibration.feeds()), SAMPLES)
        if self.ratio is None:
            return self._once(model, feeds, None)
        whole = work(model)
        changes = Changes(0)
        for number in range(1, self.rounds + 1):
            share = 1 - whole * (1 - self.ratio * number / self.rounds) / work(model)
            if share > 0:
                done = self._once(model, feeds, share)
                changes = Changes(changes.count + done.count, done.declined)
        return changes

    def _once(self, model: ir.Model, feeds: Sequence[Mapping[str, Array]], ratio: float | None) -> Changes:
        """Remove the share `ratio` of the operations that are left."""
        ties = analyse(model.graph)
        for found in (f for f in layers(model.graph) if f.name in self.kept):
            ties.keep(found.stored, f"'{found.name}' keeps its channels: a rule says so")
        costs = [c for c in (cost_of(ties, found) for found in layers(model.graph)) if c is not None]
        removed = Choice(model, ties, costs, feeds, self.multiple, self.importance).choose(ratio)
        reasons = tuple(Declined(self.name, "", r) for r in dict.fromkeys(ties.reasons.values()))
        if not removed:
            return Changes(0, reasons)
        repair(model, costs, removed, feeds)
        cut(model, ties, removed)
        return Changes(len(removed), reasons)


def work(model: ir.Model) -> float:
    """Operations of all layers, for one sample."""
    return float(sum(operations(f.node, assume=1) or 0 for f in layers(model.graph)))


def cost_of(ties: Ties, found: Layer) -> Cost | None:
    """What `found` costs by the channels it reads and makes; None where nothing is known of them."""
    axes = (1, 0) if found.transposed else (0, 1)
    made = ties.weights.get((found.stored, axes[0]))
    read = ties.weights.get((found.stored, axes[1]))
    total = operations(found.node, assume=1)
    if total is None:
        return None
    outputs = found.outputs
    inputs = found.shape[axes[1]] * found.groups
    x = ties.axes(found.node.inputs[0])
    if found.groups > 1:
        read = x[1] if len(x) > 1 else None
    return Cost(
        found,
        ties.roots(read) if read is not None else np.full(inputs, -1),
        ties.roots(made) if made is not None else np.full(outputs, -1),
        total * found.groups / (outputs * inputs),
    )


@dataclass
class Choice:
    """Chooses channels of `model` by what the data `feeds` say of them."""

    model: ir.Model
    ties: Ties
    costs: Sequence[Cost]
    feeds: Sequence[Mapping[str, Array]]
    multiple: int = 1
    importance: str = RECONSTRUCTION

    def choose(self, ratio: float | None) -> set[int]:
        """Roots of the channels that go. Raises UsageError where so much cannot go."""
        free = {int(r) for c in self.costs for r in (*c.inputs, *c.outputs)} - {-1}
        free = {r for r in free if self.ties.root(r) not in self.ties.reasons}
        if not free:
            why = "; ".join(list(dict.fromkeys(self.ties.reasons.values()))[:6])
            raise UsageError("no channel of the model can be removed" + (f": {why}" if why else ""))
        self._places = self._found()
        self.readers = self._reading()
        constant = reconstruction(self.readers, free, ())
        removed = {r for r in self._spared(constant, set()) if constant[r] < CONSTANT}
        if ratio is None:
            return removed
        total = sum(c.operations(set()) for c in self.costs)
        goal = total * (1 - ratio)
        number, now = 0, sum(c.operations(removed) for c in self.costs)
        measure = MEASURES.get(self.importance)
        measured = None if measure is None else measure(self.model, self.readers, free, self.feeds)
        while now > goal:
            number += 1
            step = now - (now - goal) * min(number / ROUNDS, 1)
            left = free - removed
            worth = (
                {r: measured[r] for r in left} if measured else reconstruction(self.readers, left, removed)
            )
            saved = self._saved(removed)
            # A channel that saves nothing where it is read and made stays.
            useful = {r: worth[r] / saved[r] for r in worth if saved.get(r, 0) > 0}
            bundles = {b: sum(saved[r] for r in b) for b in self._bundles(useful, removed)}
            small = [b for b, gain in bundles.items() if gain <= max((now - goal) * OVER, total * LEAST)]
            order = sorted(small or bundles, key=lambda b: (sum(worth[r] for r in b) / bundles[b], b))
            before = len(removed)
            for bundle in order:
                if now <= step:
                    break
                if removed.isdisjoint(bundle) and not self._empties(bundle, removed):
                    removed.update(bundle)
                    now -= bundles[bundle]
            now = sum(c.operations(removed) for c in self.costs)
            if len(removed) == before:
                raise UsageError(
                    f"at most {1 - now / total:.0%} of the operations can be removed, and {ratio:.0%} are asked for",
                    hint="; ".join(list(dict.fromkeys(self.ties.reasons.values()))[:4]),
                )
        return removed

    def _spared(self, worth: Mapping[int, float], removed: set[int]) -> list[int]:
        """The channels in `worth`, less those whose going would leave a layer nothing."""
        found: list[int] = []
        taken = set(removed)
        for root in sorted(worth, key=lambda r: (worth[r], r)):
            if not self._empties((root,), taken):
                taken.add(root)
                found.append(root)
        return found

    def _bundles(self, price: Mapping[int, float], removed: set[int]) -> list[tuple[int, ...]]:
        """What may go at once of the channels in `price`, what each is worth for the operations that it saves: single
        ones, or as many of a layer's cheapest as leave it a multiple."""
        if self.multiple == 1:
            return [(r,) for r in price]
        found: dict[tuple[int, ...], None] = {}
        for cost in self.costs:
            roots, counts = np.unique(cost.outputs, return_counts=True)
            width = dict(zip(roots.tolist(), counts.tolist(), strict=True))
            left = sum(n for r, n in width.items() if r not in removed)
            bundle: list[int] = []
            for root in sorted((r for r in width if r in price), key=lambda r: (price[r], r)):
                bundle.append(root)
                left -= width[root]
                if left % self.multiple == 0:
                    found[tuple(sorted(bundle))] = None
                    bundle = []
        return list(found)

    def _empties(self, bundle: Collection[int], removed: set[int]) -> bool:
        """Whether a layer would have no input or no output left."""
        return any(
            all(r in removed or r in bundle for r in roots)
            for root in bundle
            for roots in self._places.get(root, ())
        )

    def _found(self) -> dict[int, list[set[int]]]:
        """For each channel all that the layers which hold it read, and all that they make."""
        found: dict[int, list[set[int]]] = {}
        for cost in self.costs:
            for roots in (set(cost.inputs.tolist()), set(cost.outputs.tolist())):
                for root in roots:
                    found.setdefault(root, []).append(roots)
        return found

    def _reading(self) -> list[Reader]:
        """The layers that read channels, and what the data say of them."""
        walk, rows = Walk(self.model, self.feeds), Rows(self.model, self.feeds)
        found = []
        reach = gains(self.model, [c.layer for c in self.costs], self.feeds)
        for cost in self.costs:
            layer = cost.layer
            if layer.groups > 1 or (cost.inputs < 0).all():
                continue
            walk.until(layer.node)
            x = rows.inputs(layer, walk)[:, 0]
            means = x.mean(0)
            moments = moments_of(x - means if layer.bias is not None else x)
            weight = layer.weight()[0]
            power = float(np.sum((weight @ moments) * weight))
            found.append(Reader(layer, cost.inputs, moments, means, power, reach[layer.name]))
        return found

    def _saved(self, removed: set[int]) -> dict[int, float]:
        """Operations that the going of each channel saves, with `removed` gone."""
        saved: dict[int, float] = {}
        gone = list(removed)
        for cost in self.costs:
            inner, outer = (r[~np.isin(r, gone)] for r in (cost.inputs, cost.outputs))
            grouped = cost.layer.groups > 1
            for roots, others in ((outer, inner), *(() if grouped else ((inner, outer),))):
                width = len(cost.inputs) / cost.layer.groups if grouped else len(others)
                for root, count in zip(*np.unique(roots, return_counts=True), strict=True):
                    saved[int(root)] = saved.get(int(root), 0.0) + cost.each * count * width
        return saved


def repair(
    model: ir.Model, costs: Sequence[Cost], removed: set[int], feeds: Sequence[Mapping[str, Array]]
) -> None:
    """Fit the weights of every layer that reads a removed channel, layer by layer, with zeros in its place; the
    mean of what went goes into the bias."""
    gone = list(removed)
    masks = {
        c.layer.name: ~np.isin(c.inputs, gone)
        for c in costs
        if c.layer.groups == 1 and np.isin(c.inputs, gone).any()
    }

    def fit(found: Layer, weight: Array, moments: Array) -> Array:
        mask = masks[found.name]
        kept = np.repeat(mask, weight.shape[1] // len(mask))
        held = damped(moments)
        result = np.zeros_like(weight)
        result[:, kept] = np.linalg.solve(held[np.ix_(kept, kept)], held[kept] @ weight.T).T
        return result

    Sequential(model, feeds).run([c.layer for c in costs if c.layer.name in masks], fit)
