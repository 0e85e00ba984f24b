"""What each layer's own precision costs at the model's outputs, measured on data, whatever the scheme.

A graph that a scheme has quantized gets a switch for each layer. A layer reads, and its readers get, the
quantized numbers where its switch is on, and the real ones where it is off:

    r(DequantizeLinear(codes), ..)     ->  r(Where(on_r, DequantizeLinear(codes), W), ..)
    r(DequantizeLinear(Q(p(..))), ..)  ->  r(Where(on_p or on_r, DequantizeLinear(Q(p(..))), p(..)), ..)
    r(Cast(half), ..)                  ->  r(Where(on_r, Cast(half), W), ..)
    r(RoundRows(x), ..)                ->  r(Where(on_r, RoundRows(x), x), ..)

One session then answers for any choice of layers. The error is that of each output as a share of its variance,
averaged over the outputs: 0.01 is 20 dB.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from tapeout.compiler.conditions import op_names
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.origin import origin
from tapeout.compiler.operations import LAST, operations
from tapeout.compiler.operators import DEQUANTIZE, operator_name
from tapeout.compiler.reference import Reference
from tapeout.passes.quantization.dynamic import NAMES
from tapeout.passes.quantization.placement import PRODUCTS

Array = np.ndarray[Any, Any]
Feed = Mapping[str, Array]

ROUNDING = frozenset(NAMES.values())

# Runs of one measurement of layers by themselves, and the work of all of them, in operations.
RUNS = 160
WORK = 4e10
FEWEST, MOST = 3, 32


class Layer(NamedTuple):
    """Nodes (by name) that a rule can tell from all others: those of one operator made of the same source nodes."""

    name: str  # of the first source node
    op: str
    nodes: frozenset[str]
    origins: tuple[str, ...]
    product: bool
    macs: int


def layers(model: ir.Model) -> list[Layer]:
    """The layers of a float graph in its order: everything that computes floating-point numbers."""
    found: list[tuple[str, list[ir.Node], set[str]]] = []
    for node in model.graph:
        if not any(v.dtype is not None and v.dtype.is_floating_point() for v in node.outputs):
            continue
        if node.inputs and all(v is None or g.is_constant(v) for v in node.inputs):
            continue
        names = set(origin(node) or (node.name or "",))
        same = [entry for entry in found if entry[0] == node.op_type and entry[2] & names]
        for entry in same[1:]:
            same[0][1].extend(entry[1])
            same[0][2].update(entry[2])
            found.remove(entry)
        if same:
            same[0][1].append(node)
            same[0][2].update(names)
        else:
            found.append((node.op_type, [node], names))
    return [_layer(nodes) for _, nodes, _ in found]


def _layer(nodes: Sequence[ir.Node]) -> Layer:
    origins = dict.fromkeys(name for n in nodes for name in origin(n) or (n.name or "",))
    product = LAST.sub("", nodes[0].op_type) in PRODUCTS
    return Layer(
        next(iter(origins)),
        next((n for n in op_names(nodes[0])[1:2] if "::" not in n), nodes[0].op_type),
        frozenset(n.name or "" for n in nodes),
        tuple(origins),
        product,
        sum(operations(n, 1) or 0 for n in nodes) if product else 0,
    )


def weight_bytes(model: ir.Model, layer: Layer) -> int:
    """The bytes of the constants that a layer reads, as `model` stores them: codes with their scales, or reals."""
    seen: dict[ir.Value, None] = {}
    for node in model.graph:
        if node.name not in layer.nodes:
            continue
        for value in node.inputs:
            made = value.producer() if value is not None else None
            if value is not None and g.is_constant(value):
                seen[value] = None
            elif made is not None and g.is_constant(made.inputs[0] if made.inputs else None):
                seen.update(dict.fromkeys(v for v in made.inputs if v is not None))
    total = 0
    for value in seen:
        shape = g.static_dims(value) or ()
        assert value.dtype is not None
        total += math.ceil(math.prod(shape) * value.dtype.bitwidth / 8)
    return total


@dataclass
class LayerBoard:
    """`quantized`, made of `source` by a scheme, with a switch for each of `groups`; measured on `feeds`."""

    quantized: ir.Model
    source: ir.Model
    groups: Sequence[Layer]
    feeds: Sequence[Feed]
    threads: int = 2
    changed: tuple[int, ...] = ()  # the groups that the scheme quantizes
    runs: int = 0
    _or: dict[tuple[int, ...], ir.Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._model = self.quantized.clone()
        self._group = {name: i for i, layer in enumerate(self.groups) for name in layer.nodes}
        self._source_nodes = {n.name: n for n in self.source.graph}
        self._real: dict[ir.Value, ir.Value] = {}
        graph = self._model.graph
        self._switches = [
            ir.Value(name=f"layer~~{i}", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
            for i in range(len(self.groups))
        ]
        graph.inputs.extend(self._switches)
        used: set[int] = set()
        for node in list(graph):
            if self._aside(node):
                continue
            for place, value in enumerate(node.inputs):
                if value is not None:
                    used |= self._switch(node, place, value)
        for place, value in enumerate(graph.outputs):
            self._output(place, value, used)
        g.remove_dead(graph)
        self.changed = tuple(sorted(used))
        self._measure_source()
        self._reference = Reference(self._model, threads=self.threads, optimized=True)

    @staticmethod
    def _aside(node: ir.Node) -> bool:
        """Whether `node` carries out quantization, and computes nothing of the model."""
        return operator_name(node) in (*DEQUANTIZE, "QuantizeLinear") or node.op_type in ROUNDING

    # --- switches ---

    def _switch(self, node: ir.Node, place: int, value: ir.Value) -> set[int]:
        """Let `node` read `value` through a switch, where that is quantized; the groups that it belongs to."""
        made = value.producer()
        if made is None:
            return set()
        mine = self._group.get(node.name or "")
        real: ir.Value | None = None
        owners: set[int] = set() if mine is None else {mine}
        if operator_name(made) in DEQUANTIZE and g.is_constant(made.inputs[0]):
            real = self._weight(node, place)
        elif made.op_type == "Cast" and g.is_constant(made.inputs[0]):
            real = None if self._came_narrow(node, place) else self._weight(node, place)
        elif made.op_type in ROUNDING:
            real = made.inputs[0]
        elif operator_name(made) in DEQUANTIZE:
            real, maker = self._root(value)
            owners |= set() if maker is None else {maker}
        if real is None or not owners:
            return set()
        node.replace_input_with(place, self._where(node, owners, value, real))
        # What a weight or a rounding adds is the reader's own; a tensor is its maker's and its reader's.
        return owners

    def _root(self, value: ir.Value) -> tuple[ir.Value | None, int | None]:
        """The real numbers behind DequantizeLinear(QuantizeLinear(..)), and the group that makes them."""
        at = value
        while (made := at.producer()) is not None and self._aside(made) and made.op_type not in ROUNDING:
            inner = made.inputs[0]
            if inner is None or g.is_constant(inner):
                return None, None
            at = inner
        if at.dtype is None or not at.dtype.is_floating_point():
            return None, None  # an input that is integers
        maker = at.producer()
        while maker is not None and (maker.name or "") not in self._group and maker.inputs:
            first = maker.inputs[0]
            maker = first.producer() if first is not None else None
        return at, None if maker is None else self._maker(maker)

    def _maker(self, node: ir.Node) -> int | None:
        """The group of `node`; of an activation that a kernel may fuse, that of the product before it."""
        value = node.inputs[0] if node.inputs else None
        if node.domain == "" and node.op_type in ("Relu", "Clip") and value is not None:
            before = value.producer()
            if before is not None and not self._aside(before) and g.only_use(value) is node:
                return self._group.get(before.name or "")
        return self._group.get(node.name or "")

    def _came_narrow(self, node: ir.Node, place: int) -> bool:
        other = self._source_nodes.get(node.name)
        return other is not None and g.producer(other.inputs[place], "Cast") is not None

    def _weight(self, node: ir.Node, place: int) -> ir.Value | None:
        """The real constant that `node` reads at `place` in the source."""
        other = self._source_nodes.get(node.name)
        real = other.inputs[place] if other is not None and place < len(other.inputs) else None
        if real is not None and not g.is_constant(real) and (cast := g.producer(real, "Cast")) is not None:
            held = cast.inputs[0]
            if not g.is_constant(held) or held is None or held.const_value is None:
                return None
            if real not in self._real:
                array = held.const_value.numpy().astype(np.float32)
                self._real[real] = g.add_constant(self._model.graph, array, real.name or "weight")
            return self._real[real]
        if real is None or not g.is_constant(real) or real.const_value is None:
            return None
        if real not in self._real:
            known = self._model.graph.initializers.get(real.name or "")
            same = known is not None and known.dtype == real.dtype
            self._real[real] = (
                known
                if same and known is not None
                else g.add_constant(self._model.graph, real.const_value, real.name or "weight")
            )
        return self._real[real]

    def _where(self, node: ir.Node | None, owners: set[int], value: ir.Value, real: ir.Value) -> ir.Value:
        graph = self._model.graph
        on = self._any(tuple(sorted(owners)))
        chosen = ir.node("Where", [on, value, real], name=g.fresh(graph, "chosen"))
        made = chosen.outputs[0]
        made.name, made.shape = g.fresh(graph, "chosen"), value.shape
        made.dtype = value.dtype  # type: ignore[assignment]
        if node is None:
            graph.append(chosen)
        else:
            graph.insert_before(node, chosen)
        return made

    def _any(self, owners: tuple[int, ...]) -> ir.Value:
        """A value that is true where one of the groups is on."""
        if len(owners) == 1:
            return self._switches[owners[0]]
        if owners not in self._or:
            graph = self._model.graph
            node = ir.node("Or", [self._switches[i] for i in owners], name=g.fresh(graph, "either"))
            made = node.outputs[0]
            made.name, made.dtype, made.shape = g.fresh(graph, "either"), ir.DataType.BOOL, ir.Shape([])
            graph.insert_before(graph[0], node)
            self._or[owners] = made
        return self._or[owners]

    def _output(self, place: int, value: ir.Value, used: set[int]) -> None:
        made = value.producer()
        if made is None or operator_name(made) not in DEQUANTIZE or g.is_constant(made.inputs[0]):
            return
        real, maker = self._root(value)
        if real is None or maker is None:
            return
        name = value.name
        value.name = g.fresh(self._model.graph, name or "output")
        chosen = self._where(None, {maker}, value, real)
        chosen.name = name
        self._model.graph.outputs[place] = chosen
        used.add(maker)

    # --- measuring ---

    def _measure_source(self) -> None:
        with Reference(self.source, threads=self.threads) as reference:
            self._wanted = [reference.run(f) for f in self.feeds]
        self._power = powers(self._wanted)

    def error(self, on: Iterable[int]) -> float:
        """The error where the groups `on` are quantized, and no other."""
        chosen = set(on)
        switches = {v.name or "": np.asarray(i in chosen) for i, v in enumerate(self._switches)}
        known = set(self._reference.inputs())
        switches = {k: v for k, v in switches.items() if k in known}
        self.runs += 1
        made = (self._reference.run({**f, **switches}, list(self._power)) for f in self.feeds)
        return shared(made, self._wanted, self._power)

    def close(self) -> None:
        """Let go of the session."""
        self._reference.close()


def affordable(model: ir.Model, runs: int = RUNS) -> int:
    """With how many samples `runs` of `model` may be made."""
    work = sum(operations(n, 1) or 0 for n in model.graph)
    return int(min(max(WORK / max(work * runs, 1), FEWEST), MOST))


def powers(wanted: Sequence[Mapping[str, Array]]) -> dict[str, float]:
    """The variance of each floating-point output over all samples, times their number."""
    found = {}
    for name in wanted[0]:
        if wanted[0][name].dtype.kind != "f":
            continue
        both = np.concatenate([w[name].reshape(-1) for w in wanted]).astype(np.float64)
        found[name] = float(((both - both.mean()) ** 2).sum()) or float((both**2).sum()) or 1.0
    return found


def shared(
    made: Iterable[Mapping[str, Array]], wanted: Sequence[Mapping[str, Array]], power: Mapping[str, float]
) -> float:
    """The squared error of the outputs as a share of their variance, averaged over them."""
    total = dict.fromkeys(power, 0.0)
    for ours, theirs in zip(made, wanted, strict=True):
        for name in total:
            gap = ours[name].astype(np.float64) - theirs[name]
            total[name] += float((gap**2).sum())
    if not power:
        return 0.0
    return sum(total[name] / power[name] for name in power) / len(power)


def alone(
    error: Callable[[Iterable[int]], float], among: Sequence[int], share: float = 0.002, limit: int = RUNS
) -> dict[int, float]:
    """What each of `among` adds by itself: each is measured where `limit` runs allow. Else they are measured
    together, in halves of halves, and groups that add less than `share` of the whole are not taken apart: each of
    them gets an equal part."""
    if len(among) <= limit:
        return {i: error([i]) for i in among}
    found: dict[int, float] = {}
    whole = error(among)
    queue, runs = [(whole, list(among))], 1
    while queue:
        queue.sort(key=lambda item: -item[0])
        own, group = queue.pop(0)
        if len(group) == 1 or own <= share * whole or runs >= limit:
            found.update(dict.fromkeys(group, own / len(group)))
            continue
        half = len(group) // 2
        for part in (group[:half], group[half:]):
            queue.append((error(part), part))
            runs += 1
    return found
