"""What ONNX says of an operator at an opset, and whether a node of a model file keeps to it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import onnx

from tapeout.compiler.errors import InvalidModelError, UnsupportedError

OLDEST, NEWEST = 7, 28


class Form(NamedTuple):
    """One version of an operator: bounds on inputs and outputs, attributes as {name: (type, required)}."""

    inputs: tuple[int, int]
    outputs: tuple[int, int]
    attributes: dict[str, tuple[int, bool]]


def domain(name: str) -> str:
    """The canonical spelling of a domain: "ai.onnx" is ""."""
    return "" if name == "ai.onnx" else name


def imports(entries: Iterable[onnx.OperatorSetIdProto], what: str) -> dict[str, int]:
    """{domain: version} of opset imports. Raises InvalidModelError, UnsupportedError."""
    found: dict[str, int] = {}
    for entry in entries:
        if not isinstance(entry.domain, str):
            raise InvalidModelError(f"{what} imports an opset of a domain that is not UTF-8 text")
        name = domain(entry.domain)
        if found.setdefault(name, entry.version) != entry.version:
            raise InvalidModelError(
                f"{what} imports opset {found[name]} and {entry.version} of domain '{name or 'ai.onnx'}'"
            )
    version = found.get("")
    if version is not None and not 1 <= version <= NEWEST:
        if version < 1 or version > 1000:
            raise InvalidModelError(f"{what} imports opset {version}, expected {OLDEST} to {NEWEST}")
        raise UnsupportedError(
            f"{what} imports opset {version}, supported are {OLDEST} to {NEWEST}",
            hint="export the model again with an opset in that range",
        )
    return found


@functools.cache
def find(op_type: str, version: int) -> tuple[Any | None, str]:
    """The schema of a standard operator at opset `version`, or None with the reason why there is none."""
    try:
        schema = onnx.defs.get_schema(op_type, version, "")
    except onnx.defs.SchemaError:
        try:
            since = onnx.defs.get_schema(op_type, "").since_version
        except onnx.defs.SchemaError:
            return None, "no such operator"
        first = _first_version(op_type) or since
        return None, f"not in opset {version}" + (f", in ONNX since opset {first}" if first > version else "")
    if version < OLDEST and schema.since_version != onnx.defs.get_schema(op_type, OLDEST, "").since_version:
        return None, f"its form of opset {version} is too old, opsets {OLDEST} to {NEWEST} are supported"
    # GroupNormalization counts as withdrawn up to opset 20, yet exporters wrote it and runtimes take it.
    if schema.deprecated and op_type != "GroupNormalization":
        return None, f"removed from ONNX in opset {schema.since_version}, the model imports {version}"
    return schema, ""


def _first_version(op_type: str) -> int | None:
    versions = [
        s.since_version
        for s in onnx.defs.get_all_schemas_with_history()
        if s.name == op_type and not s.domain
    ]
    return min(versions, default=None)


@functools.cache
def _form(op_type: str, since: int) -> Form:
    schema = onnx.defs.get_schema(op_type, since, "")
    return Form(
        (schema.min_input, schema.max_input),
        (schema.min_output, schema.max_output),
        {n: (int(a.type.value), a.required) for n, a in schema.attributes.items()},
    )


def check(
    schema: Any, node: onnx.NodeProto, attributes: Mapping[str, onnx.AttributeProto], label: str
) -> None:
    """Raise InvalidModelError unless the counts and attributes of `node` are those of `schema`."""
    form = _form(schema.name, schema.since_version)
    for what, count, (low, high) in (
        ("inputs", len(node.input), form.inputs),
        ("outputs", len(node.output), form.outputs),
    ):
        if not low <= count <= high:
            expected = (
                f"{low}" if low == high else f"{low} to {high}" if high < 1 << 30 else f"at least {low}"
            )
            raise InvalidModelError(f"{label} has {count} {what}, ONNX expects {expected}", nodes=[node.name])
    for name, attribute in attributes.items():
        expected_type = form.attributes.get(name)
        if expected_type is None:
            raise InvalidModelError(
                f"{label}: {schema.name} of opset {schema.since_version} has no attribute '{name}'",
                nodes=[node.name],
            )
        if attribute.type != expected_type[0]:
            kinds = onnx.AttributeProto.AttributeType
            raise InvalidModelError(
                f"{label}: the attribute '{name}' is {_kind(kinds, attribute.type)}, "
                f"ONNX expects {_kind(kinds, expected_type[0])}",
                nodes=[node.name],
            )
    for name, (_, required) in form.attributes.items():
        if required and name not in attributes:
            raise InvalidModelError(f"{label} lacks the attribute '{name}'", nodes=[node.name])


def _kind(kinds: Any, number: int) -> str:
    return str(kinds.Name(number)) if number in kinds.values() else f"of type {number}"
