"""Named patterns: parts of a graph that one kernel of a target computes, made calls of the target's own functions.

    body of acme::ConvRelu on these values  ->  acme::ConvRelu(...)        where a row takes the call

The function's body is the pattern and the specification. What a row refuses stays as it was, in its parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from tapeout.compiler.declaration import Declaration, Refusal
from tapeout.compiler.errors import VendorToolError
from tapeout.compiler.ir import functions
from tapeout.compiler.ir import graph as g
from tapeout.compiler.operators import onnx_interface
from tapeout.compiler.rewriting import (
    Builder,
    Changes,
    Constant,
    Match,
    Operation,
    PatternRule,
    Rewrite,
    Variable,
)


@dataclass(frozen=True)
class Outline:
    """Calls of the functions that `rows` bring, wherever their bodies stand in the graph and a row takes them."""

    rows: Declaration
    name: str = "outline"

    def __call__(self, model: ir.Model) -> Changes:
        rules = tuple(
            rule
            for function in self.rows.functions.values()
            for missing in _left_out(function)
            for rule in (_Body(model, function, self.rows, missing),)
        )
        return Rewrite(self.name, rules)(model) if rules else Changes(0)


class _Body(PatternRule):
    """One function as a rule, with the last `missing` inputs left out."""

    def __init__(self, model: ir.Model, function: ir.Function, rows: Declaration, missing: int = 0) -> None:
        self.model, self.function, self.rows = model, function, rows
        self.inputs = list(function.inputs)[: len(function.inputs) - missing]
        self._pattern = _pattern(function, {v.name or "" for v in self.inputs})

    @property
    def name(self) -> str:
        return f"{self.function.domain}::{self.function.name}"

    @property
    def pattern(self) -> Operation:
        return self._pattern

    def before(self, op: Any, *variables: Any) -> Operation:
        return self._pattern

    def condition(self, m: Match) -> str | None:
        """Attributes that the body does not name have their default."""
        for key, body in _nodes(self.function).items():
            actual = m.bound[key]
            interface = onnx_interface(actual.op_type)
            for name in actual.attributes:
                default = interface.attributes.get(name) if interface else None
                value = g.attribute(actual, name)
                if name not in body.attributes and value != default and not _neutral(actual, name, value):
                    return f"{actual.op_type} '{actual.name}' has {name} {value}, which {self.name} has not"
        return None

    def after(self, op: Builder, m: Match) -> ir.Value | str:
        functions.add(self.model, self.function)
        inputs = [m.bound.get(v.name or "") for v in self.inputs]
        made = op.node(self.function.name, inputs, self._attributes(m), domain=self.function.domain)
        refusal = self.rows.match(made[0].producer(), self.model.functions)  # type: ignore[arg-type]
        return refusal.why() if isinstance(refusal, Refusal) else made[0]

    def _attributes(self, m: Match) -> Mapping[str, Any]:
        found: dict[str, Any] = {}
        for key, body in _nodes(self.function).items():
            for name, attribute in body.attributes.items():
                if attribute.is_ref() and name in m.bound[key].attributes:
                    found[attribute.ref_attr_name or name] = g.attribute(m.bound[key], name)
        return found


# What windows have in every direction where ONNX has no default for an attribute.
_NEUTRAL = {"strides": 1, "dilations": 1, "pads": 0, "output_padding": 0}


def _neutral(node: ir.Node, name: str, value: Any) -> bool:
    """Whether an attribute without a default says what is so without it."""
    if name == "kernel_shape" and node.op_type in ("Conv", "ConvTranspose"):
        shape = g.dims(node.inputs[1])
        return shape is not None and tuple(value) == shape[2:]
    return name in _NEUTRAL and set(value) <= {_NEUTRAL[name]}


def _nodes(function: ir.Function) -> dict[str, ir.Node]:
    """The nodes of a body that compute, by the name under which a match binds what stands for them."""
    return {f"~{i}": n for i, n in enumerate(function) if n.op_type != "Constant"}


def _pattern(function: ir.Function, given: set[str]) -> Operation:
    if len(function.outputs) != 1:
        raise VendorToolError(
            f"function {function.domain}::{function.name} has {len(function.outputs)} outputs: a pattern has one"
        )
    keys = {id(n): key for key, n in _nodes(function).items()}

    def term(value: ir.Value | None) -> Any:
        if value is None or (value.producer() is None and value.name not in given):
            return None
        node = value.producer()
        if node is None:
            return Variable(value.name or "")
        if node.op_type == "Constant" and node.domain == "":
            number = _number(node)
            if number is None:
                raise VendorToolError(
                    f"function {function.domain}::{function.name}: a constant of a pattern has one element"
                )
            return Constant(number)
        inputs = [term(v) for v in node.inputs]
        while inputs and inputs[-1] is None:
            inputs.pop()
        attributes = {k: g.attribute(node, k) for k, a in node.attributes.items() if not a.is_ref()}
        return Operation((node.op_type,), tuple(inputs), attributes, keys[id(node)], domain=node.domain)

    made = term(function.outputs[0])
    if not isinstance(made, Operation):
        raise VendorToolError(f"function {function.domain}::{function.name} computes nothing")
    return made


def _number(node: ir.Node) -> float | None:
    for name in ("value_float", "value_int"):
        if name in node.attributes:
            return float(g.attribute(node, name))
    value = g.attribute(node, "value")
    array = None if value is None else value.numpy()
    return None if array is None or array.size != 1 else float(array.reshape(())[()])


def _left_out(function: ir.Function) -> Iterator[int]:
    """How many of the last inputs may be missing: those that every reader in the body may do without."""
    yield 0
    for missing, value in enumerate(reversed(list(function.inputs)), 1):
        uses = list(value.uses())
        interfaces = [onnx_interface(u.node.op_type) for u in uses]
        if not uses or not all(
            i is not None and u.idx < len(i.inputs) and i.inputs[u.idx].kind == "optional"
            for i, u in zip(interfaces, uses, strict=True)
        ):
            return
        yield missing
