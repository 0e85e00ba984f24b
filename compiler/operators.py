"""A node seen through its operator's interface: named ports, type variables, attributes with their defaults.

Interfaces come from ONNX's own schemas, from the model-local functions of a model, or from a small table
that a declaration brings for operators of another standard.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import onnx
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.functions import OPSET

Functions = Mapping[ir.OperatorIdentifier, ir.Function]

ABSENT = "absent"  # the value of an attribute that is not there and has no default

_DTYPES = {ir.DataType.FLOAT: "float32", ir.DataType.DOUBLE: "float64"}
DTYPES: dict[str, ir.DataType] = {
    _DTYPES.get(d, d.name.lower()): d for d in ir.DataType if d != ir.DataType.UNDEFINED
}


def dtype_name(dtype: ir.DataType | None) -> str | None:
    """ "float32" for FLOAT, "int8" for INT8, and so on; None for an unknown type."""
    return None if dtype is None or dtype == ir.DataType.UNDEFINED else _DTYPES.get(dtype, dtype.name.lower())


def type_name(value: ir.Value) -> str | None:
    """The type of a value as declarations spell it: "float32", "seq(int64)", "optional(float32)"; None if
    unknown."""

    def spell(kind: Any) -> str | None:
        if isinstance(kind, ir.SequenceType):
            return f"seq({spell(kind.elem_type)})"
        if isinstance(kind, ir.OptionalType):
            return f"optional({spell(kind.elem_type)})"
        return dtype_name(kind.dtype) if kind is not None else None

    return spell(value.type)


class Port(NamedTuple):
    """A formal input or output. `kind` is "single", "optional" or "variadic"; `variable` its type variable
    or None."""

    name: str
    kind: str = "single"
    variable: str | None = None


@dataclass(frozen=True)
class Interface:
    """The ports, attributes and type variables of one operator.

    `attributes` maps a name to its default (None where there is none).
    """

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    variables: tuple[str, ...] = ()

    @property
    def ports(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(p.name for p in (*self.inputs, *self.outputs)))


@functools.cache
def onnx_interface(op_type: str) -> Interface | None:
    """The interface of an operator of the standard domain at our opset; None where ONNX has no such
    operator."""
    try:
        schema = onnx.defs.get_schema(op_type, OPSET, "")
    except onnx.defs.SchemaError:
        return None
    kinds = {
        onnx.defs.OpSchema.FormalParameterOption.Single: "single",
        onnx.defs.OpSchema.FormalParameterOption.Optional: "optional",
        onnx.defs.OpSchema.FormalParameterOption.Variadic: "variadic",
    }

    def ports(formals: Sequence[Any]) -> tuple[Port, ...]:
        return tuple(
            Port(p.name, kinds[p.option], p.type_str if p.type_str in variables else None) for p in formals
        )

    variables = tuple(t.type_param_str for t in schema.type_constraints)
    defaults = {}
    for name, attribute in schema.attributes.items():
        has = attribute.default_value.type != onnx.AttributeProto.UNDEFINED
        default = onnx.helper.get_attribute_value(attribute.default_value) if has else None
        defaults[name] = _plain(default)
    return Interface(op_type, ports(schema.inputs), ports(schema.outputs), defaults, variables)


def function_interface(function: ir.Function) -> Interface:
    """The interface of a model-local function; every port may be left out, as ONNX allows for functions."""
    return Interface(
        f"{function.domain}::{function.name}",
        tuple(Port(v.name or "", "optional") for v in function.inputs),
        tuple(Port(v.name or "", "optional") for v in function.outputs),
        {k: _plain(a.value) for k, a in function.attributes.items()},
    )


def table_interface(name: str, table: Mapping[str, Any]) -> Interface:
    """The interface written as `{inputs = ["x", "bias?", "rest*"], outputs = ["y"], attributes = {stride =
    1}}`.

    `?` marks an optional port, `*` a variadic one; an attribute's default may be "absent".
    """

    def port(text: str) -> Port:
        kind = {"?": "optional", "*": "variadic"}.get(text[-1], "single")
        return Port(text if kind == "single" else text[:-1], kind)

    attributes = {k: None if v == ABSENT else _plain(v) for k, v in table.get("attributes", {}).items()}
    return Interface(
        name,
        tuple(map(port, table.get("inputs", ()))),
        tuple(map(port, table.get("outputs", ()))),
        attributes,
    )


def operator_name(node: ir.Node) -> str:
    """ "Conv", or "domain::Name" outside the standard domain."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


class Call:
    """One node through its interface. What a quantity is computed from."""

    def __init__(self, node: ir.Node, interface: Interface) -> None:
        self.node = node
        self.interface = interface

    @cached_property
    def input_values(self) -> dict[str, tuple[ir.Value, ...]]:
        return _bind(self.interface.inputs, self.node.inputs)

    @cached_property
    def output_values(self) -> dict[str, tuple[ir.Value, ...]]:
        return _bind(self.interface.outputs, self.node.outputs)

    def values(self, port: str) -> tuple[ir.Value, ...]:
        """The values at a port, inputs before outputs where both have the name; none where it is left out."""
        return self.input_values.get(port, ()) + self.output_values.get(port, ())

    def value(self, port: str) -> ir.Value | None:
        """The first value at a port, or None where it is left out."""
        return next(iter(self.values(port)), None)

    def input(self, index: int = 0) -> ir.Value | None:
        """The value at an input position."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def output(self, index: int = 0) -> ir.Value:
        """The value at an output position."""
        return self.node.outputs[index]

    def ports(self) -> Iterator[tuple[str, ir.Value]]:
        """Every value that is there with the name of its port, inputs first."""
        for bound in (self.input_values, self.output_values):
            for name, values in bound.items():
                for value in values:
                    yield name, value

    def attribute(self, name: str) -> Any:
        """An attribute's plain value, else its default, else None; a bool where the default is one (ONNX has
        none)."""
        default = self.interface.attributes.get(name)
        value = g.attribute(self.node, name, default)
        return bool(value) if isinstance(default, bool) else value


def _bind(formals: Sequence[Port], actual: Sequence[ir.Value | None]) -> dict[str, tuple[ir.Value, ...]]:
    bound: dict[str, tuple[ir.Value, ...]] = {}
    for i, port in enumerate(formals):
        mine = actual[i:] if port.kind == "variadic" else actual[i : i + 1]
        bound[port.name] = tuple(v for v in mine if v is not None and v.name != "")
    return bound


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


# DequantizeLinear takes integers of 32 bits at most; the function, those of 64: a bias beside int16 activations.
DEQUANTIZE = frozenset({"DequantizeLinear", "tapeout::DequantizeLong"})


class Storage(NamedTuple):
    """How the tensor of a port is stored: its dtype behind DequantizeLinear/QuantizeLinear, and its
    quantization.

    `scale` and `zero_point` are None where they are computed; `axis` is None for one scale per tensor.
    """

    value: ir.Value
    dtype: ir.DataType | None
    quantized: bool = False
    scale: ir.Value | None = None
    zero_point: ir.Value | None = None
    axis: int | None = None

    @property
    def grid(self) -> tuple[float, int]:
        """Scale and zero point of a tensor with one of each, x = (q - zero) * scale; 1 and 0 where it holds reals
        or has several."""
        scale, zero = g.scalar(self.scale), g.scalar(self.zero_point)
        return (1.0, 0) if scale is None else (float(scale), int(zero or 0))


class Activation(NamedTuple):
    """An activation that a kernel computes together with what it is named for: Relu, or Clip with these
    bounds."""

    op: str
    low: float | None = None
    high: float | None = None

    def matches(self, node: ir.Node) -> bool:
        """Whether `node` is this activation."""
        if node.domain != "" or node.op_type != self.op:
            return False
        if self.op != "Clip":
            return True
        bounds = [*node.inputs[1:3], None, None][:2]
        numbers = [None if v is None else g.scalar(v) for v in bounds]
        if any(v is not None and n is None for v, n in zip(bounds, numbers, strict=True)):
            return False
        return [None if n is None else float(n) for n in numbers] == [self.low, self.high]


def fused_activation(value: ir.Value, fuses: Sequence[Activation]) -> ir.Node | None:
    """The activation among `fuses` that alone reads `value`, else None."""
    reader = g.only_use(value) if fuses else None
    if reader is None or reader.inputs[0] is not value or not any(a.matches(reader) for a in fuses):
        return None
    return reader


def storage(value: ir.Value, *, output: bool = False, fuses: Sequence[Activation] = ()) -> Storage:
    """What `value` is stored as: behind its DequantizeLinear, or, for a node's output, after its
    QuantizeLinear, where one of the activations `fuses` may stand between."""
    if output:
        reader = fused_activation(value, fuses)
        if reader is not None and (behind := storage(reader.outputs[0], output=True)).quantized:
            return behind
        uses = [u.node for u in value.uses()]
        quantize = uses[0] if len(uses) == 1 and not value.is_graph_output() else None
        if quantize is None or quantize.domain != "" or quantize.op_type != "QuantizeLinear":
            return Storage(value, value.dtype)
        return _quantized(quantize, quantize.outputs[0])
    dequantize = value.producer()
    if dequantize is None or operator_name(dequantize) not in DEQUANTIZE or dequantize.inputs[0] is None:
        return Storage(value, value.dtype)
    return _quantized(dequantize, dequantize.inputs[0])


def _quantized(node: ir.Node, stored: ir.Value) -> Storage:
    scale = node.inputs[1]
    zero_point = node.inputs[2] if len(node.inputs) > 2 else None
    per_axis = g.rank(scale) not in (0, None) and g.static_dims(scale) != (1,)
    default = 1 if node.domain == "" else 0
    axis = int(g.attribute(node, "axis", default)) if per_axis else None
    return Storage(stored, stored.dtype, True, scale, zero_point, axis)
