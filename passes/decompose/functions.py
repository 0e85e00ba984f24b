"""Operators that the standard itself defines by others, written out by that definition.

Op(x, ...)   ->   the nodes of Op's function body, attributes bound, repeated for what the body uses
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.functions import OPSET
from tapeout.compiler.rewriting import Builder, Changes, Declined, NodeRule, Rewrite

# Bodies nest: Softplus in Mish, Range in a window. Deeper than this is a fault.
DEPTH = 16
RANDOM = frozenset({"Bernoulli"})


def defined() -> frozenset[str]:
    """The operators of the standard domain whose schema carries a body that this pass can write out."""
    found = set()
    for schema in onnx.defs.get_all_schemas():
        written = schema.has_function or schema.has_context_dependent_function
        if schema.domain == "" and written and schema.name not in RANDOM:
            found.add(schema.name)
    return frozenset(found)


def body(node: ir.Node) -> onnx.FunctionProto | None:
    """The function body of a node in the opset of the IR (the newest that is not past it), or None."""
    try:
        schema = onnx.defs.get_schema(node.op_type, OPSET, node.domain)
    except onnx.defs.SchemaError:
        return None
    proto = onnx.FunctionProto()
    plain = [v for v in schema.function_opset_versions if v <= OPSET] if schema.has_function else []
    if plain:
        proto.ParseFromString(schema.get_function_with_opset_version(max(plain)))
        return proto
    if not schema.has_context_dependent_function:
        return None
    versions = [v for v in schema.context_dependent_function_opset_versions if v <= OPSET]
    types = [_type(v) for v in node.inputs]
    serialized = ir.serde.serialize_node(node).SerializeToString()
    for version in sorted(versions, reverse=True):
        data = schema.get_context_dependent_function_with_opset_version(version, serialized, types)
        if data:
            proto.ParseFromString(data)
            return proto
    return None


def _type(value: ir.Value | None) -> bytes:
    proto = onnx.TypeProto()
    if value is not None and value.type is not None:
        ir.serde.serialize_type_into(proto, value.type)
        if value.shape is not None:
            ir.serde.serialize_shape_into(proto, value.shape)
    data: bytes = proto.SerializeToString()
    return data


@dataclass(frozen=True)
class ByDefinition(NodeRule):
    """Op(x, ...) -> the nodes of its body in the standard"""

    ops: Sequence[str] = ()  # type: ignore[misc]

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        proto = body(node)
        if proto is None:
            return "the standard gives no body for these inputs"
        for inner in proto.node:
            if inner.domain not in ("", "ai.onnx"):
                return f"the body uses {inner.domain}::{inner.op_type}"
            if inner.op_type.startswith("Sequence") or inner.op_type.startswith("Optional"):
                return f"the body uses {inner.op_type}"
            if any(
                a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in inner.attribute
            ):
                return "the body has control flow"
        values: dict[str, ir.Value | None] = {"": None}
        inputs = [*node.inputs, *[None] * len(proto.input)]
        values.update(zip(proto.input, inputs, strict=False))
        for inner in proto.node:
            attributes = _bound(inner, node, proto)
            if inner.op_type == "Constant":
                values[inner.output[0]] = op.constant(_array(attributes), hint=inner.output[0] or "constant")
                continue
            taken = [values[name] for name in inner.input]
            while taken and taken[-1] is None:
                taken.pop()
            made = op.node(inner.op_type, taken, attributes, len(inner.output))
            values.update(zip(inner.output, made, strict=True))
        outputs = [values.get(name) for name in list(proto.output)[: len(node.outputs)]]
        if any(v is None for v in outputs):
            return "the body does not make every output"
        # An output that is an input or a constant needs a node of its own.
        return [op.Identity(v) if v.producer() is None else v for v in outputs if v is not None]


def _bound(inner: onnx.NodeProto, node: ir.Node, proto: onnx.FunctionProto) -> dict[str, ir.Attr]:
    """The attributes of `inner`, references bound to the attributes of `node` or their defaults."""
    schema = onnx.defs.get_schema(node.op_type, OPSET, node.domain)
    found: dict[str, ir.Attr] = {}
    for a in inner.attribute:
        if not a.ref_attr_name:
            found[a.name] = ir.serde.deserialize_attribute(a)
            continue
        given = node.attributes.get(a.ref_attr_name)
        if given is None:
            default = schema.attributes[a.ref_attr_name].default_value
            if default.type == onnx.AttributeProto.UNDEFINED:
                continue
            given = ir.serde.deserialize_attribute(default)
        found[a.name] = ir.Attr(a.name, given.type, given.value)
    return found


def _array(attributes: dict[str, ir.Attr]) -> np.ndarray[Any, Any]:
    """The array of a Constant node."""
    ((name, attr),) = attributes.items()
    if name == "value":
        return attr.value.numpy()  # type: ignore[no-any-return]
    return np.asarray(attr.value, np.float32 if "float" in name else np.int64)


@dataclass(frozen=True)
class ExpandFunctions:
    """Writes out every operator that is not in `keep` and that the standard defines by others."""

    keep: frozenset[str] = frozenset()
    name: str = "functions"

    def __call__(self, model: ir.Model) -> Changes:
        rewrite = Rewrite(self.name, (ByDefinition(tuple(sorted(defined() - self.keep))),))
        total, declined = 0, dict[tuple[str, str], Declined]()
        for _ in range(DEPTH):
            changes = rewrite(model)
            total += changes.count
            declined.update({(d.rule, d.node): d for d in changes.declined})
            if not changes.count:
                break
        names = {n.name for graph in g.graphs(model) for n in graph}
        return Changes(total, tuple(d for d in declined.values() if d.node in names))
