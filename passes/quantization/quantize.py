"""The pass that quantizes: placement, scales, insertion, and what was done for the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from tapeout.compiler.declaration import Declaration, source_name
from tapeout.compiler.errors import UnsupportedError
from tapeout.compiler.ir import graph as g
from tapeout.compiler.recipe import Recipe
from tapeout.compiler.rewriting import Changes, Declined
from tapeout.compiler.schemes import Scheme
from tapeout.passes.quantization.groups import Groups
from tapeout.passes.quantization.insert import Inserter
from tapeout.passes.quantization.placement import Placement, Placer, reasons
from tapeout.passes.quantization.ranges import Measured, Ranges, source_names

META = "tapeout.quantization"
PLAIN = Recipe()


@dataclass(frozen=True)
class Quantize:
    """Quantize what the declaration has rows for, by `scheme` and `recipe`, with ranges from `measured` (an
    object of `compiler/calibration`, or a function that gives it when the pass runs).

    `dtypes` asks for the storage type of graph inputs and outputs ("int8", "uint8"); without it they stay
    floating-point. `everything` quantizes whatever has a row, whether it pays or not.
    """

    scheme: Scheme
    declaration: Declaration
    measured: Any
    recipe: Recipe = PLAIN
    dtypes: Mapping[str, str] = field(default_factory=dict)
    everything: bool = False
    name: str = "quantize"

    def __call__(self, model: ir.Model) -> Changes:
        measured: Measured | None = self.measured() if callable(self.measured) else self.measured
        values = (v for n in model.graph for v in (*n.inputs, *n.outputs) if v is not None)
        self.recipe.check(model.graph, {name for v in values for name in source_names(v)})
        ranges = Ranges(measured, self.recipe)
        placement = self._place(model, ranges)
        clusters = [placement.clusters[n] for n in model.graph if n in placement.clusters]
        groups = Groups(clusters, ranges, self.recipe.requantize)
        inserter = Inserter(model, groups)
        inserter.run(clusters)
        g.remove_dead(model.graph)
        model.meta[META] = {
            "left": {n.name or "": reason for n, reason in placement.left.items()},
            "requantized": inserter.requantized,
        }
        declined = tuple(Declined(self.name, n.name or "", reason) for n, reason in placement.left.items())
        return Changes(len(clusters), declined)

    def _place(self, model: ir.Model, ranges: Ranges) -> Placement:
        io = {n for n, t in self.dtypes.items() if not t.startswith("float")}
        placer = Placer(
            model, self.declaration, self.scheme, self.recipe, ranges, self.everything, frozenset(io)
        )
        placement = placer.place()
        if not placement.clusters:
            why = "; ".join(list(reasons(placement.left))[:3]) or "it computes no floating-point numbers"
            raise UnsupportedError(
                f"scheme '{self.scheme.name}' quantizes nothing in this model: {why}",
                hint="export it without --quantize, or state a scheme by rules of a recipe",
                nodes=[source_name(n) for n in placement.left][:10],
            )
        return placement
