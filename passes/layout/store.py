"""The tensors of a graph in the forms in which they are stored, and how further forms are made from those.

A form that is not stored yet is made by a Reshape where the sequence of atoms is the same, else by one
Transpose, between Reshapes where an axis must be cut first. Where the source has a view in that form, its
name is taken over, and its node where nothing about it changed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.errors import InternalError
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.dimensions import Expr
from tapeout.compiler.ir.origin import origin, set_origin
from tapeout.passes.layout.freedom import Order, identity
from tapeout.passes.layout.views import Atom, Form, Group, Root, View, Views, flat

LAYOUT = "tapeout.layout"
Dims = tuple[Any, ...]

# Constants up to this many elements are rearranged at once, larger ones when they are read.
SMALL = 1024


class Store:
    """The stored tensors of `graph` while it is rebuilt. `count` is the number of nodes made; `kept` are the
    source's views that stay, `passed` those in front of where the rebuilding is."""

    def __init__(self, graph: ir.Graph, views: Views) -> None:
        self.graph, self.views = graph, views
        self.count = 0
        self.kept: set[ir.Node] = set()
        self.passed: set[ir.Node] = set()
        self._stored: dict[Root, dict[Form, ir.Value]] = {}
        self._constants: dict[tuple[ir.Value, Form], ir.Value] = {}
        self._views: dict[tuple[Root, Form], ir.Value] = {}  # what the source has as a view, by its form
        for node in views.aliases:
            view = views.of(node.outputs[0])
            assert view is not None
            self._views.setdefault((view.root, view.form), node.outputs[0])
        made = (v.name for node in graph for v in node.outputs)
        self._taken = {*made, *(v.name for v in graph.inputs), *graph.initializers}

    def add(self, root: Root, form: Form, value: ir.Value) -> None:
        """`value` holds the tensor `root` in `form`."""
        self._stored.setdefault(root, {})[form] = value

    def rearrange(self, value: ir.Value, perm: Order) -> None:
        """`value` is from now on its own transpose by `perm`, under a made name that says so."""
        assert value.shape is not None
        name = value.name or ""
        value.shape = ir.Shape([value.shape[a] for a in perm])
        value.name = g.fresh(self.graph, name or "value")
        self._taken.discard(name)
        self._note(value, name, value.metadata_props.get(LAYOUT), perm)

    def get(self, view: View, value: ir.Value, form: Form, shape: Dims, before: ir.Node | None) -> ir.Value:
        """The tensor that `value`, a `view`, shows, in `form` with dimensions `shape`: made in front of
        `before` (None: at the end) where it is not stored yet."""
        root = view.root
        if root.constant:
            return value if form == view.form and value is root.value else self._arranged(root, form, shape)
        known = self._stored[root]
        if form in known:
            return known[form]
        sequence = flat(form)
        origins = origin(before) if before is not None else ()
        same = [f for f in known if flat(f) == sequence]
        if same:
            near = next((f for f in same if len(f) == len(form)), same[0])
            return self._reshape(root, near, form, shape, before, origins)
        return self._transpose(root, form, shape, before, origins)

    def _transpose(
        self, root: Root, form: Form, shape: Dims, before: ir.Node | None, origins: tuple[str, ...]
    ) -> ir.Value:
        known = self._stored[root]
        source = next((f for f in known if sorted(map(_key, f)) == sorted(map(_key, form))), None)
        if source is None:
            source = next(iter(known))
            cut, dims = _cut(source, dims_of(known[source]), form, shape)
            if cut not in known:
                self._reshape(root, source, cut, dims, before, origins)
            source = cut
        target = form
        if sorted(map(_key, source)) != sorted(map(_key, form)):  # a Reshape follows
            place = {atom: i for i, atom in enumerate(flat(form))}
            target = tuple(sorted(source, key=lambda group: place[group[0]] if group else -1))
        spots: dict[Group, list[int]] = {}
        for i, group in enumerate(source):
            spots.setdefault(group, []).append(i)
        perm = tuple(spots[group].pop(0) for group in target)
        base = known[source]
        dims = tuple(dims_of(base)[i] for i in perm)
        value = self._view(root, base, target, dims, before)
        if value is None:
            view = self._views.get((root, target))
            value = self.make("Transpose", [base], {"perm": perm}, dims, base, before, view, origins)
            if "~" in (value.name or ""):
                self._note(value, base.name or "", base.metadata_props.get(LAYOUT), perm)
        self.add(root, target, value)
        near = next(f for f in known if f == target)
        return value if target == form else self._reshape(root, near, form, shape, before, origins)

    def _view(
        self, root: Root, base: ir.Value, form: Form, dims: Dims, before: ir.Node | None
    ) -> ir.Value | None:
        """The source's own node for this step, where it is there already and still says the right thing."""
        value = self._views.get((root, form))
        node = None if value is None else value.producer()
        if value is None or node is None or node.inputs[0] is not base or dims_of(value) != dims:
            return None
        source = self.views.of(root.value)
        if base is root.value and source is not None and self._stored[root].get(source.form) is not base:
            return None  # the node's input is stored in another order by now
        if before is not None and node not in self.passed:
            return None
        self.kept.add(node)
        return value

    def _reshape(
        self,
        root: Root,
        near: Form,
        form: Form,
        shape: Dims,
        before: ir.Node | None,
        origins: tuple[str, ...],
    ) -> ir.Value:
        base = self._stored[root][near]
        value = self._view(root, base, form, shape, before)
        if value is None:
            view = self._views.get((root, form))
            target = self._target(root, near, form, shape, before, origins)
            attributes = {"allowzero": 1} if 0 in shape and all(isinstance(d, int) for d in shape) else {}
            value = self.make("Reshape", [base, target], attributes, shape, base, before, view, origins)
        self.add(root, form, value)
        return value

    def _target(
        self,
        root: Root,
        near: Form,
        form: Form,
        shape: Dims,
        before: ir.Node | None,
        origins: tuple[str, ...],
    ) -> ir.Value:
        """The shape operand of a Reshape from `near` to `form`: numbers, 0 where a free size stays in place,
        -1 once; further free sizes are read off a stored tensor at run time."""
        plan = [
            dim if isinstance(dim, int) else 0 if i < len(near) and near[i] == group else None
            for i, (group, dim) in enumerate(zip(form, shape, strict=True))
        ]
        stored = self._stored[root]
        sources = [
            next(((v, f.index(form[i])) for f, v in stored.items() if form[i] in f), None)
            if p is None
            else None
            for i, p in enumerate(plan)
        ]
        unknown = [i for i, p in enumerate(plan) if p is None]
        free = next((i for i in unknown if sources[i] is None), unknown[0] if unknown else None)
        if free is not None:
            plan[free] = -1
        if None not in plan:
            return g.add_constant(self.graph, np.asarray(plan, np.int64), "shape")
        pieces: list[ir.Value] = []
        for p, found in zip(plan, sources, strict=True):
            if p is not None:
                pieces.append(g.add_constant(self.graph, np.asarray([p], np.int64), "size"))
            elif found is None:
                raise InternalError(
                    f"'{root.value.name}': two free sizes of {list(shape)} cannot be read off it"
                )
            else:
                value, axis = found
                pieces.append(
                    self._integers("Shape", [value], {"start": axis, "end": axis + 1}, 1, before, origins)
                )
        return self._integers("Concat", pieces, {"axis": 0}, len(pieces), before, origins)

    def _note(self, value: ir.Value, name: str, before: str | None, perm: Order) -> None:
        """Record that `value` is the tensor `name` (or what `before` says) transposed by `perm`: calibration
        knows made tensors by their names too."""
        if before is not None:
            name, _, text = before.rpartition(":")
            earlier = [int(i) for i in text.split(",")]
            perm = tuple(earlier[i] for i in perm)
        value.metadata_props.pop(LAYOUT, None)
        if not name:
            return
        if perm != identity(len(perm)):
            value.metadata_props[LAYOUT] = f"{name}:{','.join(map(str, perm))}"
        elif "~" not in name and name not in self._taken:
            value.name = name
            self._taken.add(name)

    # --- making things ---

    def make(
        self, op: str, inputs: Sequence[ir.Value], attributes: dict[str, Any], dims: Dims, like: ir.Value,
        before: ir.Node | None, view: ir.Value | None, origins: tuple[str, ...] = (),
    ) -> ir.Value:  # fmt: skip
        """A node; its output takes over the name of `view`, the view of the source that it is."""
        maker, near = view.producer() if view is not None else None, like.producer()
        node = ir.node(op, list(inputs), attributes, name=g.fresh(self.graph, op.lower()))
        names = (origin(maker) if maker else ()) or origins or (origin(near) if near else ())
        set_origin(node, names or (node.name or "",))
        value = node.outputs[0]
        value.type, value.shape = like.type, ir.Shape(list(dims))
        if view is not None and view.name and "~" not in view.name and dims_of(view) == tuple(dims):
            name, view.name = view.name, g.fresh(self.graph, view.name)
            value.name = name
            value.metadata_props.update({k: v for k, v in view.metadata_props.items() if k == LAYOUT})
        else:
            value.name = g.fresh(self.graph, like.name or op.lower())
        if before is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(before, node)
        self.count += 1
        return value

    def _integers(
        self, op: str, inputs: Sequence[ir.Value], attributes: dict[str, Any], size: int,
        before: ir.Node | None, origins: tuple[str, ...],
    ) -> ir.Value:  # fmt: skip
        like = ir.Value(name=op.lower(), type=ir.TensorType(ir.DataType.INT64))
        return self.make(op, inputs, attributes, (size,), like, before, None, origins)

    def _arranged(self, root: Root, form: Form, shape: Dims) -> ir.Value:
        """The constant `root` in `form`."""
        key = (root.value, form)
        if key not in self._constants:
            tensor, view = root.value.const_value, self.views.of(root.value)
            assert tensor is not None and view is not None
            start = flat(view.form)
            sizes, perm = _sizes(start), [start.index(a) for a in flat(form)]
            final = tuple(int(d) for d in shape)

            def make() -> np.ndarray[Any, Any]:
                return np.ascontiguousarray(tensor.numpy().reshape(sizes).transpose(perm)).reshape(final)

            self._constants[key] = self._constant(final, tensor.dtype, make, root.value.name or "constant")
        return self._constants[key]

    def permuted_rows(self, weight: ir.Value, axis: int, source: Group, rows: Group) -> ir.Value:
        """The constant matrix `weight`, the factors `source` of its `axis` in the sequence `rows`."""
        key = (weight, (*((),) * axis, source, rows))
        if key not in self._constants:
            tensor, shape = weight.const_value, g.static_dims(weight)
            assert tensor is not None and shape is not None
            sizes, perm = _sizes(source), [axis + source.index(a) for a in rows]

            def make() -> np.ndarray[Any, Any]:
                split = tensor.numpy().reshape(*shape[:axis], *sizes, *shape[axis + 1 :])
                order = [*range(axis), *perm, *range(axis + len(perm), split.ndim)]
                return np.ascontiguousarray(split.transpose(order)).reshape(shape)

            self._constants[key] = self._constant(shape, tensor.dtype, make, weight.name or "weight")
        return self._constants[key]

    def _constant(
        self, shape: tuple[int, ...], dtype: ir.DataType, make: Callable[[], np.ndarray[Any, Any]], hint: str
    ) -> ir.Value:
        if math.prod(shape) <= SMALL:
            return g.add_constant(self.graph, ir.Tensor(make(), dtype=dtype, name=hint), hint)
        return g.add_lazy_constant(self.graph, shape, dtype, make, hint)


def _cut(source: Form, dims: Dims, form: Form, shape: Dims) -> tuple[Form, Dims]:
    """`source` cut so that moving whole dimensions leads to `form`, or to what a Reshape turns into it."""
    sequence = flat(source)
    place = {atom: i for i, atom in enumerate(sequence)}
    if all(_contiguous([place[a] for a in group]) for group in form):
        # The dimensions wanted, in the order in which they are stored: then the Transpose is the last step.
        keys: list[tuple[int, int]] = []
        for i, group in enumerate(form):
            keys.append((place[group[0]], -1) if group else (keys[-1][0] if keys else -1, i))
        order = sorted(range(len(form)), key=keys.__getitem__)
        return tuple(form[i] for i in order), tuple(shape[i] for i in order)
    place = {atom: i for i, atom in enumerate(flat(form))}
    if all(_contiguous([place[a] for a in group]) for group in source):
        return source, dims  # moves whole as it is
    runs: list[list[Atom]] = [[sequence[0]]]
    for last, atom in itertools.pairwise(sequence):
        if (
            place[atom] == place[last] + 1
            and not isinstance(atom.size, Expr)
            and not isinstance(last.size, Expr)
        ):
            runs[-1].append(atom)
        else:
            runs.append([atom])
    return tuple(map(tuple, runs)), tuple(_product(r) for r in runs)


def _product(run: Sequence[Atom]) -> int | str:
    """The size of a dimension that holds `run`: a product of numbers, or one free size."""
    first = run[0].size
    return str(first) if isinstance(first, Expr) else math.prod(_sizes(run))


def _sizes(group: Sequence[Atom]) -> list[int]:
    return [a.size for a in group if not isinstance(a.size, Expr)]


def _contiguous(places: list[int]) -> bool:
    return all(b == a + 1 for a, b in itertools.pairwise(places))


def dims_of(value: ir.Value) -> Dims:
    """The dimensions as a new shape takes them."""
    assert value.shape is not None
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)


def _key(group: Group) -> tuple[int, ...]:
    return tuple(id(a) for a in group)
