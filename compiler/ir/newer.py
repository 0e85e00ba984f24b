"""Operators newer than the canonical opset: their older form where it means the same, else their body."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import onnx_ir as ir

from tapeout.compiler.ir.convert import Draft
from tapeout.compiler.ir.functions import OPSET


def newer(
    draft: Draft,
    schema: Any,
    attributes: dict[str, onnx.AttributeProto],
    version: int,
    node: onnx.NodeProto,
    type_bytes: Callable[[ir.Value | None], bytes | None],
) -> onnx.FunctionProto | None:
    """What a node newer than the canonical opset becomes.

    None: the same node in its older form (attributes that state a new default are removed from `attributes`);
    else the body that ONNX gives for it. Raises UnsupportedError where there is neither.
    """
    older = _older(schema.name)
    why = f"the operator is new in opset {schema.since_version}"
    if older is not None:
        reason = _misfit(draft, schema, older, attributes)
        if reason is None:
            return None
        why = reason
    body = onnx.FunctionProto()
    if schema.has_function:
        known = max((v for v in schema.function_opset_versions if v <= version), default=None)
        if known is not None:
            body.ParseFromString(schema.get_function_with_opset_version(known))
            return body
    if schema.has_context_dependent_function:
        known = max(
            (v for v in schema.context_dependent_function_opset_versions if v <= version), default=None
        )
        types = [type_bytes(v) for v in draft.inputs]
        if known is not None and all(t is not None for t in types):
            bare = onnx.NodeProto(op_type=schema.name, input=node.input[: len(types)], output=node.output)
            bare.attribute.extend(attributes.values())
            made = schema.get_context_dependent_function_with_opset_version(
                known, bare.SerializeToString(), types
            )
            if made:
                body.ParseFromString(made)
                return body
        elif known is not None:
            why += ", and the types of its inputs, which decide how it is spelled out, are not known"
    raise draft.refuse(why, f"export the model again with opset {OPSET} or older")


def _older(op_type: str) -> Any | None:
    try:
        return onnx.defs.get_schema(op_type, OPSET, "")
    except onnx.defs.SchemaError:
        return None


def _misfit(draft: Draft, schema: Any, older: Any, attributes: dict[str, onnx.AttributeProto]) -> str | None:
    """Why the older form of an operator cannot stand for this node, or None."""
    for name in [n for n in attributes if n not in older.attributes]:
        default = schema.attributes[name].default_value
        if _plain(attributes[name]) != _plain(default):
            return f"attribute '{name}' is new in opset {schema.since_version}"
        del attributes[name]
    allowed = {t.type_param_str: set(t.allowed_type_strs) for t in older.type_constraints}
    for values, formals in ((draft.inputs, older.inputs), (draft.outputs, older.outputs)):
        for index, value in enumerate(values):
            dtype = draft.dtype(value)
            if dtype is None or not formals:
                continue
            parameter = formals[min(index, len(formals) - 1)].type_str
            kind = f"tensor({dtype.name.lower()})"
            if kind not in allowed.get(parameter, {parameter}):
                return f"{kind} is new in opset {schema.since_version}"
    if schema.name == "Cast" and "to" in attributes and attributes["to"].i not in _TYPES_OF_CAST:
        return f"the type {attributes['to'].i} is new in opset {schema.since_version}"
    if schema.name == "Mod" and not (attributes["fmod"].i if "fmod" in attributes else 0):
        dtype = draft.dtype(draft.input(0))
        if dtype is None or dtype.is_floating_point():
            return "the floor modulus of floating-point numbers is new in opset 28"
    return None


# Up to float8e8m0 and the 2-bit integers; the 6-bit floats came later.
_TYPES_OF_CAST = frozenset(range(1, 27)) - {14, 15}


def _plain(attribute: onnx.AttributeProto) -> Any:
    return onnx.helper.get_attribute_value(attribute) if attribute.type else None
