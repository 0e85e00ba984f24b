"""Runs a graph piece by piece over several samples, so that a layer sees what the layers before it, as they are
by then, have made of the data.

Each piece is a model of its own in ONNX Runtime, optimizations off, in one thread; between pieces only the
values that nodes still to come will read are held.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from tapeout.compiler.errors import InvalidModelError
from tapeout.compiler.ir import graph as g
from tapeout.compiler.reference import open_session

Array = np.ndarray[Any, Any]


class Walk:
    """One walk through `model` from its inputs, with one environment of values for each of `feeds`.

    Constants, and what is computed from nothing else, are read when the piece with their reader runs: what lies
    behind the walk may no longer change, what lies before it may.
    """

    def __init__(self, model: ir.Model, feeds: Sequence[Mapping[str, Array]], threads: int = 2) -> None:
        self.model, self.threads = model, threads
        self.order = list(model.graph)
        self.position = {node: i for i, node in enumerate(self.order)}
        self.at = 0
        self.held: list[dict[str, Array]] = [dict(f) for f in feeds]
        self._fixed: dict[ir.Node, bool] = {}
        self._last = self._last_reads()
        self._functions = [ir.serde.serialize_function(f) for f in model.functions.values()]
        opsets = [onnx.helper.make_opsetid(d, v) for d, v in model.graph.opset_imports.items()]
        self._opsets = opsets or [onnx.helper.make_opsetid(d, v) for d, v in model.opset_imports.items()]

    def _last_reads(self) -> dict[str, int]:
        last: dict[str, int] = {}
        for i, node in enumerate(self.order):
            for value in reads(node):
                last[value.name or ""] = i
        return last

    def until(self, node: ir.Node) -> None:
        """Run everything that stands before `node`."""
        end = self.position[node]
        if end <= self.at:
            return
        piece, start = [n for n in self.order[self.at : end] if not self._is_fixed(n)], self.at
        piece = [*self._behind(piece), *piece]
        made = {v.name: v for n in piece for v in n.outputs if v.name}
        needed = {v.name or "": v for n in piece for v in reads(n) if v.name not in made}
        given = {k: v for k, v in needed.items() if not g.is_constant(v)}
        fixed = {v.name for n in piece if self._is_fixed(n) for v in n.outputs}
        kept = [k for k in made if k and k not in fixed and self._last.get(k, -1) >= end]
        if kept:
            session = self._open(piece, given, [v for v in needed.values() if g.is_constant(v)], kept)
            for values in self.held:
                results = session.run(kept, {k: values[k] for k in given})
                values.update(zip(kept, results, strict=True))
        for values in self.held:
            for name in [k for k in values if start <= self._last.get(k, -1) < end]:
                del values[name]
        self.at = end

    def _is_fixed(self, node: ir.Node) -> bool:
        """Whether `node` computes a constant."""
        known = self._fixed.get(node)
        if known is None:
            makers = [(v, v.producer()) for v in reads(node)]
            known = bool(makers) and all(
                g.is_constant(v) or (m is not None and self._is_fixed(m)) for v, m in makers
            )
            self._fixed[node] = known
        return known

    def _behind(self, piece: Iterable[ir.Node]) -> list[ir.Node]:
        """The nodes of constants that `piece` reads, in order; some may have been made after the walk began."""
        found: dict[ir.Node, None] = {}

        def visit(node: ir.Node) -> None:
            for value in reads(node):
                made = value.producer()
                if made is not None and made not in found and self._is_fixed(made):
                    visit(made)
                    found[made] = None

        for node in piece:
            visit(node)
        return list(found)

    def values(self, value: ir.Value) -> list[Array]:
        """What `value` holds in each sample; a node at or behind the walk's position reads it."""
        return [values[value.name or ""] for values in self.held]

    def known(self, value: ir.Value) -> bool:
        """Whether the walk holds `value` where it stands."""
        return bool(self.held) and (value.name or "") in self.held[0]

    def _open(
        self,
        piece: Iterable[ir.Node],
        given: Mapping[str, ir.Value],
        constants: Iterable[ir.Value],
        kept: Sequence[str],
    ) -> Any:
        made = onnx.GraphProto(name="piece")
        made.node.extend(ir.serde.serialize_node(n) for n in piece)
        for name, value in given.items():
            assert value.dtype is not None
            shape = [None] * value.shape.rank() if value.shape is not None else None
            made.input.append(onnx.helper.make_tensor_value_info(name, int(value.dtype), shape))
        for name in kept:
            made.output.add().name = name
        for value in constants:
            assert value.const_value is not None
            tensor = ir.serde.serialize_tensor(value.const_value)
            tensor.name = value.name or ""
            made.initializer.append(tensor)
        proto = onnx.helper.make_model(made, opset_imports=self._opsets, functions=self._functions)
        proto.ir_version = min(self.model.ir_version or 10, 13)
        session = open_session(proto.SerializeToString(), None, self.threads)
        if session is None:
            raise InvalidModelError("a part of the quantized model does not run in ONNX Runtime")
        return session


def reads(node: ir.Node) -> list[ir.Value]:
    """The values that `node` and its subgraphs read."""
    found = [v for v in node.inputs if v is not None]
    if g.has_subgraph(node):
        inner: set[ir.Value] = set()
        for attribute in node.attributes.values():
            for graph in _graphs(attribute):
                for each in (graph, *graph.subgraphs()):
                    own = {v for n in each for v in n.outputs} | set(each.inputs)
                    inner |= {v for n in each for v in n.inputs if v is not None and v not in own}
                    inner |= {v for v in each.outputs if v not in own}
        found += [v for v in inner if v.graph is node.graph]
    return found


def _graphs(attribute: ir.Attr) -> list[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else []
