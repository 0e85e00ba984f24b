"""From the protobuf form of a model to the IR: names, scopes, constants, functions inlined, operators modernized.

One walk over the model makes every node of the IR. A node is a `Draft` until `convert.modernize` has brought it
from its own opset to the canonical one; a call of a model-local function, or of an operator that only its body
defines, becomes the nodes of that body in place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir

from tapeout.compiler.errors import InvalidModelError, ResourceError, UnsupportedError
from tapeout.compiler.ir import convert, schemas
from tapeout.compiler.ir.budget import Budget
from tapeout.compiler.ir.functions import DOMAIN, OPSET
from tapeout.compiler.ir.origin import KEY, set_origin
from tapeout.compiler.ir.tensors import TensorReader

# In the metadata of files that `save` writes: functions and origins in them are ours and are kept.
MARK = "tapeout.ir"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
FunctionKey = tuple[str, str, str]


@dataclass
class Sink:
    """The nodes and initializers of one graph being made."""

    nodes: list[ir.Node] = field(default_factory=list)
    initializers: list[ir.Value] = field(default_factory=list)


@dataclass
class Scope:
    """Names that nodes of one graph or function body may read; `outer` is where a subgraph looks next.

    `versions`: opset imports. `attributes`: what a function was called with, None outside functions.
    `prefix` and `origin` are set for bodies: their nodes are named "call/inner"; a made body has its caller's origin.
    `given`: outputs of a body that are values of its caller.
    """

    sink: Sink
    versions: Mapping[str, int]
    values: dict[str, ir.Value] = field(default_factory=dict)
    outer: Scope | None = None
    attributes: Mapping[str, onnx.AttributeProto] | None = None
    prefix: str = ""
    origin: str | None = None
    depth: int = 1
    calls: tuple[FunctionKey, ...] = ()
    given: set[str] = field(default_factory=set)

    def find(self, name: str) -> ir.Value | None:
        scope: Scope | None = self
        while scope is not None:
            found = scope.values.get(name)
            if found is not None:
                return found
            scope = scope.outer
        return None


class ModelBuilder:
    """Makes the IR of one model. `declared` holds types and shapes that the source states for values inside."""

    def __init__(self, proto: onnx.ModelProto, tensors: TensorReader, budget: Budget) -> None:
        self.proto = proto
        self.tensors = tensors
        self.budget = budget
        self.declared: dict[ir.Value, tuple[ir.TypeProtocol | None, ir.Shape | None]] = {}
        self.ours = any(p.key == MARK for p in proto.metadata_props)
        self.functions = {(schemas.domain(f.domain), f.name, f.overload): f for f in proto.functions}
        self.missing: list[str] = []
        self.unknown: list[str] = []
        self.unreadable: list[tuple[ir.Value, UnsupportedError]] = []
        self.count = 0
        self._value_names: set[str] = set()
        self._node_names: set[str] = set()
        self._fresh = 0

    def build(self) -> ir.Model:
        """The model, its nodes in opset 25. Raises InvalidModelError, UnsupportedError, ResourceError."""
        proto = self.proto
        if not proto.HasField("graph"):
            raise InvalidModelError(
                "the file holds no graph", hint="it may be damaged, or no ONNX model at all"
            )
        versions = schemas.imports(proto.opset_import, "the model")
        kept = {k: f for k, f in self.functions.items() if self._is_kept(f)}
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
            metadata_props={p.key: p.value for p in proto.metadata_props if p.key != MARK},
        )
        for function in functions:
            graph.opset_imports.setdefault(function.domain, 1)
        return model

    def _is_kept(self, function: onnx.FunctionProto) -> bool:
        """Our own functions stay calls: their bodies are specifications, not code to be optimized."""
        if not (self.ours or schemas.domain(function.domain) == DOMAIN):
            return False
        return schemas.imports(function.opset_import, f"function '{function.name}'").get("", OPSET) == OPSET

    def _complain(self) -> None:
        if self.unknown:
            raise InvalidModelError(
                "the model has operators that ONNX does not define: " + "; ".join(self.unknown[:10]),
                hint="the model may need a newer version of ONNX, or its opset import is wrong",
            )
        if self.missing:
            raise InvalidModelError(
                "the model reads values that nothing makes: " + "; ".join(self.missing[:10])
            )
        for value, error in self.unreadable:
            if value.uses() or value.is_graph_output():
                raise error

    # --- graphs -------------------------------------------------------------------------------------------------

    def _graph(self, proto: onnx.GraphProto, scope: Scope, main: bool = False) -> ir.Graph:
        if scope.depth > self.budget.depth:
            raise ResourceError(
                f"graphs and functions lie more than {self.budget.depth} deep within each other"
            )
        where = "" if main else f" of the subgraph '{proto.name}'"
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
            value = self._declare(info.name, scope, f"the input '{info.name}'{where}")
            self._state(value, info, f"the input '{info.name}'{where}")
            if main and value.type is None:
                raise InvalidModelError(f"the input '{info.name}' has no type")
            inputs.append(value)
        for name, tensor in tensors.items():
            if name in scope.values:
                continue  # The input of a loop body is always given; what the body calls a default is never read.
            value = self._declare(name, scope, f"the initializer '{name}'{where}")
            self._constant(value, self.tensors.tensor(tensor, f"initializer '{name}'"), scope.sink)
        for name, each in sparse.items():
            if name not in scope.values:
                value = self._declare(name, scope, f"the sparse initializer '{name}'{where}")
                self._constant(value, self.tensors.sparse(each, f"sparse initializer '{name}'"), scope.sink)
        self._statements(proto.node, scope, proto.value_info)
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
            metadata_props={p.key: p.value for p in proto.metadata_props},
        )

    def _output(self, info: onnx.ValueInfoProto, scope: Scope, where: str, main: bool) -> ir.Value:
        value = scope.values.get(info.name)
        if value is None and not main and (outer := scope.find(info.name)) is not None:
            # Runtimes want a subgraph to make what it returns.
            value = self._value(info.name, scope)
            self._emit(
                "Identity", [outer], {}, [value], scope, self._made_name("Identity", scope), scope.origin
            )
        if value is None:
            self.missing.append(f"graph output '{info.name}'{where}")
            value = ir.Value(name=info.name)
        if value.const_value is None:
            self._state(value, info, f"the output '{info.name}'{where}")
        return value

    def _state(self, value: ir.Value, info: onnx.ValueInfoProto, what: str) -> None:
        """Give `value` the type and shape that the source states for it."""
        type_, shape = self._type(info.type, what)
        if type_ is not None:
            value.type = type_
        if shape is not None:
            value.shape = shape
        if self.ours:
            value.metadata_props.update({p.key: p.value for p in info.metadata_props})

    def _type(self, proto: onnx.TypeProto, what: str) -> tuple[ir.TypeProtocol | None, ir.Shape | None]:
        if _has_map(proto):
            raise UnsupportedError(
                f"{what} is a map, which no target takes",
                hint="export the model so that it returns tensors (scikit-learn: zipmap=False)",
            )
        try:
            type_ = ir.serde.deserialize_type_proto_for_type(proto)
            shape = ir.serde.deserialize_type_proto_for_shape(proto)
        except (ValueError, ir.serde.SerdeError) as error:
            raise InvalidModelError(f"{what} has no valid type: {_last_line(error)}") from error
        if shape is None:
            return type_, None
        dims: list[int | ir.SymbolicDim | None] = []
        for dim in shape:
            if isinstance(dim, int):
                if dim < -1:
                    raise InvalidModelError(
                        f"{what} has the shape {[str(d) for d in shape]}: a dimension is negative"
                    )
                dims.append(None if dim == -1 else dim)  # Exporters write -1 where they mean "any".
            else:
                if dim.value is not None:
                    self._check_name(str(dim.value), "a dimension of " + what)
                dims.append(dim)
        self.budget.count([d for d in dims if isinstance(d, int)], what)
        return type_, ir.Shape(dims)

    # --- values and names -----------------------------------------------------------------------------------------

    def _declare(self, name: str, scope: Scope, what: str) -> ir.Value:
        """A new value called `name` in `scope`, which must not have one."""
        if not name:
            raise InvalidModelError(f"{what} has no name")
        if name in scope.values:
            raise InvalidModelError(f"the name '{name}' is given to two values: {what} and one before it")
        return self._value(name, scope)

    def _value(self, name: str, scope: Scope) -> ir.Value:
        self._check_name(name, "a value")
        value = ir.Value(name=_unique(scope.prefix + name, self._value_names))
        scope.values[name] = value
        return value

    def _check_name(self, name: str, what: str) -> None:
        if len(name) > self.budget.name_length:
            raise ResourceError(
                f"the name of {what} has {len(name)} characters, at most {self.budget.name_length}"
            )
        if _CONTROL.search(name):
            raise InvalidModelError(f"the name of {what} holds control characters: {name[:80]!r}")

    def _constant(self, value: ir.Value, tensor: ir.TensorProtocol, sink: Sink) -> None:
        tensor.name = value.name
        value.const_value = tensor
        value.type = ir.TensorType(tensor.dtype)
        value.shape = ir.Shape(tuple(tensor.shape.numpy()))  # type: ignore[attr-defined]
        sink.initializers.append(value)

    def _node_name(self, proto: onnx.NodeProto, index: int, scope: Scope) -> tuple[str, str]:
        """(the unique name, the source's name) of a node."""
        self._check_name(proto.name, "a node")
        source = scope.prefix + (proto.name or f"{proto.op_type}_{index}")
        return _unique(source, self._node_names, f"_{index}" if proto.name else "_"), source

    def _made_name(self, hint: str, scope: Scope) -> str:
        return _unique(f"{scope.prefix}{hint}", self._node_names)

    # --- nodes ----------------------------------------------------------------------------------------------------

    def _statements(
        self, nodes: Sequence[onnx.NodeProto], scope: Scope, infos: Iterable[onnx.ValueInfoProto] = ()
    ) -> None:
        """Make the nodes of a graph or body: first all outputs (the order may be wrong), then the nodes."""
        self.count += len(nodes)
        if self.count > self.budget.nodes:
            raise ResourceError(f"the model has more than {self.budget.nodes} nodes, functions inlined")
        for index, proto in enumerate(nodes):
            for name in proto.output:
                if name in scope.given:
                    scope.given.discard(name)  # a caller's value, which this node now makes
                elif name:
                    self._declare(name, scope, f"an output of {_label(proto, index)}")
        for info in infos:
            value = scope.values.get(info.name)
            if value is None or value.const_value is not None:
                continue
            if self.ours:
                self._state(value, info, f"the value '{info.name}'")
            else:
                self.declared[value] = self._type(info.type, f"the value '{info.name}'")
        # Names that the source gives win over names made here.
        names: dict[int, tuple[str, str]] = {}
        for index in sorted(range(len(nodes)), key=lambda i: not nodes[i].name):
            names[index] = self._node_name(nodes[index], index, scope)
        for index, proto in enumerate(nodes):
            self._node(proto, index, scope, *names[index])

    def _node(self, proto: onnx.NodeProto, index: int, scope: Scope, name: str, source: str) -> None:
        domain = schemas.domain(proto.domain)
        label = f"{proto.op_type} '{source}'"
        inputs: list[ir.Value | None] = []
        for read in proto.input:
            value = scope.find(read) if read else None
            if read and value is None:
                self.missing.append(f"{label} reads '{read}'")
            inputs.append(value)
        while inputs and inputs[-1] is None:
            inputs.pop()
        outputs = [scope.values[n] if n else ir.Value(name="") for n in proto.output]
        attributes = self._attributes(proto, scope)
        origin = scope.origin or source
        key = (domain, proto.op_type, proto.overload)
        function = self.functions.get(key)
        if function is not None and not self._is_kept(function):
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
                proto.op_type, inputs, {}, outputs, schema.since_version, label, self._dtype, self._rank
            )
            if schema.since_version > OPSET:
                body = convert.newer(draft, schema, attributes, version, proto, self._type_bytes)
                if body is not None:
                    defaults = {
                        n: a.default_value for n, a in schema.attributes.items() if a.default_value.name
                    }
                    self._inline(body, key, inputs, outputs, defaults | attributes, scope, name, origin)
                    return
        else:
            draft = convert.Draft(proto.op_type, inputs, {}, outputs, 0, label, self._dtype, self._rank)
        for attribute in attributes.values():
            draft.attributes[attribute.name] = self._attribute(attribute, scope, name, label)
        if draft.version:
            convert.modernize(draft)
            self.unreadable += draft.unreadable
        self._finish(draft, proto, domain, scope, name, origin)

    def _finish(
        self, draft: convert.Draft, proto: onnx.NodeProto, domain: str, scope: Scope, name: str, origin: str
    ) -> None:
        """Emit what a draft has become: nodes before it, itself, nodes after it."""
        for array, value in draft.constants:
            value.name = self._fresh_name(draft.op_type.lower())
            self._constant(value, ir.tensor(array, name=value.name), scope.sink)
        for step in draft.before:
            self._step(step, scope, origin)
        node = self._emit(
            draft.op_type, draft.inputs, draft.attributes, draft.outputs, scope, name, origin, domain
        )
        node.overload = proto.overload
        node.doc_string = proto.doc_string or None
        props = {p.key: p.value for p in proto.metadata_props}
        recorded = props.pop(KEY, None)
        node.metadata_props.update(props)
        if self.ours and recorded:
            node.metadata_props[KEY] = recorded
        for step in draft.after:
            self._step(step, scope, origin)

    def _step(self, step: convert.Step, scope: Scope, origin: str) -> None:
        for value in step.outputs:
            if value.name is None:
                value.name = self._fresh_name(step.op_type.lower())
        name = _unique(self._fresh_name(step.op_type.lower()), self._node_names)
        attributes = {k: ir.convenience.convert_attribute(k, v) for k, v in step.attributes.items()}
        self._emit(step.op_type, step.inputs, attributes, step.outputs, scope, name, origin)

    def _emit(
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
                value.name = self._fresh_name(op_type.lower())
        node = ir.Node(domain, op_type, inputs, attributes, outputs=outputs, name=name)
        set_origin(node, [origin or name])
        scope.sink.nodes.append(node)
        return node

    def _fresh_name(self, hint: str) -> str:
        while True:
            self._fresh += 1
            name = f"{hint}~{self._fresh}"
            if name not in self._value_names:
                self._value_names.add(name)
                return name

    # --- attributes and constants ---------------------------------------------------------------------------------

    def _attributes(self, proto: onnx.NodeProto, scope: Scope) -> dict[str, onnx.AttributeProto]:
        """The attributes of a node by name, references of a function body resolved."""
        found: dict[str, onnx.AttributeProto] = {}
        for attribute in proto.attribute:
            name = attribute.name
            if attribute.ref_attr_name:
                if scope.attributes is None:
                    raise InvalidModelError(
                        f"{proto.op_type} '{proto.name}': attribute '{name}' refers to a function's attribute outside one"
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
            return ir.AttrGraph(name, self._subgraph(proto.g, scope, node))
        if kind == onnx.AttributeProto.GRAPHS:
            return ir.AttrGraphs(
                name, [self._subgraph(g, scope, f"{node}/{i}") for i, g in enumerate(proto.graphs)]
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
            raise InvalidModelError(f"{what} is not valid: {_last_line(error)}") from error

    def _subgraph(self, proto: onnx.GraphProto, scope: Scope, node: str) -> ir.Graph:
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
        self._constant(outputs[0], made, sink)

    # --- functions ------------------------------------------------------------------------------------------------

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
                    wanted.name = self._fresh_name(formal)
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
        self._statements(body, inner)
        for value, wanted in passed:
            self._emit(
                "Identity", [value], {}, [wanted], inner, self._made_name("Identity", inner), inner.origin
            )
        for formal, wanted in zip(function.output, outputs, strict=False):
            if wanted.producer() is None and wanted.const_value is None:
                self.missing.append(f"output '{formal}' of {label}")

    # --- what is known of a value ---------------------------------------------------------------------------------

    def _dtype(self, value: ir.Value | None) -> ir.DataType | None:
        if value is None:
            return None
        type_ = value.type or self.declared.get(value, (None, None))[0]
        return None if type_ is None or not isinstance(type_, ir.TensorType) else type_.dtype

    def _rank(self, value: ir.Value | None) -> int | None:
        if value is None:
            return None
        shape = value.shape if value.shape is not None else self.declared.get(value, (None, None))[1]
        return None if shape is None else shape.rank()

    def _type_bytes(self, value: ir.Value | None) -> bytes | None:
        """The serialized TypeProto of a value, b"" for an absent one, None where it is not known."""
        proto = onnx.TypeProto()
        if value is None:
            return proto.SerializeToString()
        declared = self.declared.get(value, (None, None))
        type_, shape = value.type or declared[0], value.shape if value.shape is not None else declared[1]
        if type_ is None:
            return None
        ir.serde.serialize_type_into(proto, type_)
        if shape is not None:
            ir.serde.serialize_shape_into(proto, shape)
        return proto.SerializeToString()


def _unique(name: str, known: set[str], suffix: str = "_") -> str:
    candidate, count = name, 1
    while candidate in known:
        count += 1
        candidate = f"{name}{suffix}" if suffix != "_" and count == 2 else f"{name}_{count}"
    known.add(candidate)
    return candidate


def _repeated(names: Sequence[str]) -> str:
    return ", ".join(sorted({f"'{n}'" for n in names if names.count(n) > 1})[:10])


def _label(proto: onnx.NodeProto, index: int) -> str:
    return f"{proto.op_type} '{proto.name or f'{proto.op_type}_{index}'}'"


def _has_map(proto: onnx.TypeProto) -> bool:
    kind = proto.WhichOneof("value")
    if kind in ("sequence_type", "optional_type"):
        return _has_map(getattr(proto, kind).elem_type)
    return kind in ("map_type", "opaque_type")


def _last_line(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
