"""Rounding around a Concat as FakeQuantize alone, to real numbers.

    FakeQuantize(x, low, high, 0, 255) -> Convert -> Subtract(z) -> Multiply(s)
        ->  FakeQuantize(x, low, high, (0 - z) s, (255 - z) s)

The numbers are the same. Of the long form the plugin joins the zero points along the axis of the Concat, one for each
element, and the products behind it take none but one for all: it fails, or multiplies in real numbers. Of the short
form it makes codes with one zero point for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

# What moves elements, or stands between codes and real numbers.
PASSED = frozenset(
    {
        "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Slice", "StridedSlice", "Split", "VariadicSplit", "Broadcast",
        "Gather", "MaxPool", "DepthToSpace", "Concat", "Convert", "Subtract", "Multiply", "FakeQuantize",
    }
)  # fmt: skip


def rounded(made: Any) -> None:
    """Write the rounding before and behind every Concat of `made` in the short form."""
    joins = [op for op in made.get_ordered_ops() if op.get_type_name() == "Concat"]
    near: dict[str, Any] = {}
    for op in joins:
        for other in (*_reached(op, _before), *_reached(op, _behind)):
            if other.get_type_name() == "FakeQuantize":
                near[other.get_friendly_name()] = other
    for op in near.values():
        _fold(op)


def _before(op: Any) -> list[Any]:
    return [i.get_source_output().get_node() for i in op.inputs()]


def _behind(op: Any) -> list[Any]:
    return [i.get_node() for o in op.outputs() for i in o.get_target_inputs()]


def _reached(op: Any, step: Any) -> Iterator[Any]:
    """The operators that elements of `op` come from, or go to, without being computed with."""
    stack, seen = step(op), {op.get_friendly_name()}
    while stack:
        other = stack.pop()
        name = other.get_friendly_name()
        if name in seen or other.get_type_name() not in PASSED:
            continue
        seen.add(name)
        yield other
        stack += step(other)


def _fold(op: Any) -> None:
    """Take what makes real numbers of the codes of a FakeQuantize into it, where all that reads them does so."""
    from openvino import opset15

    codes = _behind(op)
    if len(codes) != 1 or codes[0].get_type_name() != "Convert":
        return
    for real in _behind(codes[0]):
        if real.get_type_name() != "Convert" or len(_behind(real)) != 1:
            continue
        (last,) = _behind(real)
        zero: float | None = 0.0
        if last.get_type_name() == "Subtract" and len(_behind(last)) == 1:
            zero = _number(last)
            (last,) = _behind(last)
        scale = _number(last) if last.get_type_name() == "Multiply" else None
        if zero is None or scale is None:
            continue
        low, high = (_constant(op.input_value(i).get_node()) for i in (3, 4))
        if low is None or high is None:
            continue
        inner = [op.input_value(i) for i in range(3)]
        ends = [
            opset15.constant(((v - np.float32(zero)) * np.float32(scale)).astype(np.float32))
            for v in (low, high)
        ]
        short = opset15.fake_quantize(*inner, *ends, op.get_attributes()["levels"])
        short.set_friendly_name(last.get_friendly_name())
        short.output(0).set_names(last.output(0).get_names())
        last.output(0).replace(short.output(0))


def _constant(op: Any) -> Any:
    """The numbers of a constant, or of one that is converted; None where it is computed."""
    if op.get_type_name() == "Convert":
        op = op.input_value(0).get_node()
    return op.get_data() if op.get_type_name() == "Constant" else None


def _number(op: Any) -> float | None:
    """The single number that `op` takes from a constant as its second operand."""
    found = _constant(op.input_value(1).get_node())
    return float(found.reshape(-1)[0]) if found is not None and found.size == 1 else None
