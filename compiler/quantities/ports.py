"""Quantities of one port, written `PORT.NAME`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.operators import ABSENT, Call, dtype_name, storage, type_name
from tapeout.compiler.quantities.registry import own


def _stored(call: Call, port: str) -> ir.Value | None:
    value = call.value(port)
    return None if value is None else storage(value, output=port in call.output_values).value


def _data(call: Call, port: str, limit: int | None = None) -> np.ndarray[Any, Any] | None:
    return g.constant(_stored(call, port), limit)


@own("present", "PORT", port=True)
def _(call: Call, port: str) -> Any:
    """True where something is connected to the port."""
    return call.value(port) is not None


@own("count", "number of values", port=True)
def _(call: Call, port: str) -> Any:
    """How many values are at a variadic port."""
    return len(call.values(port))


@own("constant", "constant PORT", port=True)
def _(call: Call, port: str) -> Any:
    """True where every value at the port is an initializer (behind its DequantizeLinear); True where it is
    left out."""
    return all(g.is_constant(storage(v).value) for v in call.input_values.get(port, ()))


@own("value", "value", port=True)
def _(call: Call, port: str) -> Any:
    """The number in a constant of one element, a tuple of up to 64; "absent" where the port is left out."""
    if call.value(port) is None:
        return ABSENT
    array = _data(call, port, 64)
    if array is None:
        return None
    return array.reshape(()).item() if array.size == 1 else tuple(array.reshape(-1).tolist())


@own("rank", "rank", port=True)
def _(call: Call, port: str) -> Any:
    """Number of dimensions."""
    return g.rank(call.value(port))


@own("elements", "number of elements", port=True)
def _(call: Call, port: str) -> Any:
    """Number of elements."""
    shape = g.static_dims(call.value(port))
    return None if shape is None else math.prod(shape)


@own("dim.*", "dimension", port=True)
def _(call: Call, port: str, axis: str) -> Any:
    """One dimension; a negative axis counts from the end."""
    shape = g.dims(call.value(port))
    index = int(axis)
    if shape is None or not -len(shape) <= index < len(shape):
        return None
    size = shape[index]
    return size if isinstance(size, int) else None


@own("dim.max", "dimension", port=True)
def _(call: Call, port: str) -> Any:
    """The largest dimension."""
    shape = g.static_dims(call.value(port))
    return None if shape is None else max(shape, default=1)


@own("dim.static", "static shape of PORT", port=True)
def _(call: Call, port: str) -> Any:
    """True where every dimension is a number."""
    return all(g.static_dims(v) is not None for v in call.values(port))


@own("dim.dynamic", "number of dynamic dimensions", port=True)
def _(call: Call, port: str) -> Any:
    """How many dimensions are not numbers."""
    shape = g.dims(call.value(port))
    return None if shape is None else sum(not isinstance(d, int) for d in shape)


@own("dtype", "type", port=True)
def _(call: Call, port: str) -> Any:
    """The type in the graph, such as "float32"; "absent" where the port is left out."""
    value = call.value(port)
    return ABSENT if value is None else type_name(value)


@own("storage", "stored type", port=True)
def _(call: Call, port: str) -> Any:
    """The type behind DequantizeLinear or after QuantizeLinear; "absent" where the port is left out."""
    value = call.value(port)
    return ABSENT if value is None else dtype_name(storage(value, output=port in call.output_values).dtype)


@own("abs_max", "largest magnitude", port=True)
def _(call: Call, port: str) -> Any:
    """The largest absolute value in a constant; 0 where the port is left out."""
    if call.value(port) is None:
        return 0
    array = _data(call, port)
    return None if array is None else float(np.abs(array.astype(np.float64)).max(initial=0.0))


@own("abs_sum", "sum of absolute weights", port=True)
def _(call: Call, port: str) -> Any:
    """The largest sum of absolute values, less the zero point, over the outputs (axis 0) of a constant."""
    return _abs_sum(call, port, 0)


@own("abs_sum.*", "sum of absolute weights on axis", port=True)
def _(call: Call, port: str, axis: str) -> Any:
    """The same over the outputs along another axis."""
    return _abs_sum(call, port, int(axis))


def _abs_sum(call: Call, port: str, axis: int) -> float | None:
    array = _data(call, port)
    value = call.value(port)
    if array is None or value is None or not -array.ndim <= axis < array.ndim:
        return None
    wide = np.moveaxis(array, axis, 0).astype(np.float64).reshape(array.shape[axis], -1)
    zero = g.constant(storage(value).zero_point)
    if zero is not None:
        wide = wide - zero.astype(np.float64).reshape(-1, 1)
    return float(np.abs(wide).sum(axis=1).max(initial=0.0))
