"""Channels-last tensors wherever operators want them, with the fewest bytes moved by Transposes over the
whole graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.relayout import set_layout
from tapeout.compiler.rewriting import Changes
from tapeout.passes.layout.check import Transposed, needed_transposes, removable_transposes
from tapeout.passes.layout.operators import LAST_AXIS
from tapeout.passes.layout.problem import Problem
from tapeout.passes.layout.rebuild import Rebuild
from tapeout.passes.layout.search import solve

__all__ = ["LAST_AXIS", "ChannelsLast", "Transposed", "needed_transposes", "removable_transposes"]


@dataclass(frozen=True)
class ChannelsLast:
    """Convolutions, pools and their like become channels-last functions (`layout/functions.py`); all other
    nodes get the axis order with which Transposes move the fewest bytes.

    Inputs and outputs keep their layout, except those in `layouts` (name -> "NHWC"), whose shape changes with
    it. Operators named in `last_axis` are given their axis last, whatever order the source has.
    """

    layouts: Mapping[str, str] = field(default_factory=dict)
    last_axis: tuple[str, ...] = LAST_AXIS
    name: str = "channels_last"

    def __call__(self, model: ir.Model) -> Changes:
        count = len(set_layout(model, self.layouts)) if self.layouts else 0
        for graph in list(g.graphs(model)):
            problem = Problem(graph, frozenset(self.last_axis))
            solve(problem)
            count += Rebuild(model, problem).run()
        return Changes(count)
