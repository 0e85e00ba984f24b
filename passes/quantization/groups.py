"""Scales for all tensors: those that must share one do, and where they cannot agree a requantize stands between.

Each place where a tensor is quantized (its maker's output, each reader's input) is a member. Members that a
row wants equal (`same_scale`) are one group from the start. Then each tensor's readers join its maker, from the
largest tensor down, unless that would make some tensor more than `requantize` times coarser than it has to be,
or would bring two fixed scales together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from tapeout.compiler.declaration import Slot
from tapeout.compiler.ir import graph as g
from tapeout.compiler.operators import storage
from tapeout.compiler.schemes import levels
from tapeout.passes.quantization.placement import Cluster
from tapeout.passes.quantization.ranges import Interval, Ranges


class Parameters(NamedTuple):
    """How a tensor is stored: its type, float32 scale and zero point."""

    dtype: ir.DataType
    scale: float
    zero: int


class Member(NamedTuple):
    """A place where a tensor is quantized: its maker's side where `reader` is None, else that reader's input."""

    value: ir.Value
    reader: ir.Node | None
    position: int = 0


@dataclass
class Group:
    """Members that share scale and zero point. `own` are the ranges that tensors have by themselves."""

    dtype: ir.DataType
    symmetric: bool
    members: list[Member] = field(default_factory=list)
    fixed: Parameters | None = None
    own: dict[ir.Value, Interval] = field(default_factory=dict)
    order: int = 0
    powers: bool = False  # its scale is a power of two

    def interval(self) -> Interval:
        if not self.own:
            return 0.0, 0.0
        return min(0.0, *(r[0] for r in self.own.values())), max(0.0, *(r[1] for r in self.own.values()))

    def parameters(self) -> Parameters:
        return self.fixed or parameters(self.interval(), self.dtype, self.symmetric, self.powers)


def parameters(interval: Interval, dtype: ir.DataType, symmetric: bool, powers: bool = False) -> Parameters:
    """The scale and zero point that cover `interval` and 0 with the levels of `dtype`.

    0 is exact. Asymmetric: scale = (high - low) / levels. Symmetric: the largest magnitude is the highest code.
    With `powers` the scale is the next power of two.
    """
    lowest, highest = levels(dtype)
    low, high = min(interval[0], 0.0), max(interval[1], 0.0)
    if symmetric:
        size = max(-low, high)
        return Parameters(dtype, _scale(size / highest, powers), 0)
    scale = _scale((high - low) / (highest - lowest), powers)
    zero = round(lowest - low / scale) if low < 0 else lowest
    return Parameters(dtype, scale, min(max(zero, lowest), highest))


def _scale(number: float, powers: bool) -> float:
    """A float32 that is no denormal; a tensor that is always 0 has scale 1."""
    if number <= 0 or not math.isfinite(number):
        return 1.0
    if powers:
        return 2.0 ** max(math.ceil(math.log2(number)), -100)
    return float(max(np.float32(number), np.float32(2.0**-100)))


# How far above its least a scale is put.
ABOVE = 1.01


class Groups:
    """The groups of a graph's clusters."""

    def __init__(self, clusters: Iterable[Cluster], ranges: Ranges, requantize: float) -> None:
        self._of: dict[Member, Group] = {}
        self._ranges, self._coarser = ranges, requantize
        self._redone: set[tuple[ir.Node, bool, int]] = set()
        clusters = list(clusters)
        self._clusters = {c.node: c for c in clusters}
        for cluster in clusters:
            self._add(cluster)
        self._join(clusters)
        for cluster in clusters:
            self._raise(cluster)

    def output(self, value: ir.Value) -> Parameters | None:
        """How the maker of `value` stores it; None where it makes floats."""
        group = self._of.get(Member(value, None))
        return None if group is None else group.parameters()

    def input(self, value: ir.Value, reader: ir.Node, index: int) -> Parameters:
        """How `reader` wants its input at a position stored."""
        return self._of[Member(value, reader, index)].parameters()

    # --- making them ---

    def kept(self, cluster: Cluster, slot: Slot) -> bool:
        """Whether the tensor of a slot stays stored as it arrived."""
        return slot.stored and (cluster.node, slot.output, slot.position) not in self._redone

    def _add(self, cluster: Cluster) -> None:
        slots = [s for s in cluster.slots if s.rule.role not in ("weight", "bias")]
        arrived = {s: self._arrived(cluster, s) for s in slots}
        anchor = self._anchor(cluster, [s for s in slots if s.port in cluster.row.same_scale], arrived)
        together: list[Group] = []
        for slot in slots:
            value = cluster.end(slot) if slot.output else slot.value
            member = Member(value, None) if slot.output else Member(value, cluster.node, slot.position)
            group = Group(slot.dtype, self._is_symmetric(cluster, slot), [member], order=len(self._of))
            group.powers = cluster.scheme.powers
            shared = slot.port in cluster.row.same_scale
            fixed = self._fixed(slot) or (anchor if shared else None)
            known = arrived[slot]
            if slot.stored and fixed is not None and fixed != known:
                self._redone.add((cluster.node, slot.output, slot.position))
            group.fixed = fixed or known
            if group.fixed is None:
                found = self._ranges.of(value, slot.dtype.bitwidth, cluster.scheme.symmetric)
                assert not isinstance(found, str)
                group.own[value] = found
            self._of[member] = group
            if shared:
                together.append(group)
        for other in together[1:]:
            if self._of[together[0].members[0]] is not (mine := self._of[other.members[0]]):
                self._merge(self._of[together[0].members[0]], mine)

    @staticmethod
    def _fixed(slot: Slot) -> Parameters | None:
        """The scale that the row gives."""
        if not isinstance(slot.rule.scale, float):
            return None
        return Parameters(slot.dtype, float(np.float32(slot.rule.scale)), slot.rule.zp or 0)

    @staticmethod
    def _arrived(cluster: Cluster, slot: Slot) -> Parameters | None:
        """The scale and zero point that the model came with."""
        if not slot.stored:
            return None
        known = storage(slot.value, output=slot.output, fuses=cluster.row.fuses)
        scale, zero = g.scalar(known.scale), 0 if known.zero_point is None else g.scalar(known.zero_point)
        if scale is None or zero is None or known.dtype is None:
            return None
        return Parameters(known.dtype, float(scale), int(zero))

    def _anchor(
        self, cluster: Cluster, slots: list[Slot], arrived: dict[Slot, Parameters | None]
    ) -> Parameters | None:
        """The scale that the slots which must agree take where the model's own differ.

        One tensor in: its own, for nothing of it may be cut off, and what comes out is on its levels. Several:
        that of the result, to which they will be rounded anyway.
        """
        known = [arrived[s] for s in slots if arrived[s] is not None]
        if not known:
            return None
        reads = [s for s in slots if not s.output]
        makes = [arrived[s] for s in slots if s.output and arrived[s] is not None]
        if len(reads) > 1 and makes:
            return makes[0]
        return next((arrived[s] for s in reads if arrived[s] is not None), known[0])

    @staticmethod
    def _is_symmetric(cluster: Cluster, slot: Slot) -> bool:
        return cluster.scheme.symmetric or bool(slot.rule.symmetric)

    def _raise(self, cluster: Cluster) -> None:
        """Give an output as large a scale as the kernel needs beside that of its input: a range that is wider to both
        sides."""
        for slot in cluster.slots:
            if slot.rule.scale_above is None or not slot.output:
                continue
            port, times = slot.rule.scale_above
            others = [s for s in cluster.slots if s.port == port and not s.output]
            mine = self._of[Member(cluster.end(slot), None)]
            for other in others:
                least = times * self.input(other.value, cluster.node, other.position).scale
                have = mine.parameters()
                if mine.fixed is None and have.scale <= least:
                    more = ABOVE * least / have.scale
                    mine.own = {v: (low * more, high * more) for v, (low, high) in mine.own.items()}
                    if mine.parameters().scale <= least:  # all 0
                        lowest, highest = levels(have.dtype)
                        mine.own[cluster.end(slot)] = 0.0, ABOVE * least * (highest - lowest)

    def _join(self, clusters: list[Cluster]) -> None:
        readers = [m for m in self._of if m.reader is not None]
        readers.sort(key=lambda m: -_size(m.value))  # stable: equal sizes in the order of the graph
        for member in readers:
            mine = self._of[member]
            made = self._of.get(Member(member.value, None))
            if made is None:  # floats are made: readers that want the same type may share one QuantizeLinear
                made = next(
                    (
                        self._of[m]
                        for m in readers
                        if m.value is member.value and self._of[m].dtype == mine.dtype
                    ),
                    mine,
                )
            integers = Member(member.value, None) in self._of
            if made is not mine and self._may_join(made, mine, member.value if integers else None):
                self._merge(made, mine)

    def _may_join(self, a: Group, b: Group, made: ir.Value | None) -> bool:
        """Whether `b`, of a reader, may take the scale of `a`; `made` is the tensor where `a` has integers of
        it already."""
        if a.dtype != b.dtype:
            return False
        if a.fixed is not None and b.fixed is not None:
            return a.fixed == b.fixed
        derived = frozenset[ir.Value]() if made is None else self._derived(made)
        merged = Group(a.dtype, a.symmetric or b.symmetric, fixed=a.fixed or b.fixed, own={**a.own, **b.own})
        merged.powers = a.powers or b.powers
        together = merged.parameters()
        lowest, highest = levels(together.dtype)
        low, high = (float(q - together.zero) * together.scale for q in (lowest, highest))
        step = together.scale / 2
        for group in (a, b):
            for value, interval in () if group.fixed is not None else group.own.items():
                held = a.fixed is not None and value in derived
                if not held and (interval[0] < low - step or interval[1] > high + step):
                    return False  # a fixed scale would cut it off
        for group, other in ((a, b), (b, a)):
            if group.fixed is not None or not group.own:
                continue
            # Finer levels bring nothing back to what has been rounded to coarse ones, and a tensor that
            # everybody in the other group reads loses nothing that they would not lose.
            if group is b and group.own.keys() <= derived:
                continue
            if group is a and made is not None and group.own.keys() <= {made} and self._only_for(a, other):
                continue
            if together.scale > self._coarser * group.parameters().scale:
                return False
        return True

    def _derived(self, value: ir.Value) -> frozenset[ir.Value]:
        """`value`, and what operators that keep its scale make of it alone."""
        found, queue = {value}, [value]
        while queue:
            for use in queue.pop().uses():
                cluster = self._clusters.get(use.node)
                if cluster is None or not cluster.row.same_scale:
                    continue
                ends = {cluster.end(s) for s in cluster.slots if s.output}
                reads = {s.value for s in cluster.slots if not s.output}
                if reads <= found and not ends <= found:
                    found |= ends
                    queue.extend(ends)
        return frozenset(found)

    def _only_for(self, group: Group, other: Group) -> bool:
        """Whether the tensors of `group` are read by members of `other` only."""
        readers = {(m.value, m.reader) for m in other.members if m.reader is not None}
        makers = [m.value for m in group.members if m.reader is None]
        if not makers or len(group.members) != len(makers):
            return False
        return all(not v.is_graph_output() and all((v, u.node) in readers for u in v.uses()) for v in makers)

    def _merge(self, a: Group, b: Group) -> None:
        """Let `a` take in `b`."""
        a.symmetric = a.symmetric or b.symmetric
        a.fixed = a.fixed or b.fixed
        a.own.update(b.own)
        a.members.extend(b.members)
        for member in b.members:
            self._of[member] = a


def _size(value: ir.Value) -> int:
    return math.prod(d if isinstance(d, int) else 1 for d in g.dims(value) or ())
