"""Is every integer kernel as near to the reference as its row says? Each cluster by itself, fed with the integers
that the device fed it (DESIGN: numbers, the cluster is the unit).

A cluster is cut out of the graph as a model of its own, with integers in and out. The device's integers are read
from a run of the whole file; the small model then runs on the reference and, as a file of one operator, on every
runtime of the target: so a delegate that hides tensors is held to the same bound.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.declaration import Declaration, Row, source_name
from tapeout.compiler.errors import TapeoutError
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.origin import origin, set_origin
from tapeout.compiler.operators import Call, fused_activation, storage
from tapeout.compiler.reference import Reference
from tapeout.compiler.target import Request, Runner, Target, write

Array = np.ndarray[Any, Any]

BORDERS = frozenset({"QuantizeLinear", "DequantizeLinear", "DequantizeLong"})


@dataclass(frozen=True)
class Cut:
    """One cluster as a model: `inputs` and `outputs` name the tensors of the whole graph that it reads and
    makes."""

    name: str
    row: Row
    model: ir.Model

    @property
    def inputs(self) -> list[str]:
        return [v.name or "" for v in self.model.graph.inputs]

    @property
    def outputs(self) -> list[str]:
        return [v.name or "" for v in self.model.graph.outputs]


@dataclass
class Deviation:
    """How far one cluster is from the reference on one runtime: the largest difference in quanta of its
    output, how many of `elements` differ at all, and what its row allows."""

    name: str
    op: str
    row: Row
    runtime: str
    quanta: int = 0
    differing: int = 0
    elements: int = 0
    failure: str | None = None

    @property
    def rate(self) -> float:
        return self.differing / self.elements if self.elements else 0.0

    @property
    def holds(self) -> bool:
        return self.failure is None and self.quanta <= self.row.bound.quanta and self.rate <= self.allowed

    @property
    def allowed(self) -> float:
        """The rate of the row, and what chance adds where there are few elements (three sigma, one more)."""
        rate, count = self.row.bound.rate, max(self.elements, 1)
        return rate + 3 * math.sqrt(rate * (1 - rate) / count) + 1 / count

    def add(self, right: Mapping[str, Array], made: Mapping[str, Array]) -> None:
        """Count where `made` differs from `right`."""
        for name, array in right.items():
            apart = np.abs(made[name].astype(np.float64) - array.astype(np.float64))
            self.quanta = max(self.quanta, math.ceil(float(apart.max(initial=0.0))))
            self.differing += int((apart > 0).sum())
            self.elements += apart.size

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kernel": self.row.lower or self.op,
            "runtime": self.runtime,
            "quanta": self.quanta,
            "rate": self.rate,
            "elements": self.elements,
            "holds": self.holds,
            "failure": self.failure,
        }

    def text(self) -> str:
        """ "CONV_2D 'stem' on LiteRT XNNPACK: 2 quanta at 3.1% of the elements, at most 1 at 2%"."""
        head = f"{self.row.lower or self.op} '{self.name}' on {self.runtime}"
        if self.failure is not None:
            return f"{head}: {self.failure}"
        found = f"{self.quanta} quanta, {self.rate:.2%} of {self.elements} elements differ"
        return f"{head}: {found}; at most {self.row.bound.quanta}, {self.row.bound.rate:.2%}"


def cut_clusters(model: ir.Model, declaration: Declaration) -> list[Cut]:
    """Every cluster of the main graph of `model` whose output is stored as integers."""
    found = []
    for node in model.graph:
        if node.op_type in BORDERS or g.has_subgraph(node):
            continue
        row = declaration.match(node, model.functions)
        if isinstance(row, Row) and any(rule.dtypes for rule in row.ports.values()):
            cut = _cut(model, node, row, declaration.call(node, model.functions))
            if cut is not None:
                found.append(cut)
    return found


def _cut(model: ir.Model, node: ir.Node, row: Row, call: Call) -> Cut | None:
    if not any(storage(v, output=True, fuses=row.fuses).quantized for v in node.outputs):
        return None
    maker = _Cutter(model)
    inputs = [None if v is None else maker.read(v) for v in node.inputs]
    made = maker.copy(node, inputs)
    for old, new in zip(node.outputs, made.outputs, strict=True):
        stored = storage(old, output=True, fuses=row.fuses)
        if old.name == "" or (not stored.quantized and not old.uses() and not old.is_graph_output()):
            continue
        last = new
        if stored.quantized:
            activation = fused_activation(old, row.fuses)
            if activation is not None and activation.outputs[0] is not old:
                rest = [None if v is None else maker.read(v) for v in activation.inputs[1:]]
                last = maker.copy(activation, [last, *rest]).outputs[0]
            quantize = stored.value.producer()
            assert quantize is not None
            rest = [None if v is None else maker.read(v) for v in quantize.inputs[1:]]
            last = maker.copy(quantize, [last, *rest]).outputs[0]
        maker.graph.outputs.append(last)
    return Cut(source_name(node), row, maker.model)


class _Cutter:
    """Copies a part of a graph into a model of its own."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = ir.Graph([], [], nodes=[], opset_imports=dict(model.graph.opset_imports), name="cluster")
        self.model = ir.Model(
            self.graph,
            ir_version=model.ir_version,
            functions=[f.clone() for f in model.functions.values()],
        )
        self._known: dict[ir.Value, ir.Value] = {}

    def read(self, value: ir.Value) -> ir.Value:
        """The value that stands for `value`: through a DequantizeLinear its integers are what is given."""
        if value in self._known:
            return self._known[value]
        stored = storage(value)
        if stored.quantized:
            dequantize = value.producer()
            assert dequantize is not None
            inputs = [None if v is None else self._leaf(v) for v in dequantize.inputs]
            made = self.copy(dequantize, inputs).outputs[0]
        else:
            made = self._leaf(value)
        self._known[value] = made
        return made

    def _leaf(self, value: ir.Value) -> ir.Value:
        if value in self._known:
            return self._known[value]
        made = ir.Value(name=value.name, type=value.type, shape=value.shape)
        if g.is_constant(value):
            made.const_value = value.const_value
            self.graph.register_initializer(made)
        else:
            self.graph.inputs.append(made)
        self._known[value] = made
        return made

    def copy(self, node: ir.Node, inputs: Iterable[ir.Value | None]) -> ir.Node:
        made = ir.node(
            node.op_type,
            list(inputs),
            dict(node.attributes),
            domain=node.domain,
            num_outputs=len(node.outputs),
            name=node.name,
        )
        for old, new in zip(node.outputs, made.outputs, strict=True):
            new.name, new.type, new.shape = old.name, old.type, old.shape
        set_origin(made, origin(node))
        self.graph.append(made)
        return made


def check_clusters(
    model: ir.Model,
    target: Target,
    request: Request,
    artifact: Runner,
    samples: Iterable[Mapping[str, Array]],
) -> list[Deviation]:
    """Every cluster of `model` (as it was emitted) on every runtime of `target`, fed with what `artifact`, a
    runner of the whole file that shows its tensors, computed for `samples`."""
    cuts = cut_clusters(model, target.declaration(request.device))
    wanted = {name for cut in cuts for name in cut.inputs}
    given: list[dict[str, Array]] = [
        {**artifact.tensors(sample, sorted(wanted)), **sample} for sample in samples
    ]
    found: list[Deviation] = []
    with tempfile.TemporaryDirectory(prefix="tapeout-") as folder:
        for cut in cuts:
            feeds = [{n: f[n] for n in cut.inputs} for f in given if all(n in f for n in cut.inputs)]
            if feeds:
                found += _check(cut, target, request, feeds, Path(folder) / f"cluster{target.suffix}")
    return found


def check_inside(
    model: ir.Model, rows: Declaration, artifact: Runner, sample: Mapping[str, Array]
) -> list[Deviation]:
    """Every cluster of `model` (as it was emitted) as the whole artifact computes it for `sample`, from what the
    artifact computed before it; those aside whose tensors it does not show."""
    cuts = cut_clusters(model, rows)
    names = sorted({name for cut in cuts for name in (*cut.inputs, *cut.outputs)})
    shown = {**artifact.tensors(sample, names), **artifact.run(sample), **sample}
    found = []
    for cut in cuts:
        if all(name in shown for name in (*cut.inputs, *cut.outputs)):
            with Reference(cut.model, threads=1) as reference:
                right = reference.run({n: shown[n] for n in cut.inputs})
            found.append(Deviation(cut.name, cut.model.graph[-1].op_type, cut.row, artifact.runtime))
            found[-1].add(right, shown)
    return found


def _check(
    cut: Cut, target: Target, request: Request, feeds: list[dict[str, Array]], path: Path
) -> list[Deviation]:
    op = cut.model.graph[-1].op_type
    write(target, cut.model, path, request)
    found = []
    with Reference(cut.model, threads=1) as reference:
        expected = [reference.run(feed) for feed in feeds]
    for runner in target.runners(path, request):
        result = Deviation(cut.name, op, cut.row, runner.runtime)
        found.append(result)
        try:
            for feed, right in zip(feeds, expected, strict=True):
                result.add(right, runner.run(feed))
        except TapeoutError as error:
            result.failure = error.message
    return found
