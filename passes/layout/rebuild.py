"""Carry out an assignment: nodes read and make what their orders say, copies appear where they are read."""

from __future__ import annotations

import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.passes.layout.freedom import Edit, identity
from tapeout.passes.layout.operators import stored_weight, weight_axis
from tapeout.passes.layout.problem import Member, Mode, Problem, Use, inner_graphs
from tapeout.passes.layout.store import LAYOUT, Store, dims_of


class Rebuild:
    """One graph of `model`, rebuilt in place by `problem.modes`."""

    def __init__(self, model: ir.Model, problem: Problem) -> None:
        self.model, self.problem, self.graph = model, problem, problem.graph
        self.store = Store(problem.graph, problem.views)
        self.count = 0
        # The dimensions in the source's order, which values that are stored in another lose.
        self._dims = {u.value: dims_of(u.value) for m in problem.members.values() for u in m.uses}
        self._dims.update((u.value, dims_of(u.value)) for u in problem.outputs)
        # Outputs whose layout is not the source's, because the user asked for another.
        said = {v.name or "": v.metadata_props.get(LAYOUT) for v in problem.graph.outputs}
        self._asked = {name: text for name, text in said.items() if text is not None}

    def run(self) -> int:
        """Rebuild; returns the number of edits."""
        graph, problem = self.graph, self.problem
        outputs = list(graph.outputs)
        names = [v.name or "" for v in outputs]
        for use in (t.maker for t in problem.tensors.values()):
            if use is None or use.member is not None:
                continue
            self.store.add(use.view.root, use.form(None), use.view.root.value)
        for node in list(graph):
            if node in problem.views.aliases:
                self.store.passed.add(node)
            else:
                self._node(problem.members[node])
        ends = {id(u.value): u for u in problem.outputs}
        for i, (value, name) in enumerate(zip(outputs, names, strict=True)):
            if id(value) in ends:
                self._output(i, value, name, ends[id(value)])
        for node in reversed(list(problem.views.aliases)):
            if (
                node not in self.store.kept
                and node.graph is graph
                and not any(v.uses() or v.is_graph_output() for v in node.outputs)
            ):
                graph.remove(node, safe=True)
                self.count += 1
        for name in [n for n, v in graph.initializers.items() if not v.uses() and not v.is_graph_output()]:
            del graph.initializers[name]
        return self.count + self.store.count

    def _node(self, member: Member) -> None:
        node, mode = member.node, self.problem.modes[member]
        for use in member.uses:
            if not use.made:
                self._read(node, use, mode)
        operator = member.operator
        if mode is not None and operator is not None:
            if mode.rows is not None:
                source = next(u for u in member.uses if u.index == 0 and not u.made).view.form[-1]
                found = stored_weight(node)
                assert found is not None
                reader, weight = found
                rows = self.store.permuted_rows(weight, weight_axis(node), source, mode.rows)
                reader.replace_input_with(1 if reader is node else 0, rows)
                self.count += 1
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
                    self.store.rearrange(use.value, tuple(a for a in picked if a is not None))
                self.store.add(use.view.root, form, use.value)

    def _read(self, node: ir.Node, use: Use, mode: Mode | None) -> None:
        picked = None if mode is None or use.port is None else use.port.pick(mode.order)
        dims = self._dims[use.value]
        shape = dims if picked is None else tuple(1 if a is None else dims[a] for a in picked)
        value = self.store.get(use.view, use.value, use.form(mode), shape, node)
        if value is use.value:
            return
        self.count += 1
        if use.index >= 0:
            node.replace_input_with(use.index, value)
        else:
            _replace_captured(node, use.value, value)

    def _output(self, index: int, value: ir.Value, name: str, use: Use) -> None:
        new = self.store.get(use.view, value, use.form(None), self._dims[value], None)
        taken = any(v is new for i, v in enumerate(self.graph.outputs) if i != index)
        if new is value and not taken and new.name == name:
            return
        maker = new.producer()
        if taken or maker is None or maker.graph is not self.graph:
            if new is value:
                return
            new = self.store.make("Identity", [new], {}, self._dims[value], new, None, value)
        if value is not new:
            if value.name == name:
                value.name = g.fresh(self.graph, name)
            new.name = name
            new.metadata_props.pop(LAYOUT, None)
            if name in self._asked:
                new.metadata_props[LAYOUT] = self._asked[name]
        self.graph.outputs[index] = new
        self.count += 1


def _replace_captured(node: ir.Node, old: ir.Value, new: ir.Value) -> None:
    for each in inner_graphs(node):
        for n in each:
            for i, value in enumerate(n.inputs):
                if value is old:
                    n.replace_input_with(i, new)
        for i, value in enumerate(each.outputs):
            if value is old:
                each.outputs[i] = new
