"""From the protobuf form of a model to the IR, in one walk: graphs, interfaces, scopes, initializers."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir

from tapeout.compiler.errors import InvalidModelError, ResourceError
from tapeout.compiler.ir import convert, schemas
from tapeout.compiler.ir.functions import OPSET
from tapeout.compiler.ir.nodes import MARK, NodeMaker
from tapeout.compiler.ir.scopes import Scope, Sink, properties, text


class ModelBuilder(NodeMaker):
    """Makes the IR of one model."""

    def build(self) -> ir.Model:
        """The model, its nodes in opset 25. Raises InvalidModelError, UnsupportedError, ResourceError."""
        proto = self.proto
        if not proto.HasField("graph"):
            raise InvalidModelError(
                "the file holds no graph", hint="it may be damaged, or no ONNX model at all"
            )
        text(proto.producer_name, proto.producer_version, proto.domain, proto.doc_string)
        versions = schemas.imports(proto.opset_import, "the model")
        kept = {k: f for k, f in self.functions.items() if self.is_kept(f)}
        scope = Scope(Sink(), versions)
        graph = self._graph(proto.graph, scope, main=True)
        self._complain()
        domains = {n.domain for n in ir.traversal.RecursiveGraphIterator(graph)} - {""}
        graph.opset_imports.clear()
        graph.opset_imports.update({"": OPSET} | {d: versions.get(d, 1) for d in sorted(domains)})
        functions = [ir.serde.deserialize_function(f) for f in kept.values()]
        model = ir.Model(
            graph,
            ir_version=convert.IR_VERSION,
            producer_name=proto.producer_name or None,
            producer_version=proto.producer_version or None,
            domain=proto.domain or None,
            model_version=proto.model_version or None,
            doc_string=proto.doc_string or None,
            functions=functions,
            metadata_props={k: v for k, v in properties(proto.metadata_props).items() if k != MARK},
        )
        for function in functions:
            graph.opset_imports.setdefault(function.domain, 1)
        return model

    def _complain(self) -> None:
        if self.unknown:
            raise InvalidModelError(
                "the model has operators that are not known: " + "; ".join(self.unknown[:10]),
                hint="the model may need a newer version of ONNX, or its opset import is wrong",
            )
        if self.missing:
            raise InvalidModelError(
                "the model reads values that nothing makes: " + "; ".join(self.missing[:10])
            )
        for value, error in self.unreadable:
            if value.uses() or value.is_graph_output():
                raise error

    def _graph(self, proto: onnx.GraphProto, scope: Scope, main: bool = False) -> ir.Graph:
        if scope.depth > self.budget.depth:
            raise ResourceError(
                f"graphs and functions lie more than {self.budget.depth} deep within each other"
            )
        where = "" if main else f" of the subgraph '{proto.name}'"
        text(proto.name, proto.doc_string)
        for info in (*proto.input, *proto.output, *proto.value_info):
            text(info.name)
        text(*(t.name for t in proto.initializer), *(t.values.name for t in proto.sparse_initializer))
        tensors = {t.name: t for t in proto.initializer}
        sparse = {t.values.name: t for t in proto.sparse_initializer}
        if (
            len(tensors) + len(sparse) != len(proto.initializer) + len(proto.sparse_initializer)
            or tensors.keys() & sparse
        ):
            names = [t.name for t in proto.initializer] + [t.values.name for t in proto.sparse_initializer]
            raise InvalidModelError(f"initializers{where} with the same name: {_repeated(names)}")
        inputs = []
        for info in proto.input:
            if main and (info.name in tensors or info.name in sparse):
                continue  # A default that only the model itself can give is a constant.
            value = self.declare(info.name, scope, f"the input '{info.name}'{where}")
            self.types.state(value, info, f"the input '{info.name}'{where}", self.ours)
            if main and value.type is None:
                raise InvalidModelError(f"the input '{info.name}' has no type")
            inputs.append(value)
        for name, tensor in tensors.items():
            if name in scope.values:
                continue  # The input of a loop body is always given: a default of it is never read.
            value = self.declare(name, scope, f"the initializer '{name}'{where}")
            self.fill(value, self.tensors.tensor(tensor, f"initializer '{name}'"), scope.sink)
        for name, each in sparse.items():
            if name not in scope.values:
                value = self.declare(name, scope, f"the sparse initializer '{name}'{where}")
                self.fill(value, self.tensors.sparse(each, f"sparse initializer '{name}'"), scope.sink)
        self.statements(proto.node, scope, proto.value_info)
        outputs = [self._output(info, scope, where, main) for info in proto.output]
        if main and len({id(v) for v in outputs}) != len(outputs):
            raise InvalidModelError(
                f"graph outputs listed twice: {_repeated([o.name for o in proto.output])}"
            )
        return ir.Graph(
            inputs,
            outputs,
            nodes=scope.sink.nodes,
            initializers=scope.sink.initializers,
            name=proto.name or None,
            doc_string=proto.doc_string or None,
            metadata_props=properties(proto.metadata_props),
        )

    def _output(self, info: onnx.ValueInfoProto, scope: Scope, where: str, main: bool) -> ir.Value:
        value = scope.values.get(info.name)
        if value is None and not main and (outer := scope.find(info.name)) is not None:
            # Runtimes want a subgraph to make what it returns.
            value = self.new_value(info.name, scope)
            self.emit(
                "Identity",
                [outer],
                {},
                [value],
                scope,
                self.names.node(f"{scope.prefix}Identity"),
                scope.origin,
            )
        if value is None:
            self.missing.append(f"graph output '{info.name}'{where}")
            value = ir.Value(name=info.name)
        if value.const_value is None:
            self.types.state(value, info, f"the output '{info.name}'{where}", self.ours)
        return value

    def subgraph(self, proto: onnx.GraphProto, scope: Scope, node: str) -> ir.Graph:
        inner = Scope(
            Sink(),
            scope.versions,
            {},
            scope,
            scope.attributes,
            scope.prefix,
            scope.origin,
            scope.depth + 1,
            scope.calls,
        )
        graph = self._graph(proto, inner)
        graph.name = graph.name or node
        return graph


def _repeated(names: Sequence[str]) -> str:
    return ", ".join(sorted({f"'{n}'" for n in names if names.count(n) > 1})[:10])
