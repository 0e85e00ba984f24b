"""Layer by layer: what the device computes against the source, through fusions, by source names.

Two errors per tensor. The accumulated one is the device's tensor against the source's value. The local one is
the device's tensor against what the source's nodes make of the device's own tensors: the error of this part
alone. Integers are read as the numbers that they stand for; what rounding to integers may do to a part is not
known here (its weights are integers too), so no bound is put on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.integer_verification import Grid
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.origin import origin
from tapeout.compiler.location import Device, layouts, permuted, second_opinion, values_of
from tapeout.compiler.metrics import Array, Difference, difference, is_inexact, relative
from tapeout.compiler.reference import Reference
from tapeout.compiler.regions import Regions
from tapeout.compiler.target import Runner
from tapeout.compiler.verification import TOLERANCES, number, text_table, tolerance


@dataclass(frozen=True)
class Holder:
    """A tensor of an artifact that holds the source tensor `source`: its axes in the order `perm` where they have
    another, in integers where there is a `grid`."""

    source: str
    tensor: str
    perm: tuple[int, ...] | None = None
    grid: Grid | None = None

    def real(self, array: Array) -> Array:
        """The source's tensor from the artifact's."""
        return permuted(array if self.grid is None else self.grid.real(array), self.perm, undo=True)

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"source": self.source, "tensor": self.tensor}
        if self.perm is not None:
            found["perm"] = list(self.perm)
        return found if self.grid is None else found | self.grid.as_json()

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> Holder:
        perm = found.get("perm")
        grid = Grid.from_json(found) if "scale" in found else None
        return Holder(found["source"], found["tensor"], None if perm is None else tuple(perm), grid)


@dataclass(frozen=True)
class Layer:
    """One tensor that both sides have: `nodes` are the source nodes between it and the tensors before it."""

    tensor: str
    nodes: tuple[str, ...]
    accumulated: Difference
    local: float | None
    allowed: float

    @property
    def deviates(self) -> bool:
        return self.local is not None and not self.local <= self.allowed

    def as_json(self) -> dict[str, Any]:
        return {
            "tensor": self.tensor,
            "nodes": list(self.nodes),
            "local": self.local,
            "allowed": self.allowed,
            "deviates": self.deviates,
            "accumulated": self.accumulated.as_json(),
        }


@dataclass
class Comparison:
    """All layers in topological order, on one input."""

    layers: list[Layer] = field(default_factory=list)
    runtime: str = ""
    hidden: int = 0  # source tensors that the runtime does not show

    @property
    def first(self) -> Layer | None:
        """The first layer whose own error is beyond what rounding does."""
        return next((layer for layer in self.layers if layer.deviates), None)

    @property
    def judged(self) -> bool:
        """Whether there is a bound on what rounding does."""
        return all(math.isfinite(layer.allowed) for layer in self.layers)

    @property
    def worst(self) -> Layer | None:
        """The layer with the largest error of its own."""
        return max(self.layers, key=_local, default=None)

    @property
    def furthest(self) -> Layer | None:
        """The layer with the largest accumulated error."""
        return max(self.layers, key=lambda layer: layer.accumulated.relative, default=None)

    def as_json(self) -> dict[str, Any]:
        def name(layer: Layer | None) -> dict[str, Any] | None:
            return None if layer is None else layer.as_json()

        return {
            "runtime": self.runtime,
            "hidden": self.hidden,
            "first": name(self.first),
            "worst": name(self.worst),
            "furthest": name(self.furthest),
            "layers": [layer.as_json() for layer in self.layers],
        }

    def table(self, limit: int | None = None) -> str:
        """For people: the layers with the largest errors of their own first."""
        rows = [("tensor", "source nodes", "local", "accumulated", "SQNR dB", "")]
        for layer in sorted(self.layers, key=_local, reverse=True)[:limit]:
            mark = "DEVIATES" if layer.deviates else ""
            names = ", ".join(layer.nodes[-2:]) + (
                f" (+{len(layer.nodes) - 2})" if len(layer.nodes) > 2 else ""
            )
            rows.append((
                _short(layer.tensor), _short(names), "-" if layer.local is None else number(layer.local),
                number(layer.accumulated.relative), number(layer.accumulated.sqnr, ".1f"), mark,
            ))  # fmt: skip
        return text_table(rows)


def _local(layer: Layer) -> float:
    return -1.0 if layer.local is None else layer.local


def _short(text: str, width: int = 40) -> str:
    return text if len(text) <= width else "..." + text[3 - width :]


def compare(
    source: ir.Model,
    holders: Sequence[Holder],
    runner: Runner,
    feed: Mapping[str, Array],
    *,
    scheme: str = "float32",
    threads: int | None = None,
    own_spread: Mapping[str, float] | None = None,
) -> Comparison:
    """Hold every tensor that `runner` shows against the source.

    `source` is the model as it was read, `holders` say what the device's tensors hold of it, `feed` is one input of
    the device. `own_spread` raises what is allowed per tensor.
    """
    result = Comparison(runtime=f"{runner.runtime} on {runner.device}")
    makers = {v.name or "": origin(n) for n in source.graph for v in n.outputs}
    with Reference(source, threads=threads) as reference:
        names = reference.names()
        device = Device(runner, feed)
        held = _held(holders, set(names), device)
        grids = {h.tensor: h.grid for h in holders}
        held |= {name: Holder(name, name, None, grids.get(name)) for name in feed}

        def fetch(wanted: Sequence[str]) -> dict[str, Array]:
            mine = {n: held[n] for n in wanted if n in held}
            arrays = device([h.tensor for h in mine.values()])
            return {n: h.real(arrays[h.tensor]) for n, h in mine.items() if h.tensor in arrays}

        regions = Regions(reference.proto, held, reference.base, threads or 2)
        regions.known &= regions.live()
        targets = regions.targets()
        result.hidden = len(names) - len(targets)
        local = {name: (found, value) for name, found, value in regions.run(targets, fetch)}
        for values in reference.batches(fetch(list(feed)), targets):
            for name, expected in values.items():
                found, value = local.get(name, (None, None))
                if value is None:
                    continue
                nodes, _ = regions.region(name)
                allowed = _allowed(expected, scheme, (own_spread or {}).get(name, 0.0))
                error = None if found is None else relative(found, value)
                if error is not None and not error <= allowed:
                    error = min(error, second_opinion(regions, name, value, fetch))
                result.layers.append(
                    Layer(
                        tensor=name,
                        nodes=tuple(
                            dict.fromkeys(
                                n for i in nodes for o in regions.nodes[i].output for n in makers.get(o, ())
                            )
                        ),
                        accumulated=difference(expected, value),
                        local=error,
                        allowed=allowed,
                    )
                )
    return result


def _allowed(expected: Array, scheme: str, own_spread: float) -> float:
    if scheme not in TOLERANCES:
        return math.inf
    return tolerance(scheme, own_spread) if is_inexact(expected) else 0.0


def holders_of(final: ir.Model) -> list[Holder]:
    """Every tensor of the graph that was emitted which holds a source tensor, by its name or its layout: of those
    that hold the same one the best first, integers last."""
    found: list[Holder] = []
    values = list(values_of(final))
    arranged = layouts(values)
    for value in values:
        source, perm = arranged.get(value.name or "", (value.name or "", None))
        if "~" not in source:
            found += [Holder(source, v.name or "", perm, _grid(v, node)) for v, node in _stored(value)]
    return sorted(found, key=lambda h: (h.source, h.perm is not None, h.grid is not None))


def _stored(value: ir.Value) -> Iterator[tuple[ir.Value, ir.Node | None]]:
    """`value` and its integers before and behind it, each with the node that says how they are read."""
    read = [u.node for u in value.uses() if u.idx == 0 and u.node.domain == ""]
    borders = [n for n in read if n.op_type == "DequantizeLinear" and value.is_graph_input()]
    yield value, g.producer(value, "QuantizeLinear") or next(iter(borders), None)
    made = g.producer(value, "DequantizeLinear")
    if made is not None and made.inputs[0] is not None:
        yield made.inputs[0], made
    yield from ((n.outputs[0], n) for n in read if n.op_type == "QuantizeLinear")


def _grid(value: ir.Value, node: ir.Node | None) -> Grid | None:
    """How `value` is read, by the QuantizeLinear or DequantizeLinear beside it; None where it has several scales."""
    if node is None or value.dtype is None:
        return None
    scale, zero = g.scalar(node.inputs[1]), g.scalar((*node.inputs, None)[2])
    return None if scale is None else Grid(float(scale), int(zero or 0), np.dtype(value.dtype.numpy()))


def _held(holders: Sequence[Holder], names: set[str], device: Device) -> dict[str, Holder]:
    """The first tensor that the device shows of each source tensor."""
    there = set(device.known([h.tensor for h in holders if h.source in names]))
    held: dict[str, Holder] = {}
    for holder in holders:
        if holder.tensor in there and holder.source in names:
            held.setdefault(holder.source, holder)
    return held
