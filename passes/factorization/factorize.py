"""Layers become two thinner ones, or three, where that saves operations: ranks by what each costs the outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from tapeout.compiler.calibration import Calibration
from tapeout.compiler.errors import UsageError
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.origin import merged_origin, set_origin
from tapeout.compiler.operations import operations
from tapeout.compiler.rewriting import Changes, Declined
from tapeout.passes.factorization.lowrank import factors, refit, spectrum, tucker
from tapeout.passes.quantization.layers import spread
from tapeout.passes.quantization.walk import Walk
from tapeout.passes.sparsity.gains import gains
from tapeout.passes.sparsity.layers import Layer, layers
from tapeout.passes.sparsity.prune import SAMPLES, Sequential
from tapeout.passes.sparsity.rows import Rows, moments_of

Array = np.ndarray[Any, Any]

METHODS = ("svd", "plain-svd", "tucker")
# Ranks that are looked at, as shares of the full one.
STEPS = 32


class Option(NamedTuple):
    """One way to have a layer: its ranks (none: as it is), its operations, and what it costs."""

    ranks: tuple[int, ...]
    operations: float
    cost: float


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
    """

    method: str
    ratio: float
    calibration: Calibration | None = None
    ways: Mapping[str, Way | None] = field(default_factory=dict)
    multiple: int = 1
    name: str = "factorize"

    def __call__(self, model: ir.Model) -> Changes:
        for method in (self.method, *(w.method for w in self.ways.values() if w is not None)):
            if method not in METHODS:
                raise UsageError(f"unknown factorization '{method}'", hint=f"valid: {', '.join(METHODS)}")
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
        free = [f for f in every if f.name not in whole and not self._way(f).ranks]
        total = sum(float(operations(f.node, assume=1) or 0) for f in free)
        chosen = choose(options, total * self.ratio)
        if chosen is None:
            most = sum(o[0].operations - min(x.operations for x in o) for o in options.values())
            lines = "; ".join(f"'{d.node}' {d.reason}" for d in declined[:6])
            raise UsageError(
                f"factorization can remove at most {most / max(total, 1):.0%} of the operations, and "
                f"{self.ratio:.0%} are asked for", hint=lines or None,
            )  # fmt: skip
        factored = [f for f in found if chosen[f.name].ranks]
        self._apply(model, factored, {n: o.ranks for n, o in chosen.items()}, feeds)
        return Changes(len(factored), tuple(declined))

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
            outputs, inputs = each.outputs, each.size // each.outputs
            most = outputs * inputs / (outputs + inputs)
            ways = self._ways(each, moments, whole, reach[each.name])
            if self._way(each).ranks:  # stated: no choice, and nothing that counts as saved
                if ways[0].operations >= whole:
                    raise UsageError(
                        f"'{each.name}' at rank {', '.join(map(str, ways[0].ranks))} would take "
                        f"{ways[0].operations:,.0f} operations, as it is {whole:,.0f}",
                        hint=f"[{outputs}, {inputs}] pays below rank {most:.1f} only",
                    )
                options[each.name] = ways
                continue
            options[each.name] = [Option((), whole, 0.0), *(w for w in ways if w.operations < whole)]
            if len(options[each.name]) == 1:
                declined.append(
                    Declined(self.name, each.name, f"[{outputs}, {inputs}] pays below rank {most:.1f} only")
                )
        return options, declined

    def _ways(self, each: Layer, moments: Array, whole: float, reach: float) -> list[Option]:
        outputs, inputs = each.outputs, each.size // each.outputs
        weight = each.weight()[0]
        way = self._way(each)
        if way.method != "tucker" or not _window(each):
            lost = spectrum(weight, None if way.method == "plain-svd" else moments)
            full = min(outputs, inputs)
            ranks = sorted({self._rank(full * k // STEPS) for k in range(1, STEPS)} & {*range(full + 1)})
            if way.ranks:
                ranks = [min(way.ranks[0], full)]
            return [
                Option((r,), whole * r * (outputs + inputs) / (outputs * inputs), float(lost[r]) * reach)
                for r in ranks
            ]
        channels = each.shape[1]
        kernel = weight.reshape(outputs, channels, -1)
        power = max(float(np.sum((weight @ moments) * weight)), 1e-300)
        found = []
        shares = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
        pairs = [(self._rank(round(outputs * x)), self._rank(round(channels * x))) for x in shares]
        pairs = [(r, s) for r, s in pairs if r <= outputs and s <= channels]
        if way.ranks:
            pairs = [(min(way.ranks[0], outputs), min(way.ranks[-1], channels))]
        for r, s in pairs:
            _, core, b = tucker(kernel, r, s)
            a = refit(weight, moments, core, b)
            change = weight - np.einsum("or,rsp,si->oip", a, core, b).reshape(weight.shape)
            error = float(np.sum((change @ moments) * change)) / power
            taps = kernel.shape[2]
            # The product over inputs runs at the input's positions, at least as many as the output's.
            left = (channels * s * _positions(each) + r * s * taps + r * outputs) / (
                outputs * channels * taps
            )
            found.append(Option((r, s), whole * left, error * reach))
        return found

    def _rank(self, wanted: int) -> int:
        """The multiple next to a rank."""
        return max(1, round(wanted / self.multiple)) * self.multiple

    def _apply(
        self, model: ir.Model, factored: Sequence[Layer], ranks: Mapping[str, tuple[int, ...]],
        feeds: Sequence[Mapping[str, Array]],
    ) -> None:  # fmt: skip
        """Put low-rank weights in place, layer by layer, then split the nodes."""
        parts: dict[str, tuple[Array, ...]] = {}

        def solve(found: Layer, weight: Array, moments: Array) -> Array:
            size = ranks[found.name]
            if len(size) == 1:
                plain = self._way(found).method == "plain-svd"
                a, b = factors(weight, None if plain else moments, size[0])
                parts[found.name] = (a, b)
                return np.asarray(a @ b)
            _, core, b = tucker(weight.reshape(found.outputs, found.shape[1], -1), *size)
            a = refit(weight, moments, core, b)
            parts[found.name] = (a, core, b)
            return np.asarray(np.einsum("or,rsp,si->oip", a, core, b).reshape(weight.shape))

        still = {f.name for f in factored if self._way(f).method == "plain-svd"}
        Sequential(model, feeds, still).run(factored, solve)
        for found in factored:
            split(model.graph, found, parts[found.name])
        g.remove_dead(model.graph)


def _window(found: Layer) -> bool:
    return found.node.op_type == "Conv" and math.prod(found.shape[2:]) > 1


def _positions(found: Layer) -> float:
    """Input positions for each output position of a convolution."""
    return float(math.prod(g.attribute(found.node, "strides", ()) or (1,)))


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


def split(graph: ir.Graph, found: Layer, parts: Sequence[Array]) -> None:
    """Put `parts` (A [O, r], and B [r, K], or C [r, s, P] and B [s, I]) in place of the layer's node."""
    node = found.node
    x, made = node.inputs[0], node.outputs[0]
    assert x is not None and found.stored.const_value is not None
    dtype = found.stored.const_value.numpy().dtype
    hint = (node.name or "layer").split("~")[0]

    def add(op: str, given: Sequence[ir.Value | None], attributes: Mapping[str, Any]) -> ir.Value:
        fresh = ir.node(op, given, attributes, name=g.fresh(graph, hint))
        value = fresh.outputs[0]
        value.name, value.type = g.fresh(graph, hint), made.type
        set_origin(fresh, merged_origin([node]))
        graph.insert_before(node, fresh)
        return value

    def weight(array: Array) -> ir.Value:
        stored = g.add_constant(graph, np.ascontiguousarray(array).astype(dtype), f"{hint}_factor")
        if dtype == np.float16:
            return add("Cast", [stored], {"to": int(ir.DataType.FLOAT)})
        return stored

    bias = list(node.inputs[2:])
    if node.op_type == "MatMul":
        value = add("MatMul", [add("MatMul", [x, weight(parts[1].T)], {}), weight(parts[0].T)], {})
    elif node.op_type == "Gemm":
        inner = add(
            "Gemm", [x, weight(parts[1])], {"transB": 1, "transA": int(g.attribute(node, "transA", 0))}
        )
        value = add(
            "Gemm",
            [inner, weight(parts[0]), *bias],
            {"transB": 1, "beta": float(g.attribute(node, "beta", 1.0))},
        )
    else:
        kernel = found.shape[2:]
        ones = (1,) * len(kernel)
        if len(parts) == 3:
            x = add("Conv", [x, weight(parts[2].reshape(*parts[2].shape, *ones))], {})
        core = parts[1].reshape(len(parts[1]), -1, *kernel)
        kept = {
            k: g.attribute(node, k)
            for k in ("strides", "pads", "dilations", "auto_pad")
            if k in node.attributes
        }
        inner = add("Conv", [x, weight(core)], kept)
        value = add("Conv", [inner, weight(parts[0].reshape(*parts[0].shape, *ones)), *bias], {})
    value.shape = made.shape
    g.replace(graph, made, value)
