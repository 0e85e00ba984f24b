"""Layer dropping: residual blocks go whole, those first whose removal changes the model's outputs least.

    Add(x, branch(x)) -> x

What a block does to the outputs is measured: its branch passes a gate (a factor that is an input of the probing
model), which is one, and zero where the block is gone. What later layers can make good of it they are fitted to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from tapeout.compiler.calibration import Calibration
from tapeout.compiler.errors import InvalidModelError, UsageError
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.save import to_bytes
from tapeout.compiler.operations import operations
from tapeout.compiler.reference import open_session
from tapeout.compiler.rewriting import Changes, Declined
from tapeout.passes.quantization.layers import spread
from tapeout.passes.sparsity.layers import Layer, layers
from tapeout.passes.sparsity.prune import SAMPLES, Sequential
from tapeout.passes.sparsity.trial import loss, tried

Array = np.ndarray[Any, Any]


class Block(NamedTuple):
    """A residual block: the Add that ends it, at which of its inputs the value passes by, and the operations of the
    layers that nothing but the branch needs."""

    add: ir.Node
    side: int
    operations: float

    @property
    def skip(self) -> ir.Value:
        value = self.add.inputs[self.side]
        assert value is not None
        return value

    @property
    def name(self) -> str:
        return self.add.name or ""


@dataclass(frozen=True)
class DropBlocks:
    """Removes residual blocks until at least the share `ratio` of the operations is gone; what changes the outputs
    least for what it saves goes first. Raises UsageError where the model's blocks do not hold so much."""

    ratio: float
    calibration: Calibration
    name: str = "drop blocks"

    def __call__(self, model: ir.Model) -> Changes:
        feeds = spread(list(self.calibration.feeds()), SAMPLES)
        found = blocks(model.graph)
        total = float(sum(operations(f.node, assume=1) or 0 for f in layers(model.graph)))
        held = sum(b.operations for b in found)
        if held < self.ratio * total:
            nodes = ", ".join(f"'{b.name}'" for b in found[:6])
            raise UsageError(
                f"{self.ratio:.0%} of the operations are to go with residual blocks, and those that can go hold "
                f"{held / max(total, 1.0):.0%}",
                hint=f"the blocks end at {nodes}"
                if found
                else "no Add joins a value with what is computed from it",
            )
        chosen = choose(model, found, feeds, self.ratio * total)
        first = min(list(model.graph).index(b.add) for b in chosen)
        later = {n.name for n in list(model.graph)[first:]}
        dense = model.clone()
        for block in chosen:
            g.replace(model.graph, block.add.outputs[0], block.skip)
        g.remove_dead(model.graph)
        left = [f for f in layers(model.graph) if f.node.name in later]
        Sequential(model, feeds, dense=dense).run(left, _as_it_is)
        stay = (b for b in found if b not in chosen)
        return Changes(len(chosen), tuple(Declined(self.name, b.name, "its block stays") for b in stay))


def _as_it_is(found: Layer, weight: Array, moments: Array) -> Array:
    return weight


def blocks(graph: ir.Graph) -> list[Block]:
    """The residual blocks of `graph`, in order: Adds of a value and of what is computed from it, in the same shape."""
    found = []
    for node in graph:
        if node.op_type != "Add" or node.domain or any(v is None or g.is_constant(v) for v in node.inputs):
            continue
        for side in (0, 1):
            skip, branch = node.inputs[side], node.inputs[1 - side]
            assert skip is not None and branch is not None
            shapes = {g.dims(v) for v in (skip, branch, node.outputs[0])}
            inner = _behind(graph, branch, node, skip) if len(shapes) == 1 and None not in shapes else set()
            saved = sum(operations(f.node, assume=1) or 0 for f in layers(graph) if f.node in inner)
            if saved:
                found.append(Block(node, side, float(saved)))
    return found


def _behind(graph: ir.Graph, branch: ir.Value, add: ir.Node, skip: ir.Value) -> set[ir.Node]:
    """The nodes that nothing but `branch` at `add` needs, where some of them read `skip`; else none."""
    inner = {add}
    for node in reversed(list(graph)):
        uses = [use.node for value in node.outputs for use in value.uses()]
        kept = any(v.is_graph_output() or (v is skip) for v in node.outputs)
        if uses and not kept and all(u in inner for u in uses):
            inner.add(node)
    inner.discard(add)
    made = branch.producer()
    reads = any(v is skip for node in inner for v in node.inputs)
    return inner if made in inner and reads else set()


def choose(
    model: ir.Model, found: Sequence[Block], feeds: Sequence[Mapping[str, Array]], wanted: float
) -> list[Block]:
    """Blocks that save at least `wanted` operations: one after the other that which, gone with those before it,
    changes the outputs least for what it saves."""
    gated = Gates(model, found, feeds)
    chosen: list[Block] = []
    while sum(b.operations for b in chosen) < wanted:
        left = [b for b in found if b not in chosen]
        price = [gated.lost([*chosen, b]) / b.operations for b in left]
        chosen.append(left[int(np.argmin(price))])
    return chosen


class Gates:
    """`model` with a factor at the end of each block's branch, to try what the outputs are without it."""

    def __init__(self, model: ir.Model, found: Sequence[Block], feeds: Sequence[Mapping[str, Array]]) -> None:
        probe = model.clone()
        ends = {n.name: n for n in probe.graph}
        self._gates = {b.name: f"{b.name}~gate" for b in found}
        for block in found:
            add = ends[block.name]
            index = 1 - block.side
            gate = ir.val(self._gates[block.name], ir.DataType.FLOAT, ir.Shape([1]))
            scaled = ir.node("Mul", [add.inputs[index], gate], name=f"{block.name}~gated")
            scaled.outputs[0].name, scaled.outputs[0].dtype = f"{block.name}~gated", ir.DataType.FLOAT
            probe.graph.insert_before(add, scaled)
            add.replace_input_with(index, scaled.outputs[0])
            probe.graph.inputs.append(gate)
        session = open_session(to_bytes(probe), None, 2)
        if session is None:
            raise InvalidModelError("the model does not run in ONNX Runtime")
        self._session, self._feeds = session, tried(model, feeds)
        self._outputs = [v.name or "" for v in model.graph.outputs if v.dtype == ir.DataType.FLOAT]
        self._whole = self._run(())

    def _run(self, gone: Sequence[Block]) -> list[list[Array]]:
        closed = {b.name for b in gone}
        gates = {gate: np.full(1, float(n not in closed), np.float32) for n, gate in self._gates.items()}
        return [self._session.run(self._outputs, {**feed, **gates}) for feed in self._feeds]

    def lost(self, gone: Sequence[Block]) -> float:
        """Share of the variance of each float output that is lost without the blocks `gone`, summed over outputs."""
        return loss(self._run(gone), self._whole)
