"""What the quantization of each tensor costs at the model's outputs, measured on data.

The Q/DQ graph gets a switch at every quantized activation: Where(on, DequantizeLinear(q), x). One session then
answers for any choice of tensors that are quantized. The error is that of each output, as a share of its
variance, averaged over the outputs. Weights are as the float graph has them: their rounding is another matter,
which fitting them mends.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.origin import origin
from tapeout.compiler.operations import LAST
from tapeout.compiler.reference import Reference

Array = np.ndarray[Any, Any]

# The name of the input with the switches, and samples that sites are ranked by.
SWITCHES = "switches~~"
RANKED = 8
# Activations that kernels fuse.
FUSED = ("Relu", "Clip")
# Operators that hand on elements of one input: quantized or not, they are what their input is.
HANDING_ON = frozenset(
    {
        "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Tile", "Slice", "Gather",
        "Split", "Pad", "MaxPool", "DepthToSpace", "SpaceToDepth", "GatherND", "ReduceMax", "ReduceMin",
    }
)  # fmt: skip


class Site(NamedTuple):
    """Quantized tensors that hold the same numbers: their switch, their names, and the nodes (by name) that make
    and read them."""

    switch: str
    tensors: tuple[str, ...]
    nodes: tuple[str, ...]
    origins: tuple[str, ...]


class Edge(NamedTuple):
    """What one node reads of a site, the nodes (by name) that make the number, and that one ("": none, an output)."""

    site: str
    makers: tuple[str, ...]
    reader: str


@dataclass
class Switchboard:
    """`quantized`, a Q/DQ graph, with switches; `source` is the float graph that it was made of."""

    quantized: ir.Model
    source: ir.Model
    feeds: Sequence[Mapping[str, Array]]
    threads: int = 2
    sites: list[Site] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    runs: int = 0

    def __post_init__(self) -> None:
        self._model = self.quantized.clone()
        self._waiting: list[ir.Node] = []
        self._real_weights()
        self._switch()
        with Reference(self.source, threads=self.threads) as reference:
            self.outputs = reference.outputs()
            self._wanted = [reference.run(f) for f in self.feeds]
        floats = [n for n in self.outputs if self._wanted[0][n].dtype.kind == "f"]
        self._power = {name: power([w[name] for w in self._wanted]) for name in floats}
        self._reference = Reference(self._model, threads=self.threads, optimized=True)

    def _real_weights(self) -> None:
        theirs = {n.name: n for n in self.source.graph}
        graph = self._model.graph
        for node in graph:
            other = theirs.get(node.name)
            if other is None:
                continue
            for i, value in enumerate(node.inputs):
                made = g.producer(value, "DequantizeLinear")
                if made is None or not g.is_constant(made.inputs[0]) or i >= len(other.inputs):
                    continue
                real = other.inputs[i]
                if real is not None and g.is_constant(real) and real.const_value is not None:
                    known = graph.initializers.get(real.name or "")
                    node.replace_input_with(
                        i, known or g.add_constant(graph, real.const_value, real.name or "weight")
                    )
        g.remove_dead(graph)

    def _switch(self) -> None:
        graph = self._model.graph
        of: dict[ir.Value, int] = {}  # a float value -> the site that it belongs to
        found: list[dict[str, dict[str, None]]] = []
        for node in list(graph):
            if (
                node.op_type == "QuantizeLinear"
                and node.inputs[0] is not None
                and not g.is_constant(node.inputs[0])
            ):
                self._add(node, of, found)
            elif LAST.sub("", node.op_type) in HANDING_ON and node.inputs and node.inputs[0] in of:
                for value in node.outputs:
                    of[value] = of[node.inputs[0]]
        self.sites = [
            Site(f"switch~~{i}", tuple(f["tensors"]), tuple(f["nodes"]), tuple(f["origins"]))
            for i, f in enumerate(found)
        ]
        roots = {v: root for v in of if (root := _root(v)) is not v}
        for value, root in roots.items():
            self._edges(value, root, f"switch~~{of[value]}")
        self._wire()

    def _wire(self) -> None:
        """One input holds all switches: a session is slow to take thousands of them."""
        graph = self._model.graph
        if not self.edges:
            return
        given = ir.Value(
            name=SWITCHES, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([len(self.edges)])
        )
        graph.inputs.append(given)
        node = ir.node("Split", [given], {"num_outputs": len(self.edges)}, num_outputs=len(self.edges))
        node.name = g.fresh(graph, "switches")
        for value in node.outputs:
            value.name, value.type, value.shape = g.fresh(graph, "switch"), given.type, ir.Shape([1])
        graph.insert_before(graph[0], node)
        for other, switch in zip(self._waiting, node.outputs, strict=True):
            if g.rank(other.outputs[0]) == 0:
                scalar = ir.node("Squeeze", [switch], name=g.fresh(graph, "scalar"))
                made = scalar.outputs[0]
                made.name, made.type, made.shape = g.fresh(graph, "switch"), switch.type, ir.Shape([])
                graph.insert_after(node, scalar)
                other.replace_input_with(0, made)
            else:
                other.replace_input_with(0, switch)

    def _edges(self, value: ir.Value, real: ir.Value, site: str) -> None:
        """Let each node that reads `value` read a choice between it and `real`."""
        graph = self._model.graph
        makers = tuple(n.name or "" for n in _makers(real))
        made = value.producer()
        assert made is not None
        chosen: dict[ir.Node, ir.Value] = {}
        for use in list(value.uses()):
            if use.node not in chosen:
                chosen[use.node] = self._choice(made, value, real, site, makers, use.node.name or "")
            use.node.replace_input_with(use.idx, chosen[use.node])
        for i, output in enumerate(graph.outputs):
            if output is value:
                result = self._choice(made, value, real, site, makers, "")
                name = value.name
                value.name, result.name = g.fresh(graph, name or "output"), name
                graph.outputs[i] = result

    def _choice(
        self, after: ir.Node, value: ir.Value, real: ir.Value, site: str, makers: tuple[str, ...], reader: str
    ) -> ir.Value:
        graph = self._model.graph
        node = ir.node("Where", [None, value, real], name=g.fresh(graph, "switched"))
        result = node.outputs[0]
        result.type, result.shape, result.name = value.type, value.shape, g.fresh(graph, "switched")
        graph.insert_after(after, node)
        self.edges.append(Edge(site, makers, reader))
        self._waiting.append(node)
        return result

    def _add(self, node: ir.Node, of: dict[ir.Value, int], found: list[dict[str, dict[str, None]]]) -> None:
        value = node.inputs[0]
        assert value is not None
        site = of.get(value)
        if site is None:
            site = len(found)
            found.append({"tensors": {}, "nodes": {}, "origins": {}})
            of[value] = site
        entry = found[site]
        for maker in _makers(value):
            entry["nodes"][maker.name or ""] = None
            if maker.op_type not in FUSED:
                entry["origins"].update(dict.fromkeys(origin(maker)))
        for use in node.outputs[0].uses():
            real = use.node
            if real.op_type != "DequantizeLinear":
                continue
            of[real.outputs[0]] = site
            entry["tensors"][real.outputs[0].name or ""] = None
            for reader in real.outputs[0].uses():
                if reader.node.op_type != "QuantizeLinear":
                    entry["nodes"][reader.node.name or ""] = None

    def errors(
        self, on: Iterable[str], inside: Collection[str] = (), samples: int | None = None
    ) -> dict[str, float]:
        """Each output's squared error as a share of its variance, where the sites with switches `on` are
        quantized, save what nodes `inside` (by name) hand to each other and read of inputs; on all samples, or as
        many as `samples`, spread over them."""
        chosen, within = set(on), set(inside)
        switches = {SWITCHES: np.array([e.site in chosen and not _within(e, within) for e in self.edges])}
        total = dict.fromkeys(self._power, 0.0)
        count = min(samples or len(self.feeds), len(self.feeds))
        for i in [k * len(self.feeds) // count for k in range(count)]:
            made = self._reference.run({**self.feeds[i], **(switches if self.edges else {})}, list(total))
            for name in total:
                total[name] += lost(made[name], self._wanted[i][name]) / self._power[name]
        self.runs += 1
        share = len(self.feeds) / count
        return {name: share * total[name] for name in total}

    def error(self, on: Iterable[str], inside: Collection[str] = (), samples: int | None = None) -> float:
        """The mean of `errors`."""
        found = self.errors(on, inside, samples)
        return sum(found.values()) / max(len(found), 1)

    def alone(
        self,
        inside: Collection[str] = (),
        share: float = 0.01,
        limit: int = 120,
        samples: int = RANKED,
    ) -> dict[str, float]:
        """What each site adds by itself beside nodes that are `inside`, the worst first.

        Sites are measured together, in halves of halves, and only groups that add more than `share` of what all
        of them add are taken apart: in the others each site gets an equal part. At most `limit` runs.
        """
        found: dict[str, float] = {}
        live = {e.site for e in self.edges if not _within(e, inside)}
        every = [s.switch for s in self.sites if s.switch in live]
        whole = self.error(every, inside, samples)
        queue = [(whole, every)] if every else []
        runs = 0
        while queue:
            queue.sort(key=lambda item: -item[0])
            error, group = queue.pop(0)
            if len(group) == 1 or error <= share * whole or runs >= limit:
                found.update(dict.fromkeys(group, error / len(group)))
                continue
            half = len(group) // 2
            for part in (group[:half], group[half:]):
                queue.append((self.error(part, inside, samples), part))
                runs += 1
        return dict(sorted(found.items(), key=lambda item: -item[1]))


def power(samples: Sequence[Array]) -> float:
    """What errors of an output are a share of: its summed variance over `samples`, or its summed square where it is
    constant."""
    flat = np.concatenate([s.reshape(-1) for s in samples]).astype(np.float64)
    return float(((flat - flat.mean()) ** 2).sum()) or float((flat**2).sum()) or 1.0


def lost(made: Array, wanted: Array) -> float:
    """The squared error of one sample."""
    return float(((made.astype(np.float64) - wanted) ** 2).sum())


def _makers(value: ir.Value) -> list[ir.Node]:
    """The nodes of the kernel that makes `value`: an operator, and the activations that it fuses."""
    found = []
    maker = value.producer()
    while maker is not None and maker.op_type in FUSED and maker.inputs[0] is not None:
        found.append(maker)
        maker = maker.inputs[0].producer()
    if maker is not None and maker.op_type not in ("QuantizeLinear", "DequantizeLinear", "Where"):
        found.append(maker)
    return found


def _root(value: ir.Value) -> ir.Value:
    """The numbers that `value` has been rounded from, once or several times."""
    made = g.producer(value, "DequantizeLinear")
    coded = None if made is None else g.producer(made.inputs[0], "QuantizeLinear")
    return value if coded is None or coded.inputs[0] is None else _root(coded.inputs[0])


def _within(edge: Edge, inside: Collection[str]) -> bool:
    """Whether nodes `inside` make and read what goes along `edge`; inputs and outputs of the graph are real."""
    if not edge.reader and not edge.makers:
        return False
    return (not edge.reader or edge.reader in inside) and all(m in inside for m in edge.makers)
