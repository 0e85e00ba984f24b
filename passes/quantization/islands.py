"""Islands of floating-point in an integer graph: which nodes, by what their quantization costs at the outputs.

Tensors are taken in the order of the error that each adds by itself (`sensitivity.py`). A tensor stays real when
every node that makes or reads it does, so these nodes join the islands, as long as the multiply-accumulates there
stay within a budget. A front end that computes a spectrum is outside of the budget, and so is one island that
alone removes most of an error that leaves nothing of the outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.operations import LAST, operations
from tapeout.passes.quantization.placement import PRODUCTS
from tapeout.passes.quantization.sensitivity import Site, Switchboard

Array = np.ndarray[Any, Any]

# Operators that a spectral front end is made of: linear ones, magnitudes, logarithms, and what normalizes them.
SPECTRAL = frozenset(
    {
        "Conv", "FullyConnected", "MatMul", "Mul", "Add", "Sub", "Div", "Pow", "Sqrt", "Log", "Clip", "Max", "Min",
        "Neg", "ReduceSum", "ReduceMin", "ReduceMax", "Equal", "Where", "Abs", "Pad", "Reshape", "Transpose", "Squeeze",
        "Unsqueeze", "Slice", "Gather", "Split", "Concat", "Expand", "Tile", "Identity", "Cast",
    }
)  # fmt: skip

# So many tensors join the islands before the error is measured again.
EACH = 3


@dataclass
class Chosen:
    """The islands: nodes by name, and what choosing them did to the error of the activations' quantization."""

    nodes: frozenset[str] = frozenset()
    before: float = 0.0
    after: float = 0.0
    share: float = 0.0  # of the multiply-accumulates
    spectral: float = 0.0  # likewise, of front ends outside of the budget
    ranking: list[tuple[Site, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Islands:
    """How islands are chosen. Errors are shares of the outputs' variance: 0.003 is 25 dB.

    `enough` ends the search; a tensor that adds less than `least` of the error that remains is left in integers.
    `budget` and `extended` bound the multiply-accumulates in islands; the larger bound is for islands that halve
    an error beyond `broken`.
    """

    budget: float = 0.05
    extended: float = 0.15
    enough: float = 0.003
    least: float = 0.02
    broken: float = 0.05

    def choose(self, quantized: ir.Model, source: ir.Model, feeds: Sequence[Mapping[str, Array]]) -> Chosen:
        """The islands for `quantized`, a Q/DQ graph made of `source`, by its outputs on `feeds`."""
        board = Switchboard(quantized, source, feeds)
        every = frozenset(s.switch for s in board.sites)
        error = board.error(every)
        chosen = Chosen(before=error, after=error)
        if error <= self.enough:
            return chosen
        nodes = {n.name or "": n for n in source.graph}
        work = {
            k: float(operations(n, 1) or 0) if LAST.sub("", n.op_type) in PRODUCTS else 0.0
            for k, n in nodes.items()
        }
        total = sum(work.values()) or 1.0
        by_switch = {s.switch: s for s in board.sites}
        spectrum = spectral(source)
        inside: frozenset[str] = frozenset()

        if spectrum and (found := board.error(every - _real(board, spectrum, nodes))) < 0.5 * error:
            inside, chosen.after = spectrum, found
        alone = board.alone(every - _real(board, inside, nodes))
        chosen.ranking = [(by_switch[k], e) for k, e in alone.items()]
        start = inside, chosen.after, 0.0
        best = self._grow(board, by_switch, alone, nodes, work, spectrum, start, self.budget * total, every)
        if best[1] > self.broken:
            wide = self._grow(
                board, by_switch, alone, nodes, work, spectrum, start, self.extended * total, every
            )
            best = wide if wide[1] < 0.6 * best[1] else best
        inside, chosen.after, chosen.share = best[0], best[1], best[2] / total
        chosen.nodes = inside
        chosen.spectral = sum(work[n] for n in inside & spectrum) / total
        return chosen

    def _grow(
        self,
        board: Switchboard,
        sites: Mapping[str, Site],
        alone: Mapping[str, float],
        nodes: Mapping[str, ir.Node],
        work: Mapping[str, float],
        free: frozenset[str],
        start: tuple[frozenset[str], float, float],
        budget: float,
        every: frozenset[str],
    ) -> tuple[frozenset[str], float, float]:
        """Nodes inside, the error and the work there, when sites join in the order of `alone`."""
        inside, error, used = start
        waiting = 0
        for switch, own in alone.items():
            if error <= self.enough or own < self.least * max(error, self.enough):
                break
            more = frozenset(n for n in sites[switch].nodes if n in nodes) - inside
            need = sum(work[n] for n in (inside | more) - free)
            if not more or need > budget:
                continue
            inside, used, waiting = inside | more, need, waiting + 1
            if waiting == EACH:
                error, waiting = board.error(every - _real(board, inside, nodes)), 0
        if waiting:
            error = board.error(every - _real(board, inside, nodes))
        return inside, error, used


def _real(board: Switchboard, inside: frozenset[str], nodes: Mapping[str, ir.Node]) -> frozenset[str]:
    """The switches of the tensors that only nodes `inside` make and read."""
    return frozenset(s.switch for s in board.sites if all(n in inside or n not in nodes for n in s.nodes))


def spectral(model: ir.Model) -> frozenset[str]:
    """Names of the nodes before a logarithm or a magnitude, where nothing but a spectral front end lies there."""
    found: frozenset[str] = frozenset()
    plain: dict[ir.Node, bool] = {}  # nothing but SPECTRAL operators lies before it, and a product does
    behind: dict[ir.Node, bool] = {}
    for node in model.graph:
        makers = [m for v in node.inputs if v is not None and (m := v.producer()) is not None]
        op = LAST.sub("", node.op_type)
        plain[node] = op in SPECTRAL and all(plain.get(m, False) for m in makers)
        behind[node] = op in PRODUCTS or any(behind.get(m, False) for m in makers)
        if plain[node] and behind[node] and (op == "Log" or (op == "Sqrt" and _magnitude(node))):
            found |= {n.name or "" for n in _ancestors(node)}
    return found


def _magnitude(node: ir.Node) -> bool:
    """Whether a root is of a sum of squares of products: |a + ib|."""
    value = node.inputs[0]
    made = value.producer() if value is not None else None
    return made is not None and made.op_type in ("Add", "ReduceSum")


def _ancestors(node: ir.Node) -> Iterable[ir.Node]:
    found = {node: None}
    queue = [node]
    while queue:
        for value in queue.pop().inputs:
            made = value.producer() if value is not None else None
            if made is not None and made not in found and not g.is_constant(value):
                found[made] = None
                queue.append(made)
    return found


def multiplications(node: ir.Node) -> float:
    """Multiply-accumulates of a product, 0 for any other node; a free dimension counts as one."""
    return float(operations(node, 1) or 0) if LAST.sub("", node.op_type) in PRODUCTS else 0.0
