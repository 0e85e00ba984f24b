"""Makes a quantized TFLite operator as a node between DequantizeLinear and QuantizeLinear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.operators import DTYPES, Interface


@dataclass(frozen=True)
class T:
    """A tensor: quantized unless `scale` is None, constant where it has data (a number fills it)."""

    shape: tuple[int | str, ...]
    dtype: str = "int8"
    scale: float | tuple[float, ...] | None = 0.5
    zp: int = 0
    axis: int | None = None
    data: Any = None

    def array(self) -> np.ndarray[Any, Any]:
        return np.broadcast_to(np.asarray(self.data), self.shape).astype(DTYPES[self.dtype].numpy())


def ints(*values: int, dtype: str = "int32") -> T:
    return T((len(values),), dtype, None, data=values)


def tensor(value: ir.Value, spec: T) -> ir.Value:
    value.dtype, value.shape = DTYPES[spec.dtype], ir.Shape(spec.shape)
    if spec.data is not None:
        value.const_value = ir.tensor(spec.array())
    return value


def constant(name: str, array: Any) -> ir.Value:
    made = ir.tensor(np.asarray(array))
    return ir.Value(name=name, const_value=made, type=ir.TensorType(made.dtype), shape=made.shape)  # type: ignore[arg-type]


def scale_and_zero(name: str, spec: T) -> list[ir.Value]:
    scale = np.asarray(spec.scale, np.float32)
    zero = np.full(scale.shape, spec.zp, DTYPES[spec.dtype].numpy())
    return [constant(f"{name}.scale", scale), constant(f"{name}.zero", zero)]


def quantize(value: ir.Value, spec: T, op: str, name: str) -> ir.Node:
    attributes = {} if spec.axis is None else {"axis": spec.axis}
    return ir.node(op, [value, *scale_and_zero(name, spec)], attributes)


def build(interface: Interface, ports: dict[str, Any], attributes: dict[str, Any]) -> ir.Node:
    """The node between DequantizeLinear and QuantizeLinear; a list of tensors at a variadic port."""
    inputs: list[ir.Value | None] = []
    for port in interface.inputs:
        specs = ports.get(port.name)
        for i, spec in enumerate(specs if isinstance(specs, list) else [specs]):
            name = f"{port.name}{i}"
            if spec is None:
                inputs.append(None)
                continue
            value = tensor(ir.Value(name=name), spec)
            if spec.scale is not None:
                value = quantize(value, spec, "DequantizeLinear", name).outputs[0]
                value.dtype, value.shape, value.name = ir.DataType.FLOAT, ir.Shape(spec.shape), f"{name}.real"
            inputs.append(value)
    (port,) = interface.outputs
    specs = ports[port.name] if isinstance(ports[port.name], list) else [ports[port.name]]
    node = ir.node(interface.name, inputs, attributes, domain="tflite", num_outputs=len(specs), name="it")
    for i, (value, spec) in enumerate(zip(node.outputs, specs, strict=True)):
        value.name = f"y{i}"
        if spec.scale is None:
            tensor(value, spec)
        else:
            value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape(spec.shape)
            tensor(quantize(value, spec, "QuantizeLinear", f"y{i}").outputs[0], spec)
    return node
