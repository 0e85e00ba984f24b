"""The pass that quantizes: placement, scales, insertion, and what was done for the report."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.declaration import Declaration, source_name
from tapeout.compiler.errors import UnsupportedError, UsageError
from tapeout.compiler.ir import graph as g
from tapeout.compiler.operations import LAST
from tapeout.compiler.recipe import Recipe
from tapeout.compiler.rewriting import Changes, Declined
from tapeout.compiler.schemes import Scheme
from tapeout.passes.quantization.groups import Groups
from tapeout.passes.quantization.insert import Inserter
from tapeout.passes.quantization.interface import convert
from tapeout.passes.quantization.placement import PRODUCTS, Placement, Placer, reasons
from tapeout.passes.quantization.ranges import NOT_FINITE, Interval, Measured, Ranges, source_names
from tapeout.passes.quantization.report import META

PLAIN = Recipe()
# Constants up to this size are looked at for whether they are 0.
SMALL = 1 << 20


@dataclass(frozen=True)
class Quantize:
    """Quantize what the declaration has rows for, by `scheme` and `recipe`, with ranges from `measured` (an
    object of `compiler/calibration`, or a function that gives it when the pass runs).

    `dtypes` asks for the storage type of graph inputs and outputs ("int8", "uint8"); without it they stay
    floating-point. `everything` quantizes whatever has a row, whether it pays or not. `overrides` are schemes by
    node name ("float32" for none) that algorithms have chosen; they win over the recipe. `ranges` are ranges by
    value name that they have chosen; what the recipe's rules say wins over those. Without `borders`, inputs and
    outputs are placed as `dtypes` says and stay floating-point until `give_borders`.
    """

    scheme: Scheme
    declaration: Declaration
    measured: Any
    recipe: Recipe = PLAIN
    dtypes: Mapping[str, str] = field(default_factory=dict)
    everything: bool = False
    overrides: Mapping[str, str] = field(default_factory=dict)
    ranges: Mapping[str, Interval] = field(default_factory=dict)
    borders: bool = True
    name: str = "quantize"

    def __call__(self, model: ir.Model) -> Changes:
        measured = self._measured()
        values = (v for n in model.graph for v in (*n.inputs, *n.outputs) if v is not None)
        self.recipe.check(model.graph, {name for v in values for name in source_names(v)})
        ranges = Ranges(measured, self.recipe, self.ranges)
        widened = widen(model)
        placement = self._place(model, ranges)
        clusters = [placement.clusters[n] for n in model.graph if n in placement.clusters]
        groups = Groups(clusters, ranges, self.recipe.requantize)
        inserter = Inserter(model, groups)
        inserter.run(clusters)
        for value, cast in widened.items():
            value.replace_all_uses_with(cast.outputs[0])
        if self.borders:
            convert(model, self.dtypes, ranges)
        g.remove_dead(model.graph)
        model.meta[META] = {
            "left": placement.left,
            "requantized": inserter.requantized,
        }
        declined = tuple(Declined(self.name, n.name or "", reason) for n, reason in placement.left.items())
        return Changes(len(clusters), declined)

    def give_borders(self, model: ir.Model) -> None:
        """Give inputs and outputs of a quantized graph the types that `dtypes` names."""
        convert(model, self.dtypes, Ranges(self._measured(), self.recipe, self.ranges))
        g.remove_dead(model.graph)

    def _measured(self) -> Measured | None:
        found: Measured | None = self.measured() if callable(self.measured) else self.measured
        return found

    def _place(self, model: ir.Model, ranges: Ranges) -> Placement:
        io = {n for n, t in self.dtypes.items() if not t.startswith("float")}
        placer = Placer(
            model,
            self.declaration,
            self.scheme,
            self.recipe,
            ranges,
            self.everything,
            self.overrides,
            frozenset(io),
        )
        placement = placer.place()
        refuse_without_range(placement, ranges)
        if not placement.clusters:
            why = "; ".join(list(reasons(placement.left))[:3]) or "it computes no floating-point numbers"
            raise UnsupportedError(
                f"scheme '{self.scheme.name}' quantizes nothing in this model: {why}",
                hint="export it without --quantize, or state a scheme by rules of a recipe",
                nodes=[source_name(n) for n in placement.left][:10],
            )
        return placement


def refuse_without_range(placement: Placement, ranges: Ranges) -> None:
    """Raises UsageError where the calibration data shows a product, which is to compute in integers, nothing that it
    could be given a range by: numbers beyond all bounds, or nothing but 0 although its input follows from the
    model's. Other operators may hold such numbers for good reasons (the infinities of a mask, an unused state)."""
    for node, reason in placement.left.items():
        if reason == NOT_FINITE and LAST.sub("", node.op_type) in PRODUCTS:
            raise UsageError(
                f"the layer '{source_name(node)}' ({node.op_type}) has an infinite range: its numbers run over on the "
                "calibration data",
                hint='leave out the samples that do so, or keep it in floats by a rule: scheme = "float32"',
                nodes=[source_name(node)],
            )
    seen: dict[ir.Value, bool] = {}
    for node, cluster in placement.clusters.items():
        if LAST.sub("", node.op_type) not in PRODUCTS:
            continue
        for slot in cluster.slots:
            if (
                slot.output
                or slot.stored
                or slot.rule.role in ("weight", "bias")
                or g.is_constant(slot.value)
            ):
                continue
            if ranges.empty(slot.value) and _follows(slot.value, ranges, seen):
                raise UsageError(
                    f"the layer '{source_name(node)}' ({node.op_type}) has an empty range: what it reads, "
                    f"'{source_names(slot.value)[0]}', is 0 everywhere on the calibration data",
                    hint="give samples in which it is used (a state is carried from frame to frame), or keep it in "
                    'floats by a rule: scheme = "float32"',
                    nodes=[source_name(node)],
                )


def _follows(value: ir.Value, ranges: Ranges, seen: dict[ir.Value, bool]) -> bool:
    """Whether the numbers of `value` follow from those of an input of the graph: not from sizes alone, and not where
    they are multiplied by what is 0 whatever the input (the first state of a recurrence)."""
    if value in seen:
        return seen[value]
    seen[value] = False
    made = value.producer()
    if made is None:
        seen[value] = value.is_graph_input()
    elif made.op_type not in ("Shape", "Size", "ConstantOfShape"):
        inputs = [v for v in made.inputs if v is not None]
        factors = inputs[:2] if made.op_type == "Mul" or LAST.sub("", made.op_type) in PRODUCTS else []
        follow = [_follows(v, ranges, seen) for v in inputs]
        naught = any(_zero(v, ranges) and not _follows(v, ranges, seen) for v in factors)
        seen[value] = any(follow) and not naught
    return seen[value]


def _zero(value: ir.Value, ranges: Ranges) -> bool:
    array = g.constant(value, SMALL)
    return ranges.empty(value) if array is None else not array.any()


def widen(model: ir.Model) -> dict[ir.Value, ir.Node]:
    """Let readers of a Cast of a float16 constant read a float32 one, computed when it is read, so that it can
    be quantized; the result tells what to put back for those that are not."""
    found: dict[ir.Value, ir.Node] = {}
    for node in model.graph:
        held = node.inputs[0] if node.op_type == "Cast" and node.domain == "" else None
        made = node.outputs[0]
        if held is None or not g.is_constant(held) or made.dtype != ir.DataType.FLOAT:
            continue
        shape = g.static_dims(held)
        if held.dtype not in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) or shape is None:
            continue
        if made.is_graph_output():
            continue
        tensor = held.const_value
        assert tensor is not None
        wide = g.add_lazy_constant(
            model.graph,
            shape,
            ir.DataType.FLOAT,
            functools.partial(_in_single, tensor),
            made.name or "weight",
        )
        made.replace_all_uses_with(wide)
        found[wide] = node
    return found


def _in_single(tensor: ir.TensorProtocol) -> np.ndarray[Any, Any]:
    made: np.ndarray[Any, Any] = tensor.numpy().astype(np.float32)
    return made
