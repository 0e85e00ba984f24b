"""Islands of floating-point in an integer graph: which nodes, by what their quantization costs at the outputs.

What stands behind the last products is real from the start, these products too where they are small, and so are
masks and normalizations where that helps.
Then tensors are taken in the order of the error that each adds by itself (`sensitivity.py`). A tensor stays real when
every node that makes or reads it does, so these nodes join the islands, as long as the multiply-accumulates there
stay within a budget. A front end that computes a spectrum is outside of the budget, and so is one island that
alone removes most of an error that leaves nothing of the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.operations import LAST, operations
from tapeout.compiler.operators import DEQUANTIZE, operator_name
from tapeout.passes.quantization.placement import PRODUCTS
from tapeout.passes.quantization.sensitivity import FUSED, RANKED, Site, Switchboard

Array = np.ndarray[Any, Any]

# Operators that a spectral front end is made of: linear ones, magnitudes, logarithms, and what normalizes them.
SPECTRAL = frozenset(
    {
        "Conv", "FullyConnected", "MatMul", "Mul", "Add", "Sub", "Div", "Pow", "Sqrt", "Log", "Clip", "Max", "Min",
        "Neg", "ReduceSum", "ReduceMin", "ReduceMax", "Equal", "Where", "Abs", "Pad", "Reshape", "Transpose", "Squeeze",
        "Unsqueeze", "Slice", "Gather", "Split", "Concat", "Expand", "Tile", "Identity", "Cast",
    }
)  # fmt: skip

# What a normalization is written with.
NORMALIZING = frozenset({"ReduceMean", "Sub", "Mul", "Add", "Sqrt", "Reciprocal", "Div", "Pow"})

# So many tensors join the islands before the error is measured again.
EACH = 3
# Of so many tensors each is measured by itself.
FEW = 40
# Products before the outputs are real where each takes no more of all multiply-accumulates, and all of them no more.
SMALL, ALL_SMALL = 0.003, 0.01
# A budget of which this share is used is not worth another ranking.
FULL = 0.9
# Multiply-accumulates that ranking tensors may take, and runs of the model at least and most.
RANKING_WORK = 1e11
LEAST_RUNS, MOST_RUNS = 40, 120


@dataclass
class Chosen:
    """The islands: nodes by name, and what choosing them did to the error of the activations' quantization."""

    nodes: frozenset[str] = frozenset()
    before: float = 0.0
    after: float = 0.0
    share: float = 0.0  # of the multiply-accumulates
    spectral: float = 0.0  # likewise, of front ends outside of the budget
    ranking: list[tuple[Site, float]] = field(default_factory=list)


def never(_: ir.Node) -> bool:
    return False


@dataclass
class State:
    """Nodes in islands by name, the error that is left, the multiply-accumulates that they take."""

    inside: frozenset[str]
    error: float
    used: float


@dataclass(frozen=True)
class Islands:
    """How islands are chosen. Errors are shares of the outputs' variance: 0.0005 is 33 dB.

    `enough` ends the search; a tensor that adds less than `least` of the error that remains is left in integers.
    `budget` and `extended` bound the multiply-accumulates in islands; the larger bound is for islands that halve
    an error beyond `broken`. Products for which `rounds` holds have kernels that round the real activations of an
    island to 8 bits as they read them: in a model of fewer than `small` multiply-accumulates, which takes no time
    either way, they are outside of the budget.
    """

    budget: float = 0.05
    extended: float = 0.15
    enough: float = 0.0005
    least: float = 0.02
    broken: float = 0.05
    small: float = 1e5
    rounds: Callable[[ir.Node], bool] = never

    def start(self, board: Switchboard) -> Chosen:
        """What is real from the start: the nodes behind the last products and, where it helps, spectral front ends,
        masks of attention and normalizations."""
        source = board.source
        every = [s.switch for s in board.sites]
        before = board.error(every)
        inside = last(source)
        error = board.error(every, inside) if inside else before
        for more, least in ((spectral(source), 0.5), (masks(source), 0.85), (normalizations(source), 0.85)):
            if more - inside and error > self.enough:
                found = board.error(every, inside | more)
                if found < least * error:
                    inside, error = inside | more, found
        return Chosen(inside, before, error)

    def grow(self, board: Switchboard, start: Chosen) -> Chosen:
        """`start` and what else is worth it; as it was where nothing is."""
        source = board.source
        work = {n.name or "": multiplications(n) for n in source.graph}
        total = sum(work.values()) or 1.0
        spectrum = spectral(source)
        free = spectrum | self._rounding(source) if total < self.small else spectrum
        every = [s.switch for s in board.sites]
        state = State(start.nodes, board.error(every, start.nodes), sum(work[n] for n in start.nodes - free))
        ranked: list[tuple[Site, float]] = []
        room = (self.extended if state.error > self.broken else self.budget) * total
        if state.error > self.enough and state.used < FULL * room:
            by_switch = {s.switch: s for s in board.sites}
            runs = int(
                min(max(RANKING_WORK / (total * min(RANKED, len(board.feeds))), LEAST_RUNS), MOST_RUNS)
            )
            ranked = [(by_switch[k], e) for k, e in board.alone(state.inside, limit=runs).items()]
            best = self._grow(board, ranked, work, free, state, self.budget * total)
            if best.error > self.broken:
                wide = self._grow(board, ranked, work, free, state, self.extended * total)
                best = wide if wide.error < 0.6 * best.error else best
            state = best if best.error <= 0.9 * state.error else state
        share = sum(work[n] for n in state.inside - spectrum) / total
        own = sum(work[n] for n in state.inside & spectrum) / total
        return Chosen(state.inside, start.before, state.error, share, own, start.ranking or ranked)

    def _grow(
        self,
        board: Switchboard,
        ranked: Sequence[tuple[Site, float]],
        work: Mapping[str, float],
        free: frozenset[str],
        start: State,
        budget: float,
    ) -> State:
        """What becomes of `start` when sites join in the order of what each adds."""
        every = frozenset(s.switch for s in board.sites)
        inside, error, used = start.inside, start.error, start.used
        waiting = 0
        for site, own in ranked:
            if error <= self.enough or own < self.least * max(error, self.enough):
                break
            more = frozenset(n for n in site.nodes if n in work) - inside
            need = sum(work[n] for n in (inside | more) - free)
            if not more or need > budget or not any(w for n, w in work.items() if n not in inside | more):
                continue
            inside, used, waiting = inside | more, need, waiting + 1
            if waiting == EACH or len(ranked) <= FEW:
                error, waiting = board.error(every, inside), 0
        if waiting:
            error = board.error(every, inside)
        return State(inside, error, used)

    def _rounding(self, source: ir.Model) -> frozenset[str]:
        """Names of the products whose kernels can round real activations row by row as they read them."""
        return frozenset(n.name or "" for n in source.graph if self.rounds(n))


def spectral(model: ir.Model) -> frozenset[str]:
    """Names of the nodes before a logarithm or a magnitude, where nothing but a spectral front end lies there."""
    found: frozenset[str] = frozenset()
    plain: dict[ir.Node, bool] = {}  # nothing but SPECTRAL operators lies before it, and a product does
    behind: dict[ir.Node, bool] = {}
    for node in model.graph:
        made = [m for v in node.inputs if v is not None and (m := v.producer()) is not None]
        # A weight that is kept as codes is a weight.
        makers = [m for m in made if operator_name(m) not in DEQUANTIZE or not g.is_constant(m.inputs[0])]
        op = LAST.sub("", node.op_type)
        plain[node] = op in SPECTRAL and all(plain.get(m, False) for m in makers)
        behind[node] = op in PRODUCTS or any(behind.get(m, False) for m in makers)
        if plain[node] and behind[node] and (op == "Log" or (op == "Sqrt" and _magnitude(node))):
            found |= {n.name or "" for n in _ancestors(node)}
    return found


def tail(model: ir.Model) -> frozenset[str]:
    """Names of the nodes behind the last products, on the way to floating-point outputs: real numbers are asked
    for there, and these few operators need not round them again."""
    before: set[ir.Node] = set()  # a product follows
    found: dict[str, None] = {}
    for node in reversed(list(model.graph)):
        follows = any(u.node in before or _works(u.node) for v in node.outputs for u in v.uses())
        if follows:
            before.add(node)
        elif not _works(node) and not _along(node):
            found[node.name or ""] = None
    return frozenset(found)


def _along(node: ir.Node) -> bool:
    """Whether the kernel of a product computes `node` along."""
    made = node.inputs[0].producer() if node.op_type in FUSED and node.inputs[0] is not None else None
    return made is not None and _works(made)


def last(model: ir.Model) -> frozenset[str]:
    """`tail`, and the products right before it where they take next to nothing: what they make is then not rounded."""
    behind = tail(model)
    work = {n.name or "": multiplications(n) for n in model.graph}
    total = sum(work.values())
    found: list[str] = []
    for node in model.graph:
        share = work[node.name or ""]
        readers = [u.node.name or "" for u in node.outputs[0].uses()] if share else ["none"]
        if share <= SMALL * total and all(r in behind for r in readers):
            found.append(node.name or "")
    return behind | frozenset(found if sum(work[n] for n in found) <= ALL_SMALL * total else ())


def _works(node: ir.Node) -> bool:
    return LAST.sub("", node.op_type) in PRODUCTS or "Pool" in node.op_type


def masks(model: ir.Model) -> frozenset[str]:
    """Names of the nodes that add to scores, or choose among them, right before a Softmax, and of these: what is
    masked is far below everything else."""
    found = []
    for node in model.graph:
        made = node.inputs[0].producer() if node.op_type == "Softmax" and node.inputs[0] is not None else None
        if made is not None and made.op_type in ("Add", "Where"):
            found += [node.name or "", made.name or ""]
    return frozenset(found)


def normalizations(model: ir.Model) -> frozenset[str]:
    """Names of the nodes around the roots of normalizations, up to the products (and what reads their inputs)."""
    found: set[ir.Node] = set()
    for node in model.graph:
        if node.op_type not in ("Sqrt", "LayerNormalization", "RMSNormalization") or node in found:
            continue
        region, queue = {node}, [node]
        while queue:
            at = queue.pop()
            makers = [v.producer() for v in at.inputs if v is not None]
            around = [m for m in makers if m is not None]
            if at.op_type not in ("Add",) or at is node:
                around += [u.node for v in at.outputs for u in v.uses()]
            for other in around:
                if other not in region and other.op_type in NORMALIZING:
                    region.add(other)
                    queue.append(other)
        found |= region
    return frozenset(n.name or "" for n in found)


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
