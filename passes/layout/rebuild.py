"""Carry out an assignment: nodes read and make what their orders say, views go, copies appear where they are read.

Every stored tensor is found by its root and its form; what is not stored yet is made from what is, by a Reshape
where the sequence of atoms is the same, else by one Transpose (between Reshapes where an axis must be cut first).
A view of the source that comes out again keeps its name and, where nothing about it changed, its node.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.errors import InternalError
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.dimensions import Expr
from tapeout.compiler.ir.origin import origin, set_origin
from tapeout.passes.layout.assignment import Member, Mode, Problem, Use, captured
from tapeout.passes.layout.operators import Edit, Order, identity, weight_axis
from tapeout.passes.layout.views import Atom, Form, Group, Root, flat

LAYOUT = "tapeout.layout"
Dims = tuple[Any, ...]

# Constants up to this many elements are rearranged at once, larger ones when they are read.
SMALL = 1024


class Rebuild:
    """One graph of `model`, rebuilt in place by `problem.modes`. `count` is the number of edits."""

    def __init__(self, model: ir.Model, problem: Problem) -> None:
        self.model, self.problem, self.graph = model, problem, problem.graph
        self.count = 0
        self._stored: dict[Root, dict[Form, ir.Value]] = {}
        self._constants: dict[tuple[ir.Value, Form], ir.Value] = {}
        self._passed: set[ir.Node] = set()
        self._kept: set[ir.Node] = set()
        # Of each form that a view of the source has as it stands, that view.
        self._views: dict[tuple[Root, Form], ir.Value] = {}
        self._names: dict[ir.Value, str] = {}
        for node in problem.views.aliases:
            view = problem.views.of(node.outputs[0])
            assert view is not None
            self._views.setdefault((view.root, view.form), node.outputs[0])
            self._names[node.outputs[0]] = node.outputs[0].name or ""
        # The dimensions in the source's order, which values that are stored in another lose.
        self._dims = {u.value: _dims(u.value) for m in problem.members.values() for u in m.uses}
        self._dims.update((u.value, _dims(u.value)) for u in problem.outputs)
        self._taken = set(
            self._names.values()
        )  # names of the source that a view has, or that were given again

    def run(self) -> int:
        graph, problem = self.graph, self.problem
        outputs = list(graph.outputs)
        names = [v.name or "" for v in outputs]
        for use in (
            t.maker for t in problem.tensors.values() if t.maker is not None and t.maker.member is None
        ):
            self._store(use.view.root, use.form(None), use.view.root.value)
        for node in list(graph):
            if node in problem.views.aliases:
                self._passed.add(node)
            else:
                self._node(problem.members[node])
        ends = {id(u.value): u for u in problem.outputs}
        for i, (value, name) in enumerate(zip(outputs, names, strict=True)):
            if id(value) in ends:
                self._output(i, value, name, ends[id(value)])
        for node in reversed(list(problem.views.aliases)):
            if (
                node not in self._kept
                and node.graph is graph
                and not any(v.uses() or v.is_graph_output() for v in node.outputs)
            ):
                graph.remove(node, safe=True)
                self.count += 1
        for name in [n for n, v in graph.initializers.items() if not v.uses() and not v.is_graph_output()]:
            del graph.initializers[name]
        return self.count

    # --- nodes and outputs ---

    def _node(self, member: Member) -> None:
        node, mode = member.node, self.problem.modes[member]
        for use in member.uses:
            if not use.made:
                self._read(node, use, mode)
        operator = member.operator
        if mode is not None and operator is not None:
            if mode.rows is not None:
                self._permute_rows(node, member, mode.rows)
            if mode.order != identity(operator.rank):
                self.count += 1
                position = tuple(mode.order.index(a) for a in range(operator.rank))
                if operator.rewrite is not None:
                    operator.rewrite(node, Edit(self.model, self.graph, mode.order, position))
        for use in member.uses:
            if use.made:
                picked = None if mode is None or use.port is None else use.port.pick(mode.order)
                form = use.form(mode)
                if form != use.view.form:
                    assert picked is not None
                    self._rearranged(use.value, tuple(a for a in picked if a is not None))
                self._store(use.view.root, form, use.value)

    def _read(self, node: ir.Node, use: Use, mode: Mode | None) -> None:
        picked = None if mode is None or use.port is None else use.port.pick(mode.order)
        dims = self._dims[use.value]
        shape = dims if picked is None else tuple(1 if a is None else dims[a] for a in picked)
        value = self._get(use, use.form(mode), shape, node)
        if value is use.value:
            return
        self.count += 1
        if use.index >= 0:
            node.replace_input_with(use.index, value)
        else:
            _replace_captured(node, use.value, value)

    def _output(self, index: int, value: ir.Value, name: str, use: Use) -> None:
        new = self._get(use, use.form(None), self._dims[value], None)
        taken = any(v is new for i, v in enumerate(self.graph.outputs) if i != index)
        if new is value and not taken and new.name == name:
            return
        if taken or new.producer() is None or new.producer().graph is not self.graph:  # type: ignore[union-attr]
            if new is value:
                return
            new = self._make("Identity", [new], {}, self._dims[value], new, None, value)
        if value is not new:
            if value.name == name:
                value.name = g.fresh(self.graph, name)
            new.name = name
            new.metadata_props.pop(LAYOUT, None)
            new.metadata_props.update({k: v for k, v in value.metadata_props.items() if k == LAYOUT})
        self.graph.outputs[index] = new
        self.count += 1

    def _rearranged(self, value: ir.Value, perm: Order) -> None:
        """`value` is from now on stored as its transpose by `perm`."""
        assert value.shape is not None
        name = value.name or ""
        value.shape = ir.Shape([value.shape[a] for a in perm])
        value.name = g.fresh(self.graph, name or "value")
        self._note(value, name, value.metadata_props.get(LAYOUT), perm)

    def _permute_rows(self, node: ir.Node, member: Member, rows: Group) -> None:
        """Let the rows of the constant matrix follow the sequence in which the factors of its axis are stored."""
        weight = node.inputs[1]
        assert weight is not None and weight.const_value is not None
        source = next(u for u in member.uses if u.index == 0 and not u.made).view.form[-1]
        sizes = [int(a.size) for a in source]  # type: ignore[arg-type]
        perm = [source.index(a) for a in rows]
        shape = tuple(int(d) for d in weight.shape)  # type: ignore[union-attr, arg-type]
        axis = weight_axis(node)
        tensor = weight.const_value

        def make() -> np.ndarray[Any, Any]:
            split = tensor.numpy().reshape(*shape[:axis], *sizes, *shape[axis + 1 :])
            order = [*range(axis), *(axis + p for p in perm), *range(axis + len(perm), split.ndim)]
            return np.ascontiguousarray(split.transpose(order)).reshape(shape)

        key = (weight, (rows, (), source) if axis else (rows, source))
        if key not in self._constants:
            self._constants[key] = self._constant(shape, tensor, make, weight.name or "weight")
        node.replace_input_with(1, self._constants[key])
        self.count += 1

    def _note(self, value: ir.Value, name: str, before: str | None, perm: Order) -> None:
        """Record that `value` is the source tensor `name` (or what `before` says) transposed by `perm`."""
        if before is not None:
            name, _, text = before.rpartition(":")
            earlier = [int(i) for i in text.split(",")]
            perm = tuple(earlier[i] for i in perm)
        value.metadata_props.pop(LAYOUT, None)
        if not name or "~" in name:
            return
        if perm != identity(len(perm)):
            value.metadata_props[LAYOUT] = f"{name}:{','.join(map(str, perm))}"
        elif name not in self._taken:
            value.name = name
            self._taken.add(name)

    # --- stored tensors ---

    def _store(self, root: Root, form: Form, value: ir.Value) -> None:
        self._stored.setdefault(root, {})[form] = value

    def _get(self, use: Use, form: Form, shape: Dims, before: ir.Node | None) -> ir.Value:
        """The root of `use` in `form` (dimensions `shape`), made in front of `before` where not stored yet."""
        root = use.view.root
        if root.constant:
            return self._arranged_constant(use, form, shape)
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
            cut, dims = self._cut(source, _dims(known[source]), form, shape)
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
        dims = tuple(_dims(base)[i] for i in perm)
        value = self._view(root, base, target, dims, before)
        if value is None:
            view = self._views.get((root, target))
            value = self._make("Transpose", [base], {"perm": perm}, dims, base, before, view, origins)
            if view is None or value.name != self._names.get(view):
                self._note(value, base.name or "", base.metadata_props.get(LAYOUT), perm)
        self._store(root, target, value)
        near = next(f for f in known if f == target)
        return value if target == form else self._reshape(root, near, form, shape, before, origins)

    def _cut(self, source: Form, dims: Dims, form: Form, shape: Dims) -> tuple[Form, Dims]:
        """The stored form cut so that moving whole dimensions leads to `form`, or to what a Reshape makes into it."""
        sequence = flat(source)
        place = {atom: i for i, atom in enumerate(sequence)}
        if all(_contiguous([place[a] for a in group]) for group in form):
            # The dimensions wanted, in the order in which they are stored: then the Transpose is the last step.
            keys, after = [], -1.0
            for group in form:
                after = place[group[0]] if group else after + 0.001
                keys.append(after)
            order = sorted(range(len(form)), key=keys.__getitem__)
            return tuple(form[i] for i in order), tuple(shape[i] for i in order)
        place = {atom: i for i, atom in enumerate(flat(form))}
        if all(_contiguous([place[a] for a in group]) for group in source):
            return source, dims  # moves whole as it is
        runs: list[list[Atom]] = []
        for atom in sequence:
            last = runs[-1][-1] if runs else None
            if (
                last is not None
                and place[atom] == place[last] + 1
                and isinstance(atom.size, int)
                and isinstance(last.size, int)
            ):
                runs[-1].append(atom)
            else:
                runs.append([atom])
        sizes = (math.prod(a.size for a in r) if isinstance(r[0].size, int) else _size(r[0]) for r in runs)  # type: ignore[misc]
        return tuple(map(tuple, runs)), tuple(sizes)

    def _view(
        self, root: Root, base: ir.Value, form: Form, dims: Dims, before: ir.Node | None
    ) -> ir.Value | None:
        """The source's own node for this step, where it is there already and still says the right thing."""
        value = self._views.get((root, form))
        node = None if value is None else value.producer()
        if value is None or node is None or node.inputs[0] is not base or _dims(value) != dims:
            return None
        if base is root.value and self.problem.views.of(base).form not in self._stored[root]:  # type: ignore[union-attr]
            return None  # the node's input is stored in another order by now
        if before is not None and node not in self._passed:
            return None
        self._kept.add(node)
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
            value = self._make("Reshape", [base, target], attributes, shape, base, before, view, origins)
        self._store(root, form, value)
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
        """The shape operand of a Reshape from `near` to `form`: numbers, 0 where a free size stays in place, -1
        once; further free sizes are read off a stored tensor at run time."""
        plan: list[int | None] = []
        for i, (group, dim) in enumerate(zip(form, shape, strict=True)):
            if isinstance(dim, int):
                plan.append(dim)
            elif i < len(near) and near[i] == group:
                plan.append(0)
            else:
                plan.append(None)
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
                    self._plain("Shape", [value], {"start": axis, "end": axis + 1}, 1, before, origins)
                )
        return self._plain("Concat", pieces, {"axis": 0}, len(pieces), before, origins)

    # --- making things ---

    def _make(
        self, op: str, inputs: Sequence[ir.Value], attributes: dict[str, Any], dims: Dims, like: ir.Value,
        before: ir.Node | None, view: ir.Value | None, origins: tuple[str, ...] = (),
    ) -> ir.Value:  # fmt: skip
        """A node; its output takes over the name of `view`, the view of the source that it is."""
        maker = view.producer() if view is not None else None
        node = ir.node(op, list(inputs), attributes, name=g.fresh(self.graph, op.lower()))
        near = like.producer()
        set_origin(
            node,
            (origin(maker) if maker else ())
            or origins
            or (origin(near) if near else ())
            or (str(node.name),),
        )
        value = node.outputs[0]
        value.type, value.shape = like.type, ir.Shape(list(dims))
        if view is not None and view.name and "~" not in view.name and _dims(view) == tuple(dims):
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

    def _plain(
        self, op: str, inputs: Sequence[ir.Value], attributes: dict[str, Any], size: int, before: ir.Node | None,
        origins: tuple[str, ...],
    ) -> ir.Value:  # fmt: skip
        like = ir.Value(name=op.lower(), type=ir.TensorType(ir.DataType.INT64))
        return self._make(op, inputs, attributes, (size,), like, before, None, origins)

    def _arranged_constant(self, use: Use, form: Form, shape: Dims) -> ir.Value:
        root = use.view.root
        if form == use.view.form and use.value is root.value:
            return use.value
        key = (root.value, form)
        if key not in self._constants:
            tensor = root.value.const_value
            assert tensor is not None
            start = flat(self.problem.views.of(root.value).form)  # type: ignore[union-attr]
            sizes = [int(a.size) for a in start]  # type: ignore[arg-type]
            perm = [start.index(a) for a in flat(form)]
            final = tuple(int(d) for d in shape)

            def make() -> np.ndarray[Any, Any]:
                return np.ascontiguousarray(tensor.numpy().reshape(sizes).transpose(perm)).reshape(final)

            self._constants[key] = self._constant(final, tensor, make, root.value.name or "constant")
        return self._constants[key]

    def _constant(
        self,
        shape: tuple[int, ...],
        tensor: ir.TensorProtocol,
        make: Callable[[], np.ndarray[Any, Any]],
        hint: str,
    ) -> ir.Value:
        if math.prod(shape) <= SMALL:
            return g.add_constant(self.graph, ir.Tensor(make(), dtype=tensor.dtype, name=hint), hint)
        return g.add_lazy_constant(self.graph, shape, tensor.dtype, functools.partial(make), hint)


def _replace_captured(node: ir.Node, old: ir.Value, new: ir.Value) -> None:
    for a in node.attributes.values():
        subs = (
            (a.value,)
            if a.type == ir.AttributeType.GRAPH
            else a.value
            if a.type == ir.AttributeType.GRAPHS
            else ()
        )
        for sub in subs:
            for each in (sub, *sub.subgraphs()):
                for n in each:
                    for i, value in enumerate(n.inputs):
                        if value is old:
                            n.replace_input_with(i, new)
                for i, value in enumerate(each.outputs):
                    if value is old:
                        each.outputs[i] = new


def _contiguous(places: list[int]) -> bool:
    return all(b == a + 1 for a, b in zip(places, places[1:], strict=False))


def _dims(value: ir.Value) -> Dims:
    assert value.shape is not None
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)


def _size(atom: Atom) -> int | str:
    return str(atom.size) if isinstance(atom.size, Expr) else atom.size


def _key(group: Group) -> tuple[int, ...]:
    return tuple(id(a) for a in group)


__all__ = ["LAYOUT", "Rebuild", "captured"]
