"""How much work a node is: multiply-accumulates where it has any, elements otherwise."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from tapeout.compiler.ir import graph as g

# Views and questions about shapes move no data; control flow is counted by the nodes inside.
FREE = frozenset(
    {
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Identity",
        "Shape",
        "Size",
        "If",
        "Loop",
        "Scan",
        "Constant",
    }
)
CONVOLUTIONS = frozenset({"Conv", "ConvInteger", "QLinearConv", "DeformConv"})
POOLS = frozenset({"MaxPool", "AveragePool", "LpPool"})
LAST = re.compile(r"N(|H|DH)WC$")  # our channels-last functions are named after the operator they follow
RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
MATRIX = frozenset({"MatMul", "MatMulInteger", "QLinearMatMul", "Gemm", "FullyConnected"})

_ARITHMETIC: dict[type[ast.AST], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.floordiv,
}


def operations(node: ir.Node, assume: int | None = None) -> int | None:
    """Multiply-accumulates of convolutions, matrix products, attention and recurrent layers; elements of the
    output for anything else, of the input for reductions.

    `assume` stands for every free dimension; without it a node with an unknown dimension has None.
    """
    try:
        return _count(node, lambda value: _sizes(value, assume))
    except LookupError:
        return None


def _count(node: ir.Node, shape: Callable[[ir.Value | None], tuple[int, ...]]) -> int:
    inputs = node.inputs
    op = LAST.sub("", node.op_type)
    if op in FREE:
        return 0
    if op in CONVOLUTIONS:
        weights = shape(inputs[3] if op == "QLinearConv" else inputs[1])
        return math.prod(shape(node.outputs[0])) * math.prod(weights) // max(weights[0], 1)
    if op == "ConvTranspose":
        x, weights = shape(inputs[0]), shape(inputs[1])
        channels = x[-1] if op != node.op_type else x[1]
        return math.prod(x) // max(channels, 1) * math.prod(weights)
    if op in MATRIX:
        a = shape(inputs[0])
        inner = a[0] if op == "Gemm" and g.attribute(node, "transA", 0) else a[-1]
        return math.prod(shape(node.outputs[0])) * inner
    if op == "Einsum":
        return _einsum(node, shape)
    if op == "Attention":
        past = shape(inputs[4])[-2] if len(inputs) > 4 and inputs[4] is not None else 0
        keys = shape(inputs[1])[-2] + past
        return (math.prod(shape(inputs[0])) + math.prod(shape(node.outputs[0]))) * keys
    if op in RECURRENT:
        steps = math.prod(shape(inputs[0])[:2])
        return steps * (math.prod(shape(inputs[1])) + math.prod(shape(inputs[2])))
    if op in POOLS:
        window: tuple[int, ...] = g.attribute(node, "kernel_shape", ())
        return math.prod(shape(node.outputs[0])) * math.prod(window)
    if op.startswith(("Reduce", "GlobalAverage", "GlobalMax", "GlobalLp", "Arg")):
        return math.prod(shape(inputs[0]))
    return math.prod(shape(node.outputs[0])) if node.outputs else 0


def _einsum(node: ir.Node, shape: Callable[[ir.Value | None], tuple[int, ...]]) -> int:
    terms = str(g.attribute(node, "equation", "")).replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, value in zip(terms, node.inputs, strict=True):
        dims = list(shape(value))
        head, dots, tail = term.partition("...")
        hidden = len(dims) - len(head) - len(tail)
        labels = [*head, *(f"...{hidden - i}" for i in range(hidden if dots else 0)), *tail]
        for label, size in zip(labels, dims, strict=False):
            sizes[label] = max(size, sizes.get(label, 1))
    return math.prod(sizes.values())


def _sizes(value: ir.Value | None, assume: int | None) -> tuple[int, ...]:
    """The dimensions with free ones replaced by `assume`; LookupError where one stays unknown."""
    shape = g.dims(value)
    if shape is None:
        raise LookupError
    return tuple(d if isinstance(d, int) else _evaluate(d, assume) for d in shape)


def _evaluate(text: str, assume: int | None) -> int:
    if assume is None:
        raise LookupError
    try:
        return max(_arithmetic(ast.parse(text, mode="eval").body, assume), 0)
    except (SyntaxError, ArithmeticError, ValueError, RecursionError, KeyError):
        return assume


def _arithmetic(tree: ast.AST, assume: int) -> int:
    if isinstance(tree, ast.Constant) and isinstance(tree.value, int):
        return tree.value
    if isinstance(tree, ast.Name):
        return assume
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
        return -_arithmetic(tree.operand, assume)
    if isinstance(tree, ast.BinOp):
        step: Any = _ARITHMETIC[type(tree.op)]
        return int(step(_arithmetic(tree.left, assume), _arithmetic(tree.right, assume)))
    raise ValueError
