"""Cross-layer equalization: channels between two products in integers are made as large as serves both.

    P2(relu(P1(X)))  =  P2'(relu(P1'(X)))     W1' = W1 / s,  b1' = b1 / s,  W2' = W2 s

after M. Nagel et al., Data-Free Quantization (ICCV 2019), by what calibration measured between them: P1 has scales per
output channel, which take s in at no cost, so that s is chosen for the activations and for W2 alone. Between them may
stand Relu, and what moves elements or takes the largest of a channel.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.calibration.statistics import Statistics, TensorStats
from tapeout.compiler.ir import graph as g
from tapeout.compiler.rewriting import Changes
from tapeout.passes.quantization.ranges import LAYOUT
from tapeout.passes.quantization.scaling import (
    BETWEEN,
    reader,
    real_weight,
    scale_inputs,
    scale_outputs,
    scaled_stats,
    shared,
)

Array = np.ndarray[Any, Any]

# What a scale per channel (all positive) goes through unchanged.
THROUGH = frozenset({"Relu", "MaxPoolNHWC", "AveragePoolNHWC"})


@dataclass(frozen=True)
class Equalize:
    """Equalizes what the statistics say is worth it; `result` are the statistics with what was scaled."""

    statistics: Statistics
    name: str = "cross-layer-equalization"
    known: dict[str, TensorStats] = field(default_factory=dict, compare=False)
    instead: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def result(self) -> Statistics:
        return replace(
            self.statistics,
            tensors={**self.statistics.tensors, **self.known},
            stand_in={**self.statistics.stand_in, **self.instead},
        )

    def __call__(self, model: ir.Model) -> Changes:
        return Changes(sum(self._between(node) for node in list(model.graph)))

    def _between(self, first: ir.Node) -> bool:
        if real_weight(first) is None:
            return False
        chain = [first.outputs[0]]
        while (node := g.only_use(chain[-1])) is not None and node.op_type in THROUGH:
            chain.append(node.outputs[0])
        last = chain[-1]
        if last.is_graph_output() or any(v.is_graph_output() for v in chain):
            return False
        uses = list(last.uses())
        known = {u.node: reader(u.node) for u in uses if u.idx == 0}
        found_readers = [r for r in known.values() if r is not None]
        channels = [self.statistics.channels(v, -1) for v in chain]
        widest = next((c for c in reversed(channels) if c is not None), None)
        if not uses or len(known) < len(uses) or len(found_readers) < len(known) or widest is None:
            return False
        found = shared(found_readers, widest.absmax, BETWEEN)
        if found is None or len(found) != g.dims(last)[-1]:  # type: ignore[index]
            return False
        scale_outputs(first, 1 / found)
        for node in known:
            scale_inputs(node, found)
        graph = first.graph
        assert isinstance(graph, ir.Graph)
        names = [g.fresh(graph, v.name or "equalized") for v in chain]
        for i, (value, seen) in enumerate(zip(chain, channels, strict=True)):
            value.metadata_props.pop(LAYOUT, None)
            value.name = names[i]
            if seen is not None:
                self.known[names[i]] = scaled_stats(seen, 1 / found, g.rank(value) or 2)
            elif i + 1 < len(names):
                self.instead[names[i]] = names[i + 1]
        return True
