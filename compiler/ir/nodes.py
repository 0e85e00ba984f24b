"""From nodes of a model file to nodes of the IR: attributes, constants, calls inlined, operators modernized.

A node is a `Draft` until `convert.modernize` has brought it from its own opset to the canonical one; a call
of a model-local function, or of an operator that only its body defines, becomes the nodes of that body.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from tapeout.compiler.errors import InvalidModelError, ResourceError, UnsupportedError
from tapeout.compiler.ir import convert, schemas
from tapeout.compiler.ir.budget import Budget
from tapeout.compiler.ir.control import CONTROL, check_control
from tapeout.compiler.ir.functions import DOMAIN, OPSET
from tapeout.compiler.ir.newer import newer
from tapeout.compiler.ir.origin import KEY, set_origin
from tapeout.compiler.ir.scopes import FunctionKey, Names, Scope, Sink, properties, text
from tapeout.compiler.ir.tensors import TensorReader
from tapeout.compiler.ir.value_types import Types, last_line

# In the metadata of files that `save` writes: functions and origins in them are ours and are kept.
MARK = "tapeout.ir"
_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


class NodeMaker(ABC):
    """Makes nodes into the sinks of scopes. Faults that can be listed together are collected in `missing`
    (values that nothing makes), `unknown` (operators that ONNX does not define) and `unreadable`."""

    def __init__(self, proto: onnx.ModelProto, tensors: TensorReader, budget: Budget) -> None:
        self.proto = proto
        self.tensors = tensors
        self.budget = budget
        self.names = Names(budget)
        self.types = Types(budget, self.names)
        self.ours = any(p.key == MARK for p in proto.metadata_props)
        for each in proto.functions:
            text(each.name, each.domain, each.overload, *each.input, *each.output)
        self.functions = {(schemas.domain(f.domain), f.name, f.overload): f for f in proto.functions}
        self.missing: list[str] = []
        self.unknown: list[str] = []
        self.unreadable: list[tuple[ir.Value, UnsupportedError]] = []
        self.count = 0

    @abstractmethod
    def subgraph(self, proto: onnx.GraphProto, scope: Scope, node: str) -> ir.Graph:
        """The graph that the node named `node` carries."""

    def is_kept(self, function: onnx.FunctionProto) -> bool:
        """Our own functions stay calls: their bodies are specifications, not code to be optimized."""
        if not (self.ours or schemas.domain(function.domain) == DOMAIN):
            return False
        return schemas.imports(function.opset_import, f"function '{function.name}'").get("", OPSET) == OPSET

    def declare(self, name: str, scope: Scope, what: str) -> ir.Value:
        """A new value called `name` in `scope`, which must not have one."""
        if not name:
            raise InvalidModelError(f"{what} has no name")
        if name in scope.values:
            raise InvalidModelError(f"the name '{name}' is given to two values: {what} and one before it")
        return self.new_value(name, scope)

    def new_value(self, name: str, scope: Scope) -> ir.Value:
        value = ir.Value(name=self.names.value(scope.prefix + name))
        scope.values[name] = value
        return value

    def fill(self, value: ir.Value, tensor: ir.TensorProtocol, sink: Sink) -> None:
        tensor.name = value.name
        value.const_value = tensor
        value.type = ir.TensorType(tensor.dtype)
        value.shape = ir.Shape(tuple(tensor.shape.numpy()))
        sink.initializers.append(value)

    def statements(
        self, nodes: Sequence[onnx.NodeProto], scope: Scope, infos: Iterable[onnx.ValueInfoProto] = ()
    ) -> None:
        """Make the nodes of a graph or body: first all outputs (the order may be wrong), then the nodes."""
        self.count += len(nodes)
        if self.count > self.budget.nodes:
            raise ResourceError(f"the model has more than {self.budget.nodes} nodes, functions inlined")
        for index, proto in enumerate(nodes):
            text(proto.name, *proto.input, *proto.output)
            for name in proto.output:
                if name in scope.given:
                    scope.given.discard(name)  # a caller's value, which this node now makes
                elif name:
                    self.declare(name, scope, f"an output of {_label(proto, index)}")
        for info in infos:
            value = scope.values.get(info.name)
            if value is None or value.const_value is not None:
                continue
            if self.ours:
                self.types.state(value, info, f"the value '{info.name}'", self.ours)
            else:
                self.types.stated[value] = info
        # Names that the source gives win over names made here.
        names: dict[int, tuple[str, str]] = {}
        for index in sorted(range(len(nodes)), key=lambda i: not nodes[i].name):
            given = nodes[index].name
            source = scope.prefix + (given or f"{nodes[index].op_type}_{index}")
            names[index] = self.names.node(source, index if given else None), source
        for index, proto in enumerate(nodes):
            self._node(proto, index, scope, *names[index])

    def _node(self, proto: onnx.NodeProto, index: int, scope: Scope, name: str, source: str) -> None:
        text(proto.op_type, proto.domain, proto.overload, proto.doc_string)
        domain = schemas.domain(proto.domain)
        label = f"{proto.op_type} '{source}'"
        inputs: list[ir.Value | None] = []
        for read in proto.input:
            value = scope.find(read) if read else None
            if read and value is None:
                self.missing.append(f"{label} reads '{read}'")
            inputs.append(value)
        while inputs and inputs[-1] is None and proto.op_type not in CONTROL:
            inputs.pop()
        outputs = [scope.values[n] if n else ir.Value(name="") for n in proto.output]
        attributes = self._attributes(proto, scope)
        origin = scope.origin or source
        key = (domain, proto.op_type, proto.overload)
        function = self.functions.get(key)
        if function is not None and not self.is_kept(function):
            defaults = {a.name: a for a in function.attribute_proto}
            self._inline(function, key, inputs, outputs, defaults | attributes, scope, name, None)
            return
        if domain == "" and function is None:
            version = scope.versions.get("")
            if version is None:
                raise InvalidModelError(f"the model imports no opset for {label}")
            schema, reason = schemas.find(proto.op_type, version)
            if schema is None:
                self.unknown.append(f"{label}: {reason}")
                return
            schemas.check(schema, proto, attributes, label)
            if proto.op_type == "Constant":
                self._constant_node(attributes, outputs, scope.sink, label)
                return
            draft = convert.Draft(
                proto.op_type,
                inputs,
                {},
                outputs,
                schema.since_version,
                label,
                self.types.dtype,
                self.types.rank,
            )
            if schema.since_version > OPSET:
                body = newer(draft, schema, attributes, version, proto, self.types.serialized)
                if body is not None:
                    defaults = {
                        n: a.default_value for n, a in schema.attributes.items() if a.default_value.name
                    }
                    self._inline(body, key, inputs, outputs, defaults | attributes, scope, name, origin)
                    return
        else:
            draft = convert.Draft(
                proto.op_type, inputs, {}, outputs, 0, label, self.types.dtype, self.types.rank
            )
        for attribute in attributes.values():
            draft.attributes[attribute.name] = self._attribute(attribute, scope, name, label)
        if domain and any(a.type in _GRAPHS for a in attributes.values()):
            fix = "export the model with the operator written out in those of the standard domain"
            raise UnsupportedError(
                f"{label} of domain '{domain}' carries graphs, whose inputs only that domain defines",
                hint=fix,
                nodes=[source],
                violations=[{"what": "domain", "expected": "the standard one", "found": domain, "fix": fix}],
            )
        if draft.version:
            convert.modernize(draft)
            self.unreadable += draft.unreadable
            if draft.op_type in CONTROL:
                check_control(draft)
        self._finish(draft, proto, domain, scope, name, origin)

    def _finish(
        self, draft: convert.Draft, proto: onnx.NodeProto, domain: str, scope: Scope, name: str, origin: str
    ) -> None:
        """Emit what a draft has become: nodes before it, itself, nodes after it."""
        for array, value in draft.constants:
            value.name = self.names.fresh(draft.op_type.lower())
            self.fill(value, ir.tensor(array, name=value.name), scope.sink)
        for step in draft.before:
            self._step(step, scope, origin)
        node = self.emit(
            draft.op_type, draft.inputs, draft.attributes, draft.outputs, scope, name, origin, domain
        )
        node.overload = proto.overload
        node.doc_string = proto.doc_string or None
        props = properties(proto.metadata_props)
        recorded = props.pop(KEY, None)
        node.metadata_props.update(props)
        if self.ours and recorded:
            node.metadata_props[KEY] = recorded
        for step in draft.after:
            self._step(step, scope, origin)

    def _step(self, step: convert.Step, scope: Scope, origin: str) -> None:
        for value in step.outputs:
            if value.name is None:
                value.name = self.names.fresh(step.op_type.lower())
        name = self.names.node(self.names.fresh(step.op_type.lower()))
        attributes = {k: ir.convenience.convert_attribute(k, v) for k, v in step.attributes.items()}
        self.emit(step.op_type, step.inputs, attributes, step.outputs, scope, name, origin)

    def emit(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, ir.Attr],
        outputs: Sequence[ir.Value],
        scope: Scope,
        name: str,
        origin: str | None,
        domain: str = "",
    ) -> ir.Node:
        for value in outputs:
            if value.producer() is not None or value.const_value is not None:
                raise InvalidModelError(
                    f"the value '{value.name}' is made twice, the second time by {op_type} '{name}'"
                )
            if value.name is None:
                value.name = self.names.fresh(op_type.lower())
        node = ir.Node(domain, op_type, inputs, attributes, outputs=outputs, name=name)
        set_origin(node, [origin or name])
        scope.sink.nodes.append(node)
        return node

    def _attributes(self, proto: onnx.NodeProto, scope: Scope) -> dict[str, onnx.AttributeProto]:
        """The attributes of a node by name, references of a function body resolved."""
        found: dict[str, onnx.AttributeProto] = {}
        for attribute in proto.attribute:
            name = attribute.name
            text(name, attribute.ref_attr_name, attribute.doc_string)
            if attribute.ref_attr_name:
                if scope.attributes is None:
                    raise InvalidModelError(
                        f"{proto.op_type} '{proto.name}': attribute '{name}' refers to one of a function"
                    )
                given = scope.attributes.get(attribute.ref_attr_name)
                if given is None:
                    continue
                attribute = onnx.AttributeProto()
                attribute.CopyFrom(given)
                attribute.name = name
            if name in found:
                raise InvalidModelError(f"{proto.op_type} '{proto.name}' has the attribute '{name}' twice")
            found[name] = attribute
        return found

    def _attribute(self, proto: onnx.AttributeProto, scope: Scope, node: str, label: str) -> ir.Attr:
        kind, name = proto.type, proto.name
        if kind == onnx.AttributeProto.GRAPH:
            return ir.AttrGraph(name, self.subgraph(proto.g, scope, node))
        if kind == onnx.AttributeProto.GRAPHS:
            return ir.AttrGraphs(
                name, [self.subgraph(g, scope, f"{node}/{i}") for i, g in enumerate(proto.graphs)]
            )
        what = f"attribute '{name}' of {label}"
        if kind == onnx.AttributeProto.TENSOR:
            return ir.AttrTensor(name, self.tensors.tensor(proto.t, what))
        if kind == onnx.AttributeProto.TENSORS:
            return ir.AttrTensors(name, [self.tensors.tensor(t, what) for t in proto.tensors])
        if kind in (onnx.AttributeProto.SPARSE_TENSOR, onnx.AttributeProto.SPARSE_TENSORS):
            raise UnsupportedError(f"{what} is a sparse tensor, which only Constant may have")
        try:
            return ir.serde.deserialize_attribute(proto)
        except (ValueError, NotImplementedError, ir.serde.SerdeError) as error:
            raise InvalidModelError(f"{what} is not valid: {last_line(error)}") from error

    def _constant_node(
        self, attributes: Mapping[str, onnx.AttributeProto], outputs: list[ir.Value], sink: Sink, label: str
    ) -> None:
        if len(attributes) != 1 or len(outputs) != 1:
            raise InvalidModelError(
                f"{label} has {len(attributes)} values and {len(outputs)} outputs, expected one each"
            )
        ((name, a),) = attributes.items()
        if outputs[0].producer() is not None or outputs[0].const_value is not None:
            raise InvalidModelError(
                f"the value '{outputs[0].name}' is made twice, the second time by {label}"
            )
        made: ir.TensorProtocol
        if name == "value":
            made = self.tensors.tensor(a.t, label)
        elif name == "sparse_value":
            made = self.tensors.sparse(a.sparse_tensor, label)
        elif name == "value_string":
            made = ir.StringTensor([a.s], shape=ir.Shape(()))
        elif name == "value_strings":
            made = ir.StringTensor(list(a.strings), shape=ir.Shape((len(a.strings),)))
        elif name in ("value_int", "value_ints"):
            made = ir.tensor(np.array(a.i if name == "value_int" else list(a.ints), dtype=np.int64))
        else:
            made = ir.tensor(np.array(a.f if name == "value_float" else list(a.floats), dtype=np.float32))
        self.fill(outputs[0], made, sink)

    def _inline(
        self,
        function: onnx.FunctionProto,
        key: FunctionKey,
        inputs: Sequence[ir.Value | None],
        outputs: Sequence[ir.Value],
        attributes: Mapping[str, onnx.AttributeProto],
        scope: Scope,
        name: str,
        origin: str | None,
    ) -> None:
        """Make the nodes of a function body in place of a call; the body's results are the call's outputs."""
        label = f"function '{function.name}', called by '{name}'"
        if key in scope.calls:
            raise InvalidModelError(
                f"{label}, calls itself: " + " -> ".join(k[1] for k in (*scope.calls, key))
            )
        if len(inputs) > len(function.input) or len(outputs) > len(function.output):
            raise InvalidModelError(
                f"{label}, takes {len(function.input)} inputs and {len(function.output)} outputs, "
                f"given {len(inputs)} and {len(outputs)}"
            )
        if scope.depth >= self.budget.depth:
            raise ResourceError(
                f"{label}: functions lie more than {self.budget.depth} deep within each other"
            )
        versions = schemas.imports(function.opset_import, label)
        inner = Scope(
            scope.sink, versions or scope.versions, {}, None, attributes, f"{name}/",
            scope.origin or origin, scope.depth + 1, (*scope.calls, key),
        )  # fmt: skip
        absent = set(function.input[len(inputs) :])
        for formal, actual in zip(function.input, inputs, strict=False):
            if actual is None:
                absent.add(formal)
            else:
                inner.values[formal] = actual
        passed = []
        for formal, wanted in zip(function.output, outputs, strict=False):
            if formal in inner.values:  # an input handed through, or an output named twice
                passed.append((inner.values[formal], wanted))
            else:
                if wanted.name == "":
                    wanted.name = self.names.fresh(formal)
                inner.values[formal] = wanted
                inner.given.add(formal)
        body = function.node
        if absent:
            body = []
            for node in function.node:
                copy = onnx.NodeProto()
                copy.CopyFrom(node)
                copy.input[:] = ["" if n in absent else n for n in node.input]
                body.append(copy)
        self.statements(body, inner)
        for value, wanted in passed:
            self.emit(
                "Identity",
                [value],
                {},
                [wanted],
                inner,
                self.names.node(f"{inner.prefix}Identity"),
                inner.origin,
            )
        for formal, wanted in zip(function.output, outputs, strict=False):
            if wanted.producer() is None and wanted.const_value is None:
                self.missing.append(f"output '{formal}' of {label}")


def _repeated(names: Sequence[str]) -> str:
    return ", ".join(sorted({f"'{n}'" for n in names if names.count(n) > 1})[:10])


def _label(proto: onnx.NodeProto, index: int) -> str:
    return f"{proto.op_type} '{proto.name or f'{proto.op_type}_{index}'}'"
