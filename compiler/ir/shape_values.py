"""The numbers that integer tensors of shape arithmetic hold, as symbolic dimensions: Shape(x)[0] * 12 is
"12*N".

A known value is an array of objects (int or `Expr`) of the tensor's shape. Floats take part where they hold
whole numbers, as exporters compute sizes in floats. What is not known for every size is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir import kernels
from tapeout.compiler.ir.dimensions import Expr, Undecided, exact_divide, floor_divide, nonnegative
from tapeout.compiler.ir.kernels import Array, Declined

LIMIT = 256
KEY = "tapeout.known"
INTEGERS = frozenset({ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL})
FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE})
BOUNDS: dict[ir.DataType, int] = {
    ir.DataType.INT32: 2**31,
    ir.DataType.INT64: 2**63,
    ir.DataType.FLOAT: 2**24,
    ir.DataType.DOUBLE: 2**53,
}

Inputs: TypeAlias = Sequence[Array | None]


def known_value(value: ir.Value | None) -> Array | None:
    """The elements of a small integer tensor (or of whole floats): an array of ints and `Expr`, or None."""
    if value is None:
        return None
    found = value.meta.get(KEY)
    if found is None and value.const_value is not None and value.producer() is None:
        tensor = value.const_value
        if (value.dtype not in INTEGERS and value.dtype not in FLOATS) or tensor.size > LIMIT:
            return None
        array = tensor.numpy()
        if value.dtype in FLOATS:
            if tensor.size > 16 or not (np.isfinite(array).all() and (array == np.floor(array)).all()):
                return None
            array = array.astype(np.int64)
        found = value.meta[KEY] = array.astype(object)
    return found


def propagate(node: ir.Node, shapes: Sequence[Any]) -> None:
    """Set the known values of the outputs of `node` from those of its inputs, or from the input shapes."""
    rule = VALUES.get(node.op_type)
    if rule is None or node.domain != "":
        return
    if node.op_type in WHOLE and node.outputs[0].dtype in FLOATS:
        rule = WHOLE[node.op_type]
    if node.outputs[0].dtype not in BOUNDS and node.outputs[0].dtype != ir.DataType.BOOL:
        return
    inputs: list[Array | None] = []
    if node.op_type in ("Shape", "Size"):
        dims = shapes[0] if shapes else None
        if dims is None or (node.op_type == "Size" and None in dims):
            return
        inputs = [np.array([*dims, None], dtype=object)[:-1]]
    else:
        for value in node.inputs:
            array = known_value(value)
            if array is None and value is not None:
                return
            inputs.append(array)
    attributes = {name: g.attribute(node, name) for name in node.attributes}
    try:
        result = rule(*inputs, **attributes)
    except (Declined, Undecided, ArithmeticError, LookupError, TypeError, ValueError, AttributeError):
        return
    results = result if isinstance(result, list) else [result]
    for value, array in zip(node.outputs, results, strict=False):
        array = np.asarray(array, dtype=object)
        bound = 2 if value.dtype is None else BOUNDS.get(value.dtype, 2)
        elements = array.reshape(-1).tolist()
        if array.size <= LIMIT and all(
            isinstance(x, Expr) or (isinstance(x, int | np.integer) and abs(int(x)) < bound) for x in elements
        ):
            value.meta[KEY] = array


# --- arithmetic --------------------------------------------------------------------------------------------


def _elementwise(function: Callable[..., Any]) -> Callable[..., Array]:
    vectorized = np.frompyfunc(function, 2, 1)

    def rule(a: Array, b: Array) -> Array:
        return np.asarray(vectorized(a, b), dtype=object)

    return rule


def _map(function: Callable[[Any], Any]) -> Callable[..., Array]:
    vectorized = np.frompyfunc(function, 1, 1)

    def rule(x: Array, **_: Any) -> Array:
        return np.asarray(vectorized(x), dtype=object)

    return rule


def _divide(a: Any, b: Any) -> Any:
    """Div towards zero: exact, or the floor where nothing is negative."""
    exact = None if b == 0 else exact_divide(a, b)
    if exact is not None:
        return exact
    if not nonnegative(a) or not nonnegative(b) or (isinstance(b, int) and b == 0):
        raise Undecided
    return floor_divide(a, b)


def _undecided() -> Any:
    raise Undecided


def _modulo(a: Any, b: Any) -> Any:
    if not nonnegative(a) or not isinstance(b, int) or b <= 0:
        raise Undecided
    return a - floor_divide(a, b) * b


def _least(x: Expr) -> int | None:
    """A number that x is never below where every size is at least 1, so that a product of sizes is too."""
    total = 0
    for monomial, k in x.terms:
        if k < 0 and monomial:
            return None
        total += k if all(isinstance(atom, str) for atom in monomial) else 0
    return total


def _sign(difference: Any) -> int | None:
    """1, 0 or -1 where the sign of `difference` is the same for all sizes >= 1, else None."""
    if not isinstance(difference, Expr):
        return int(difference > 0) - int(difference < 0)
    for sign in (1, -1):
        turned = difference * sign
        least = _least(turned) if isinstance(turned, Expr) else None
        if least is not None and least > 0:
            return sign
    return None


def _compare(test: Callable[[int], bool]) -> Callable[..., Array]:
    def function(a: Any, b: Any) -> bool:
        sign = _sign(a - b)
        if sign is None:
            raise Undecided
        return test(sign)

    return _elementwise(function)


def _larger(a: Any, b: Any) -> Any:
    sign = _sign(a - b)
    if sign is None:
        raise Undecided
    return a if sign >= 0 else b


def _smaller(a: Any, b: Any) -> Any:
    return b if _larger(a, b) is a and a is not b else a


def _variadic(function: Callable[..., Array]) -> Callable[..., Array]:
    def rule(first: Array, *rest: Array) -> Array:
        for x in rest:
            first = function(first, x)
        return first

    return rule


def _reduce(function: Callable[[Any, Any], Any], empty: int | None) -> Callable[..., Array]:
    def rule(
        x: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Array:
        if axes is None and noop_with_empty_axes:
            return x
        if x.ndim > 1 or (x.size == 0 and empty is None):
            raise Declined("only vectors")
        total: Any = empty
        for element in x.reshape(-1).tolist():
            total = element if total is None else function(total, element)
        return np.array([total] if keepdims and x.ndim else total, dtype=object)

    return rule


def _cast(x: Array, *, to: int, **_: Any) -> Array:
    dtype = ir.DataType(to)
    if dtype == ir.DataType.BOOL:
        signs = [_sign(e) for e in x.reshape(-1).tolist()]
        if None in signs:
            raise Undecided
        return np.array([int(s != 0) for s in signs if s is not None], dtype=object).reshape(x.shape)
    if dtype not in BOUNDS:
        raise Declined("not a type of shape arithmetic")
    return x


def _where(condition: Array, x: Array, y: Array) -> Array:
    return np.where(condition.astype(bool), x, y)


def _range(start: Array, limit: Array, delta: Array) -> Array:
    a, b, step = (x.reshape(()).item() for x in (start, limit, delta))
    if any(isinstance(v, Expr) for v in (a, b, step)) or step == 0 or abs(b - a) > LIMIT * abs(step):
        raise Undecided
    return np.array(list(range(a, b, step)), dtype=object)


def _constant_of_shape(target: Array, *, value: ir.TensorProtocol | None = None) -> Array:
    sizes = [int(d) for d in target.tolist() if not isinstance(d, Expr)]
    if len(sizes) != target.size or int(np.prod(sizes)) > LIMIT:
        raise Undecided
    fill = 0.0 if value is None else value.numpy().reshape(-1)[0].item()
    if fill != int(fill):
        raise Declined("not a whole number")
    return np.full(sizes, int(fill), dtype=object)


def _plain(kernel: Callable[..., Any], *numbers: int) -> Callable[..., Any]:
    """A structural kernel whose inputs at `numbers` are indices, which must be plain numbers."""

    def rule(*inputs: Array | None, **attributes: Any) -> Any:
        ready = list(inputs)
        for i in numbers:
            if i < len(ready) and ready[i] is not None:
                array = ready[i]
                assert array is not None
                if any(isinstance(x, Expr) for x in array.reshape(-1).tolist()):
                    raise Undecided
                ready[i] = array.astype(np.int64)
        return kernel(*ready, **attributes)

    return rule


def _small(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Expand and Tile, where the result stays small."""

    def rule(x: Array, target: Array) -> Any:
        if int(np.prod([max(1, t) for t in target.tolist()])) * max(1, x.size) > LIMIT:
            raise Declined("too large")
        return kernel(x, target)

    return _plain(rule, 1)


def _exactly(a: Any, b: Any) -> Any:
    quotient = None if b == 0 else exact_divide(a, b)
    if quotient is None:
        raise Undecided
    return quotient


# What differs on floats: only whole results are known.
WHOLE: dict[str, Callable[..., Any]] = {"Div": _elementwise(_exactly), "Mod": lambda *_, **__: _undecided()}

VALUES: dict[str, Callable[..., Any]] = {
    "Shape": lambda x, *, start=0, end=None: x[slice(*kernels.clamped(start, end, len(x)))],
    "Size": lambda x: np.multiply.reduce(x) if len(x) else 1,
    "Identity": lambda x: x,
    "Gather": _plain(kernels.gather, 1),
    "GatherElements": _plain(kernels.gather_elements, 1),
    "GatherND": _plain(kernels.gather_nd, 1),
    "ScatterND": _plain(kernels.scatter_nd, 1),
    "Concat": kernels.concat,
    "Slice": _plain(kernels.slice_, 1, 2, 3, 4),
    "Split": _plain(kernels.split, 1),
    "Unsqueeze": _plain(kernels.unsqueeze, 1),
    "Squeeze": _plain(kernels.squeeze, 1),
    "Reshape": _plain(kernels.reshape, 1),
    "Flatten": kernels.flatten,
    "Transpose": kernels.transpose,
    "Expand": _small(kernels.expand),
    "Tile": _small(kernels.tile),
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Where": _where,
    "Cast": _cast,
    "Add": _elementwise(lambda a, b: a + b),
    "Sub": _elementwise(lambda a, b: a - b),
    "Mul": _elementwise(lambda a, b: a * b),
    "Div": _elementwise(_divide),
    "Mod": _elementwise(_modulo),
    "Neg": _map(lambda a: a * -1),
    "Abs": _map(lambda a: a if nonnegative(a) else abs(a)),
    "Floor": _map(lambda a: a),
    "Ceil": _map(lambda a: a),
    "Round": _map(lambda a: a),
    "Min": _variadic(_elementwise(_smaller)),
    "Max": _variadic(_elementwise(_larger)),
    "Equal": _compare(lambda s: s == 0),
    "Less": _compare(lambda s: s < 0),
    "LessOrEqual": _compare(lambda s: s <= 0),
    "Greater": _compare(lambda s: s > 0),
    "GreaterOrEqual": _compare(lambda s: s >= 0),
    "And": _elementwise(lambda a, b: int(bool(a) and bool(b))),
    "Or": _elementwise(lambda a, b: int(bool(a) or bool(b))),
    "Not": _map(lambda a: int(not a)),
    "ReduceProd": _reduce(lambda a, b: a * b, 1),
    "ReduceSum": _reduce(lambda a, b: a + b, 0),
    "ReduceMax": _reduce(_larger, None),
    "ReduceMin": _reduce(_smaller, None),
}
