"""Programs of element-wise arithmetic: what `map` launches and epilogues of products compute on each element.

A program is a tuple of words in postfix order: `x0`, `x1`, ... are the operands, a number is itself, `cast.TYPE`
converts, any other word is an operator of `OPERATORS`. Half-precision operands are widened to float32 when they are
read, and the result is rounded once, when it is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from tapeout.sdk import InvalidModelError

Array = np.ndarray[Any, Any]
Program = tuple[str, ...]


class Operator(NamedTuple):
    """How many operands, what it is in NumPy, and in Triton ("{0}" is the first operand)."""

    arity: int
    numpy: Callable[..., Any]
    triton: str


_erf = np.vectorize(math.erf, otypes=[np.float64])


def erf(x: Array) -> Array:
    return np.asarray(_erf(x)).astype(x.dtype)


def divide(a: Any, b: Any) -> Any:
    """Integers are divided toward zero."""
    if np.issubdtype(np.result_type(a, b), np.integer):
        quotient = np.floor_divide(np.abs(a), np.where(np.abs(b) == 0, 1, np.abs(b)))
        return (np.sign(a) * np.sign(b) * quotient).astype(np.result_type(a, b))
    return np.divide(a, b)


def power(a: Any, b: Any) -> Any:
    return np.power(a, np.asarray(b).astype(np.asarray(a).dtype))


# The comparisons with themselves find NaN: what is not a number stays none.
OPERATORS: dict[str, Operator] = {
    "add": Operator(2, np.add, "{0} + {1}"),
    "sub": Operator(2, np.subtract, "{0} - {1}"),
    "mul": Operator(2, np.multiply, "{0} * {1}"),
    "div": Operator(2, divide, "{0} / {1}"),
    "pow": Operator(2, power, "power({0}, {1})"),
    "max": Operator(2, np.maximum, "tl.maximum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)"),
    "min": Operator(2, np.minimum, "tl.minimum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)"),
    "neg": Operator(1, np.negative, "-{0}"),
    "abs": Operator(1, np.abs, "tl.abs({0})"),
    "exp": Operator(1, np.exp, "tl.exp({0})"),
    "log": Operator(1, np.log, "tl.log({0})"),
    "log1p": Operator(1, np.log1p, "log1p({0})"),
    "tanh": Operator(1, np.tanh, "tanh({0})"),
    "sqrt": Operator(1, np.sqrt, "tl.sqrt_rn({0})"),
    "sin": Operator(1, np.sin, "tl.sin({0})"),
    "cos": Operator(1, np.cos, "tl.cos({0})"),
    "erf": Operator(1, erf, "tl.erf({0})"),
    "floor": Operator(1, np.floor, "tl.floor({0})"),
    "ceil": Operator(1, np.ceil, "tl.ceil({0})"),
    "rint": Operator(1, np.rint, "rint({0})"),
    "eq": Operator(2, np.equal, "{0} == {1}"),
    "lt": Operator(2, np.less, "{0} < {1}"),
    "le": Operator(2, np.less_equal, "{0} <= {1}"),
    "and": Operator(2, np.logical_and, "{0} & {1}"),
    "or": Operator(2, np.logical_or, "{0} | {1}"),
    "xor": Operator(2, np.logical_xor, "{0} ^ {1}"),
    "not": Operator(1, np.logical_not, "{0} == 0"),
    "where": Operator(3, np.where, "tl.where({0}, {1}, {2})"),
}


def operands(program: Program) -> int:
    """How many operands a program names."""
    return max((int(w[1:]) + 1 for w in program if is_operand(w)), default=0)


def is_operand(word: str) -> bool:
    return word[0] == "x" and word[1:].isdigit()


def literal(word: str) -> float | int | None:
    """The number that a word is, if it is one."""
    try:
        return int(word)
    except ValueError:
        pass
    try:
        return float(word)
    except ValueError:
        return None


def renamed(program: Program, names: Sequence[Program]) -> Program:
    """`program` with each operand replaced by a program."""
    made: list[str] = []
    for word in program:
        made.extend(names[int(word[1:])] if is_operand(word) else (word,))
    return tuple(made)


def evaluate(program: Program, values: Sequence[Array]) -> Array:
    """What the program computes on these operands, broadcast together. Raises InvalidModelError where it is
    malformed."""
    stack: list[Any] = []
    for word in program:
        number = None if is_operand(word) else literal(word)
        if is_operand(word) and int(word[1:]) < len(values):
            stack.append(widened(values[int(word[1:])]))
        elif number is not None:
            stack.append(number)
        elif word.startswith("cast."):
            stack.append(widened(converted(np.asarray(stack.pop()), word.removeprefix("cast."))))
        elif word in OPERATORS and len(stack) >= OPERATORS[word].arity:
            operator = OPERATORS[word]
            taken = [stack.pop() for _ in range(operator.arity)][::-1]
            with np.errstate(all="ignore"):
                stack.append(operator.numpy(*taken))
        else:
            raise InvalidModelError(f"program '{' '.join(program)}': word '{word}' is out of place")
    if len(stack) != 1:
        raise InvalidModelError(f"program '{' '.join(program)}' leaves {len(stack)} values, expected 1")
    return np.asarray(stack[0])


def widened(array: Array) -> Array:
    """`array` as it is computed with: half precision becomes float32."""
    return array.astype(np.float32) if array.dtype in (np.float16, ml_dtypes.bfloat16) else array


def converted(array: Array, dtype: str) -> Array:
    """`array` in another type, as C converts."""
    kind = np.dtype(getattr(ml_dtypes, dtype) if dtype == "bfloat16" else dtype)
    with np.errstate(all="ignore"):
        return array.astype(kind)
