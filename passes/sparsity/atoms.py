"""Which elements of which axes stand or fall together: channels seen as atoms in a union-find.

Each axis of a tensor that may shrink is an array of atoms, one for each of its elements. Operators that need two
elements to stay or go together unite their atoms; what an operator needs whole is pinned, with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g

Atoms: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
Axes: TypeAlias = "list[Atoms | None]"


@dataclass
class Ties:
    """What has been found so far. `weights` tells the atoms of each axis of each constant that would be cut,
    `shapes` which numbers of which constant inputs count atoms."""

    values: dict[ir.Value, Axes] = field(default_factory=dict)
    weights: dict[tuple[ir.Value, int], Atoms] = field(default_factory=dict)
    shapes: list[tuple[ir.Node, int, int, Atoms]] = field(
        default_factory=list
    )  # node, input, position, atoms
    groups: list[tuple[ir.Node, Atoms]] = field(
        default_factory=list
    )  # grouped convolutions: an atom each group
    reasons: dict[int, str] = field(default_factory=dict)  # of pinned roots
    whole: dict[ir.Value, str] = field(default_factory=dict)  # constants that some operator needs as they are
    _parent: list[int] = field(default_factory=list)

    def fresh(self, count: int) -> Atoms:
        """`count` atoms that nothing ties yet."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count, dtype=np.int64)

    def root(self, atom: int) -> int:
        """The atom that stands for all that are tied to `atom`."""
        parent = self._parent
        while parent[atom] != atom:
            parent[atom] = parent[parent[atom]]
            atom = parent[atom]
        return atom

    def roots(self, atoms: Atoms) -> Atoms:
        """`root` of each."""
        return np.array([self.root(int(a)) for a in atoms], np.int64)

    def tie(self, left: Atoms | None, right: Atoms | None, reason: str) -> Atoms | None:
        """Unite two axes element by element; one that nothing is known of pins the other."""
        if left is None or right is None or len(left) != len(right):
            self.pin(left, reason)
            self.pin(right, reason)
            return None
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            self._unite(a, b)
        return left

    def together(self, atoms: Atoms) -> None:
        """Unite all of `atoms`."""
        for atom in atoms[1:].tolist():
            self._unite(int(atoms[0]), atom)

    def _unite(self, left: int, right: int) -> None:
        a, b = self.root(left), self.root(right)
        if a == b:
            return
        self._parent[b] = a
        if b in self.reasons:
            self.reasons.setdefault(a, self.reasons.pop(b))

    def pin(self, atoms: Atoms | None, reason: str) -> None:
        """Keep all of `atoms`, for `reason`."""
        for atom in () if atoms is None else atoms.tolist():
            self.reasons.setdefault(self.root(atom), reason)

    def axes(self, value: ir.Value | None) -> Axes:
        """The atoms of each axis of `value`; a constant gets new ones, which cutting it would follow."""
        if value is None:
            return []
        if value in self.values:
            return self.values[value]
        shape = g.dims(value) or ()
        if not g.is_constant(value):
            return [None] * len(shape)
        return [self.weight(value, axis) for axis in range(len(shape))]

    def weight(self, value: ir.Value, axis: int) -> Atoms | None:
        """The atoms of one axis of a constant; None where it has one element only."""
        shape = g.static_dims(value)
        assert shape is not None
        if shape[axis] == 1:
            return None
        if (value, axis) not in self.weights:
            self.weights[value, axis] = self.fresh(shape[axis])
            if value in self.whole:
                self.pin(self.weights[value, axis], self.whole[value])
        return self.weights[value, axis]

    def keep(self, value: ir.Value, reason: str) -> None:
        """Pin every axis of `value`."""
        if g.is_constant(value):
            self.whole.setdefault(value, reason)
            for (held, _), atoms in self.weights.items():
                if held is value:
                    self.pin(atoms, reason)
        for each in self.values.get(value, ()):
            self.pin(each, reason)

    def put(self, value: ir.Value, axes: Sequence[Atoms | None]) -> None:
        """State the atoms of a result."""
        self.values[value] = list(axes)
