"""Layer by layer: what the device computes against the source, through fusions, by source names.

Two errors per tensor. The accumulated one is the device's tensor against the source's value. The local one is
the device's tensor against what the source's nodes make of the device's own tensors: the error of this part
alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from tapeout.compiler.ir.origin import origin
from tapeout.compiler.location import Device, layouts, permuted, second_opinion, values_of
from tapeout.compiler.metrics import Array, Difference, difference, is_inexact, relative
from tapeout.compiler.reference import Reference
from tapeout.compiler.regions import Regions
from tapeout.compiler.target import Runner
from tapeout.compiler.verification import number, text_table, tolerance


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
    final: ir.Model,
    runner: Runner,
    feed: Mapping[str, Array],
    *,
    scheme: str = "float32",
    threads: int | None = None,
    own_spread: Mapping[str, float] | None = None,
) -> Comparison:
    """Hold every tensor that `runner` shows against the source.

    `source` is the model as it was read, `final` the graph that was emitted (its values tell which tensor of
    the device holds which source tensor, and in which axis order). `feed` is one input. `own_spread` raises
    what is allowed per tensor.
    """
    result = Comparison(runtime=f"{runner.runtime} on {runner.device}")
    makers = {v.name or "": origin(n) for n in source.graph for v in n.outputs}
    with Reference(source, threads=threads) as reference:
        names = reference.names()
        device = Device(runner, feed)
        held = _held(final, set(names), device)
        for name in feed:
            held.setdefault(name, (name, None))

        def fetch(wanted: Sequence[str]) -> dict[str, Array]:
            mine = {n: held[n] for n in wanted if n in held}
            arrays = device([tensor for tensor, _ in mine.values()])
            return {n: permuted(arrays[t], perm, undo=True) for n, (t, perm) in mine.items() if t in arrays}

        regions = Regions(reference.proto, held, reference.base, threads or 2)
        regions.known &= regions.live()
        targets = regions.targets()
        result.hidden = len(names) - len(targets)
        local = {name: (found, value) for name, found, value in regions.run(targets, fetch)}
        for values in reference.batches(feed, targets):
            for name, expected in values.items():
                found, value = local.get(name, (None, None))
                if value is None:
                    continue
                nodes, _ = regions.region(name)
                own = (own_spread or {}).get(name, 0.0)
                allowed = tolerance(scheme, own) if is_inexact(expected) else 0.0
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


def _held(final: ir.Model, names: set[str], device: Device) -> dict[str, tuple[str, tuple[int, ...] | None]]:
    """Which source tensor lies in which tensor of the device: source name -> (tensor, perm)."""
    values = list(values_of(final))
    there = set(device.known([v.name or "" for v in values]))
    held: dict[str, tuple[str, tuple[int, ...] | None]] = {}
    for name, (holder, perm) in layouts(values).items():
        if name in there and holder in names:
            held[holder] = name, perm
    for value in values:
        name = value.name or ""
        if name in there and name in names and "tapeout.layout" not in value.metadata_props:
            held[name] = name, None
    return held
