"""Which tensors are only views of another: Transpose, Reshape, Squeeze, Unsqueeze and Flatten move no
meaning.

    x: [N, C, H, W] -> Reshape [N, g, c, H, W] -> Transpose(0, 2, 1, 3, 4) -> Reshape [N, C, H, W]

All of these hold the same *atoms* N, g, c, H, W (a Reshape splits axes into factors) in some sequence. A
*form* is how a stored tensor arranges them: one tuple of atoms per stored dimension. Two forms with the same
flat sequence differ by a Reshape, which moves no bytes; otherwise one Transpose leads from one to the other.
Atoms of size 1 do not exist, so what only moves them is a Reshape. Nothing is compared by size: equal H, W
and C stay apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.dimensions import Dim, Expr, bind, exact_divide, parse, symbol, symbols

VIEWS = frozenset({"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten"})

# What a free dimension counts as where bytes decide.
NOMINAL = 16


class Atom:
    """A factor of an axis. `parts` are its own factors once a Reshape has split it."""

    __slots__ = ("parts", "size")

    def __init__(self, size: Dim) -> None:
        self.size = size
        self.parts: tuple[Atom, ...] = ()

    def leaves(self) -> tuple[Atom, ...]:
        if not self.parts:
            return (self,)
        return tuple(leaf for part in self.parts for leaf in part.leaves())


Group = tuple[Atom, ...]
Form = tuple[Group, ...]


class Root:
    """A tensor that is no view of another; everything that is a view of it shares its atoms."""

    __slots__ = ("bytes", "constant", "value")

    def __init__(self, value: ir.Value, size: int) -> None:
        self.value = value
        self.bytes = size
        self.constant = g.is_constant(value)


class View:
    """How a value arranges the atoms of its root: one group per axis, in the value's own order."""

    __slots__ = ("_axes", "_frozen", "root")

    def __init__(self, root: Root, axes: Sequence[Group]) -> None:
        self.root = root
        self._axes = tuple(axes)
        self._frozen: Form | None = None

    def axes(self) -> Form:
        """The groups as they are split so far."""
        return tuple(tuple(leaf for atom in axis for leaf in atom.leaves()) for axis in self._axes)

    @property
    def form(self) -> Form:
        """The groups once all views of the graph are known."""
        if self._frozen is None:
            self._frozen = self.axes()
        return self._frozen


def flat(form: Form) -> Group:
    """The sequence of atoms in memory."""
    return tuple(atom for group in form for atom in group)


def size_of(value: ir.Value) -> int:
    """Bytes of a tensor, free dimensions counted as NOMINAL; 1 at least."""
    total = 1
    for dim in g.dims(value) or ():
        total *= dim if isinstance(dim, int) else _nominal(dim)
    bits = value.dtype.bitwidth if value.dtype is not None and value.dtype != ir.DataType.STRING else 64
    return max(1, total * bits // 8)


def _nominal(dim: str) -> int:
    parsed = parse(dim)
    return max(1, bind(parsed, dict.fromkeys(symbols(parsed), NOMINAL)))


class Views:
    """The views of one graph: `of(value)`, and the nodes in `aliases`, which only make views."""

    def __init__(self, graph: ir.Graph) -> None:
        self.roots: list[Root] = []
        self.aliases: dict[ir.Node, ir.Value] = {}  # node -> what it is a view of
        self._views: dict[ir.Value, View | None] = {}
        for node in graph:
            if node.op_type in VIEWS and node.domain == "":
                self._alias(node)

    def of(self, value: ir.Value) -> View | None:
        """The view that `value` is, of itself at least; None where its rank is unknown."""
        if value not in self._views:
            dims = _sizes(value)
            if dims is None:
                self._views[value] = None
            else:
                root = Root(value, size_of(value))
                self.roots.append(root)
                self._views[value] = View(root, [() if _one(d) else (Atom(d),) for d in dims])
        return self._views[value]

    def _alias(self, node: ir.Node) -> None:
        value, made = node.inputs[0], node.outputs[0]
        source = None if value is None else self.of(value)
        if value is None or source is None or made.shape is None:
            return
        axes: Sequence[Group] | None
        if node.op_type == "Transpose":
            form = source.axes()
            perm = g.attribute(node, "perm") or tuple(range(len(form)))[::-1]
            axes = [form[i] for i in perm]
        else:
            axes = self._split(source, made)
        if axes is not None:
            self._views[made] = View(source.root, axes)
            self.aliases[node] = value

    def _split(self, source: View, made: ir.Value) -> list[Group] | None:
        """The axes of a Reshape's result over the source's atoms, splitting them where needed; None where an
        axis joins part of one atom with part of another, or where sizes are too little known."""
        dims = _sizes(made)
        if dims is None:
            return None
        split: list[Atom] = []
        axes = _match(list(flat(source.axes())), dims, split)
        if axes is not None:
            # A Reshape is written with one unknown at most: other free axes must be read off the root.
            whole = set(self._views[source.root.value].axes())  # type: ignore[union-attr]
            own = [leaves(a) for a, d in zip(axes, dims, strict=True) if isinstance(d, Expr)]
            if sum(group not in whole for group in own) <= 1:
                return axes
        for atom in split:
            atom.parts = ()
        return None


def leaves(group: Group) -> Group:
    return tuple(leaf for atom in group for leaf in atom.leaves())


def _sizes(value: ir.Value) -> list[Dim] | None:
    dims = g.dims(value)
    if dims is None:
        return None
    # A dimension of which nothing is known is a symbol of its own.
    return [
        d if isinstance(d, int) else symbol(f"{value.name}?{i}") if d == "?" else parse(d)
        for i, d in enumerate(dims)
    ]


def _one(size: Dim) -> bool:
    return isinstance(size, int) and size == 1


def _match(atoms: list[Atom], dims: Sequence[Dim], split: list[Atom]) -> list[Group] | None:
    """Cut the sequence `atoms` into one group per dimension; atoms that had to be split are put into
    `split`."""
    if any(isinstance(d, int) and d == 0 for d in (*dims, *(a.size for a in atoms))):
        return None
    first, last = 0, len(dims)
    front: list[Group] = []
    back: list[Group] = []
    while first < last:
        group = _take(atoms, dims[first], split, at_end=False)
        if group is None:
            break
        front.append(group)
        first += 1
    while first < last:
        group = _take(atoms, dims[last - 1], split, at_end=True)
        if group is None:
            break
        back.append(group)
        last -= 1
    if first == last:
        return front + back[::-1] if not atoms else None
    known = all(isinstance(a.size, int) for a in atoms)
    if known != all(isinstance(d, int) for d in dims[first:last]):
        return None  # a free size that a Reshape fixes, or the reverse
    if last - first == 1 and atoms:  # one dimension is left for all the rest, whatever its size is called
        return [*front, tuple(atoms), *back[::-1]]
    if len(atoms) == 1:  # one atom is left for several dimensions
        (atom,) = atoms
        middle = [() if _one(d) else (Atom(d),) for d in dims[first:last]]
        atom.parts = flat(tuple(middle))
        if not atom.parts:
            return None
        split.append(atom)
        return [*front, *middle, *back[::-1]]
    return None


def _take(atoms: list[Atom], dim: Dim, split: list[Atom], *, at_end: bool) -> Group | None:
    """Take atoms whose product is `dim` off one end of `atoms`; None (nothing taken) where they do not
    fit."""
    group: list[Atom] = []
    rest, need = list(atoms), dim
    cut: tuple[Atom, Dim] | None = None
    while not _one(need):
        if not rest:
            return None
        atom = rest.pop(-1 if at_end else 0)
        left = exact_divide(need, atom.size)
        if left is None:
            other = exact_divide(atom.size, need)
            if other is None:
                return None
            cut = (atom, other)
            break
        group.append(atom)
        need = left
    if cut is not None:
        atom, other = cut
        taken, kept = Atom(need), Atom(other)
        atom.parts = (kept, taken) if at_end else (taken, kept)
        split.append(atom)
        group.append(taken)
        if at_end:
            rest.append(kept)
        else:
            rest.insert(0, kept)
    atoms[:] = rest
    return tuple(reversed(group)) if at_end else tuple(group)
