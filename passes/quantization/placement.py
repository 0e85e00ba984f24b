"""Which nodes are computed in integers: the clusters that the target's rows offer, and where staying in
floating-point costs less than going to integers and back.

Products (convolutions, matrices) are quantized wherever a row takes them. Everything else follows the minimum
cut of a graph in which each node costs what it costs in integers or in float, and each tensor that crosses
between the two costs a QuantizeLinear or a DequantizeLinear over its elements.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from tapeout.compiler.declaration import Declaration, Refusal, Row, Slot
from tapeout.compiler.declaration.quantizing import slots
from tapeout.compiler.ir import graph as g
from tapeout.compiler.operations import CONVOLUTIONS, LAST, MATRIX
from tapeout.compiler.operators import DEQUANTIZE, fused_activation, operator_name, storage
from tapeout.compiler.recipe import Recipe
from tapeout.compiler.schemes import FLOAT16, FLOAT32, STATIC, WEIGHTS, Scheme
from tapeout.passes.layout.minimum_cut import SINK, SOURCE, Network
from tapeout.passes.quantization.ranges import Ranges

PRODUCTS = CONVOLUTIONS | MATRIX | {"ConvTranspose"}

# What makes small numbers of large ones or the other way round: eight bits do not hold both.
WIDE = frozenset(
    {
        "Exp", "Log", "Sqrt", "Reciprocal", "Pow", "Div", "Mod", "Erf", "Sin", "Cos", "CumSum", "ReduceL2",
        "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd", "LayerNormalization",
        "RMSNormalization", "InstanceNormalization", "GroupNormalization", "Atan", "Asin", "Acos",
    }
)  # fmt: skip
# Sums of numbers this many times apart: the smaller ones would vanish.
APART = 128.0

# Costs per element: a float operator, an integer one, a conversion either way. Views cost nothing.
FLOAT_COST, INTEGER_COST, CONVERSION = 4, 3, 4
VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
QUESTIONS = ("Shape", "Size")  # which read no element


@dataclass
class Cluster:
    """A node that becomes one integer kernel, with the activation that the kernel fuses."""

    node: ir.Node
    row: Row
    scheme: Scheme
    slots: list[Slot]
    activation: ir.Node | None = None

    def end(self, slot: Slot) -> ir.Value:
        """Where the result of an output slot appears: behind the fused activation."""
        if self.activation is not None and slot.position == 0:
            return self.activation.outputs[0]
        return slot.value

    @property
    def last(self) -> ir.Node:
        return self.activation or self.node


@dataclass
class Placement:
    """The clusters of a graph by their node, and why the other nodes stay in floating-point."""

    clusters: dict[ir.Node, Cluster] = field(default_factory=dict)
    left: dict[ir.Node, str] = field(default_factory=dict)


def touches_floats(node: ir.Node) -> bool:
    """Whether `node` computes floating-point numbers from others: shape arithmetic, indices and constants are
    none of our business."""
    if node.inputs and all(v is None or g.is_constant(v) for v in node.inputs):
        return False
    return any(v.dtype is not None and v.dtype.is_floating_point() for v in node.outputs)


@dataclass
class Placer:
    """Decides for one model. `everything` quantizes wherever a row takes it, whatever it costs."""

    model: ir.Model
    declaration: Declaration
    scheme: Scheme
    recipe: Recipe
    ranges: Ranges
    everything: bool = False
    overrides: Mapping[str, str] = field(default_factory=dict)  # schemes by node name, before the recipe's
    integers: frozenset[str] = frozenset()  # graph inputs and outputs that are integers outside too

    def place(self) -> Placement:
        found = Placement()
        stated: set[ir.Node] = set()
        fused: set[ir.Node] = set()
        for node in self.model.graph:
            if node in fused or not touches_floats(node):
                continue
            if operator_name(node) in (*DEQUANTIZE, "QuantizeLinear"):
                continue
            offered = self._offer(node, stated)
            if isinstance(offered, str):
                found.left[node] = offered
                continue
            found.clusters[node] = offered
            if offered.activation is not None:
                fused.add(offered.activation)
        self._cut(found, stated)
        return found

    # --- what the rows offer ---

    def _offer(self, node: ir.Node, stated: set[ir.Node]) -> Cluster | str:
        name = self.overrides.get(node.name or "") or self.recipe.scheme_of(node)
        if name == FLOAT32:
            measured = (node.name or "") in self.overrides
            return "it costs accuracy in integers" if measured else "the recipe keeps it in floating-point"
        if name in WEIGHTS or name == FLOAT16:
            return f"by {name} its weights alone are stored in fewer bits"
        if g.has_subgraph(node):
            return "control flow"
        scheme = (_arrived(node) or self.scheme) if name is None else STATIC[name]
        row = self.declaration.quantized(node, scheme, self.model.functions)
        if isinstance(row, Refusal):
            if name is not None:
                return f"{name} is asked for, but {row.why()}"
            return row.why()
        call = self.declaration.call(node, self.model.functions)
        wanted = slots(row, call, scheme)
        assert wanted is not None
        cluster = Cluster(node, row, scheme, wanted, fused_activation(node.outputs[0], row.fuses))
        reason = self._unknown(cluster)
        if reason is not None:
            return reason
        if name is not None or all(s.stored for s in wanted if s.rule.role != "bias"):
            stated.add(node)  # asked for, or in integers as the model arrived
        elif not self.everything and (why := self._too_wide(cluster)) is not None:
            return why
        return cluster

    def _unknown(self, cluster: Cluster) -> str | None:
        """Why a tensor of the cluster cannot be given a scale."""
        for slot in cluster.slots:
            if slot.stored or slot.rule.role in ("weight", "bias") or isinstance(slot.rule.scale, float):
                continue
            value = cluster.end(slot) if slot.output else slot.value
            found = self.ranges.of(value, slot.dtype.bitwidth, cluster.scheme.symmetric)
            if isinstance(found, str):
                return found
        return None

    def _too_wide(self, cluster: Cluster) -> str | None:
        node = cluster.node
        if node.domain == "" and node.op_type in WIDE:
            return f"{node.op_type} needs more than {cluster.scheme.act.bitwidth} bits"  # type: ignore[union-attr]
        if cluster.scheme.act is None or cluster.scheme.act.bitwidth > 8:
            return None
        if node.op_type == "Mul" and node.inputs[0] is node.inputs[1]:
            return "a square needs more than 8 bits"
        if node.op_type in ("Add", "Sub"):
            sizes = []
            for slot in cluster.slots:
                found = self.ranges.of(slot.value, 8, cluster.scheme.symmetric)
                if not slot.output and not isinstance(found, str):
                    sizes.append(max(map(abs, found)))
            if len(sizes) == 2 and min(sizes) > 0 and max(sizes) > APART * min(sizes):
                return f"its operands are {max(sizes) / min(sizes):.0f} times apart"
        return None

    # --- what is cheaper in floating-point ---

    def _cut(self, found: Placement, stated: set[ir.Node]) -> None:
        """Move clusters that do not pay to `left`."""
        network = Network()
        ends = {c.activation: n for n, c in found.clusters.items() if c.activation is not None}
        keys = {node: network.node() for node in found.clusters}
        for node, cluster in found.clusters.items():
            size = 0 if node.op_type in VIEWS else sum(_elements(v) for v in cluster.last.outputs)
            forced = self.everything or node in stated or LAST.sub("", node.op_type) in PRODUCTS
            network.edge(SOURCE, keys[node], None if forced else FLOAT_COST * size)
            network.edge(keys[node], SINK, INTEGER_COST * size)
        inputs = set(self.model.graph.inputs)
        values = dict.fromkeys(v for n in self.model.graph for v in (*n.inputs, *n.outputs) if v is not None)
        inner = {c.node.outputs[0] for c in found.clusters.values() if c.activation is not None}
        for value in values:
            if value.dtype is None or not value.dtype.is_floating_point() or value in inner:
                continue
            if g.is_constant(value) or g.is_constant(storage(value).value):
                continue
            made = value.producer()
            if value in inputs:
                maker = SOURCE if value.name in self.integers else SINK
            elif made is None:
                maker = SINK
            elif operator_name(made) in DEQUANTIZE:
                maker = SOURCE
            else:
                maker = keys.get(ends.get(made, made), SINK)
            readers = {
                SOURCE if operator_name(u.node) == "QuantizeLinear" else keys.get(u.node, SINK)
                for u in value.uses()
                if u.node.op_type not in QUESTIONS
            }
            if value.is_graph_output():
                readers.add(SOURCE if value.name in self.integers else SINK)
            cost = CONVERSION * _elements(value)
            if maker != SINK:  # integers made, floats read
                aside = network.node()
                network.edge(maker, aside, cost)
                for reader in sorted(readers):
                    network.edge(aside, reader, None)
            if maker != SOURCE:  # floats made, integers read
                aside = network.node()
                network.edge(aside, maker, cost)
                for reader in sorted(readers):
                    network.edge(reader, aside, None)
        sides = network.source_side()
        for node in [n for n in found.clusters if not sides[keys[n]]]:
            found.left[node] = "it costs less between floats"
            del found.clusters[node]


def _arrived(node: ir.Node) -> Scheme | None:
    """The scheme of a node that arrives between DequantizeLinear and QuantizeLinear."""
    for value in node.inputs:
        if value is None or g.is_constant(value):
            continue
        known = storage(value)
        if known.quantized and not g.is_constant(known.value):
            return next((s for s in STATIC.values() if s.act == known.dtype), None)
    return None


def _elements(value: ir.Value) -> int:
    """The elements of a value, a free dimension counted as one."""
    return math.prod(d if isinstance(d, int) else 1 for d in g.dims(value) or ())


def reasons(left: Mapping[ir.Node, str]) -> dict[str, int]:
    """How often each reason was given, most often first."""
    counts: dict[str, int] = {}
    for reason in left.values():
        counts[reason] = counts.get(reason, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def operators(nodes: Iterable[ir.Node]) -> dict[str, int]:
    """How many nodes of each operator, most first."""
    counts: dict[str, int] = {}
    for node in nodes:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
