"""Element by element: programs of `map` launches."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir

from tapeout.sdk import graph as g
from tapeout.targets.nvidia.lower.builder import Builder, broadcast, dtype
from tapeout.targets.nvidia.programs import Program, is_operand

# Constants of this many elements at most are numbers in the program where all of them are the same.
UNIFORM = 4096
X, Y, Z = ("x0",), ("x1",), ("x2",)


def number(value: float | int) -> Program:
    """The word of a number."""
    return (repr(value if isinstance(value, int) else float(value)),)


def truth(value: bool) -> Program:
    """The words of a truth value."""
    return ("1", "1" if value else "0", "eq")


def sigmoid(x: Program) -> Program:
    """1 / (1 + exp(-x))"""
    return ("1.0", "1.0", *x, "neg", "exp", "add", "div")


def softplus(x: Program) -> Program:
    """max(x, 0) + log(1 + exp(-|x|))"""
    return (*x, "0.0", "max", *x, "abs", "neg", "exp", "log1p", "add")


def clamped(x: Program, low: float, high: float) -> Program:
    return (*x, *number(low), "max", *number(high), "min")


# Operators that are a program of their operands alone.
PROGRAMS: dict[str, Program] = {
    "Add": (*X, *Y, "add"),
    "Sub": (*X, *Y, "sub"),
    "Mul": (*X, *Y, "mul"),
    "Div": (*X, *Y, "div"),
    "Pow": (*X, *Y, "pow"),
    "Neg": (*X, "neg"),
    "Sign": ("0", *X, "lt", "1", *X, "0", "lt", "-1", "0", "where", "where"),
    "Abs": (*X, "abs"),
    "Exp": (*X, "exp"),
    "Log": (*X, "log"),
    "Sqrt": (*X, "sqrt"),
    "Reciprocal": ("1.0", *X, "div"),
    "Sin": (*X, "sin"),
    "Cos": (*X, "cos"),
    "Erf": (*X, "erf"),
    "Floor": (*X, "floor"),
    "Ceil": (*X, "ceil"),
    "Round": (*X, "rint"),
    "Sigmoid": sigmoid(X),
    "Tanh": (*X, "tanh"),
    "Softplus": softplus(X),
    "Softsign": (*X, "1.0", *X, "abs", "add", "div"),
    "Mish": (*X, *softplus(X), "tanh", "mul"),
    "HardSwish": (*X, *clamped((*X, "6.0", "div", "0.5", "add"), 0, 1), "mul"),
    "And": (*X, *Y, "and"),
    "Or": (*X, *Y, "or"),
    "Xor": (*X, *Y, "xor"),
    "Not": (*X, "not"),
    "Equal": (*X, *Y, "eq"),
    "Less": (*X, *Y, "lt"),
    "LessOrEqual": (*X, *Y, "le"),
    "Greater": (*Y, *X, "lt"),
    "GreaterOrEqual": (*Y, *X, "le"),
    "Where": (*X, *Y, *Z, "where"),
    "IsNaN": (*X, *X, "eq", "not"),
}


def _relu(node: ir.Node) -> Program:
    zero = "0" if node.inputs[0] is not None and _integer(node.inputs[0]) else "0.0"
    return (*X, zero, "max")


def _leaky_relu(node: ir.Node) -> Program:
    slope = number(g.attribute(node, "alpha", 0.01))
    return (*X, "0.0", "lt", *X, *slope, "mul", *X, "where")


def _prelu(node: ir.Node) -> Program:
    return (*X, "0.0", "lt", *X, *Y, "mul", *X, "where")


def _elu(node: ir.Node) -> Program:
    alpha = number(g.attribute(node, "alpha", 1.0))
    return (*X, "0.0", "lt", *alpha, *X, "0.0", "min", "exp", "1.0", "sub", "mul", *X, "where")


def _hard_sigmoid(node: ir.Node) -> Program:
    alpha, beta = number(g.attribute(node, "alpha", 0.2)), number(g.attribute(node, "beta", 0.5))
    return clamped((*X, *alpha, "mul", *beta, "add"), 0, 1)


def _gelu(node: ir.Node) -> Program:
    if g.attribute(node, "approximate", "none") == "tanh":
        cubic = (
            *X,
            *X,
            *X,
            *X,
            "mul",
            "mul",
            "0.044715",
            "mul",
            "add",
            *number(math.sqrt(2 / math.pi)),
            "mul",
        )
        return (*X, "0.5", "mul", *cubic, "tanh", "1.0", "add", "mul")
    return (*X, "0.5", "mul", *X, *number(math.sqrt(0.5)), "mul", "erf", "1.0", "add", "mul")


def _clip(node: ir.Node) -> Program:
    low, high = (*node.inputs, None, None)[1:3]
    made: Program = X
    for index, (bound, word) in enumerate(((low, "max"), (high, "min")), 1):
        made = (*made, f"x{index}", word) if bound is not None else made
    return made


def _swish(node: ir.Node) -> Program:
    return (*X, *sigmoid((*X, *number(g.attribute(node, "alpha", 1.0)), "mul")), "mul")


def _cast(node: ir.Node) -> Program:
    return (
        (*X, f"cast.{dtype(node.outputs[0])}") if dtype(node.outputs[0]) != "bool" else (*X, "0", "eq", "not")
    )


def _chain(word: str) -> Callable[[ir.Node], Program]:
    def made(node: ir.Node) -> Program:
        program: Program = X
        for index in range(1, len(node.inputs)):
            program = (*program, f"x{index}", word)
        return program

    return made


MADE: dict[str, Callable[[ir.Node], Program]] = {
    "Relu": _relu,
    "LeakyRelu": _leaky_relu,
    "PRelu": _prelu,
    "Elu": _elu,
    "HardSigmoid": _hard_sigmoid,
    "Gelu": _gelu,
    "Clip": _clip,
    "Swish": _swish,
    "Cast": _cast,
    "Max": _chain("max"),
    "Min": _chain("min"),
    "Sum": _chain("add"),
}


def element_wise(b: Builder, node: ir.Node) -> None:
    """Op(x, ...) -> a map of its program; operands that are one number become words of it."""
    program = PROGRAMS.get(node.op_type) or MADE[node.op_type](node)
    values = [v for v in node.inputs if v is not None]
    if node.op_type == "Clip":  # an optional bound in the middle
        values = list(node.inputs)  # type: ignore[arg-type]
    words: list[Program] = []
    reads: list[int] = []
    for value in values:
        constant = uniform(value)
        if value is None or constant is not None:
            words.append(
                X if constant is None else truth(bool(constant)) if _boolean(value) else number(constant)
            )
            continue
        index = b.read(value)
        if index not in reads:
            reads.append(index)
        words.append((f"x{reads.index(index)}",))
    made = tuple(w for word in program for w in (words[int(word[1:])] if is_operand(word) else (word,)))
    launch_map(b, node, reads, b.output(node.outputs[0]), made)


def launch_map(b: Builder, node: ir.Node, reads: list[int], target: int, program: Program) -> None:
    """Append a map; its numbers are the sizes of the result, then the strides of each operand."""
    shape = b.tensors[target].shape
    numbers = [*shape]
    for index in reads:
        numbers += broadcast(b.tensors[index].shape, shape)
    b.launch("map", node, reads, [target], numbers, {"program": program, "rank": len(shape)})


def uniform(value: ir.Value | None) -> float | int | None:
    """The number that all elements of a constant are, else None."""
    array = g.constant(value, limit=UNIFORM)
    if array is None or not array.size:
        return None
    first = array.reshape(-1)[:1]
    if not (array == first).all():
        return None
    found = first[0]
    return int(found) if array.dtype.kind in "biu" else float(found)


def _boolean(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.BOOL


def _integer(value: ir.Value) -> bool:
    return value.dtype is not None and not value.dtype.is_floating_point()
