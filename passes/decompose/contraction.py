"""Products over named axes and general matrix products, in terms of MatMul, Mul and ReduceSum.

Einsum(x, y, ..., "ab,bc->ac")   -> pairwise: sums over axes that nothing else names, MatMul over shared ones
Gemm(A, B, C)                    -> alpha MatMul(A', B') + beta C
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.rewriting import Builder, NodeRule


class Term:
    """A value and the label of each of its axes."""

    def __init__(self, value: Any, labels: Sequence[str]) -> None:
        self.value, self.labels = value, list(labels)

    def dim(self, label: str) -> int | str:
        shape = g.dims(self.value)
        return "?" if shape is None else shape[self.labels.index(label)]


def parse(equation: str, ranks: Sequence[int]) -> tuple[list[list[str]], list[str]] | str:
    """The labels of each operand and of the result; an ellipsis is labels "...0", "...1" from the right."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        return f"{len(terms)} terms for {len(ranks)} operands"
    operands = []
    longest = 0
    for term, rank in zip(terms, ranks, strict=True):
        front, dots, back = term.partition("...")
        count = rank - len(front) - len(back)
        if count < 0 or (count and not dots):
            return f"term '{term}' does not fit an operand of {rank} dimensions"
        longest = max(longest, count)
        operands.append([*front, *(f"...{i}" for i in reversed(range(count))), *back])
    every = [f"...{i}" for i in reversed(range(longest))]
    if arrow:
        front, dots, back = right.partition("...")
        return operands, [*front, *(every if dots else []), *back]
    flat = [label for o in operands for label in o if not label.startswith("...")]
    return operands, every + sorted(label for label in set(flat) if flat.count(label) == 1)


class Einsum(NodeRule):
    """Einsum(x, y, ...) -> sums, transposes, MatMul and Mul, two operands at a time"""

    ops = ("Einsum",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        ranks = [g.rank(v) for v in node.inputs]
        if any(r is None for r in ranks):
            return "a rank is not known"
        parsed = parse(g.attribute(node, "equation"), [r for r in ranks if r is not None])
        if isinstance(parsed, str):
            return parsed
        operands, result = parsed
        if len(set(result)) != len(result):
            return "the result names an axis twice"
        terms: list[Term] = []
        for value, labels in zip(node.inputs, operands, strict=True):
            term = _diagonal(op, Term(value, labels))
            if isinstance(term, str):
                return term
            terms.append(term)
        done = terms[0]
        for i, term in enumerate(terms[1:], start=2):
            later = {label for t in terms[i:] for label in t.labels} | set(result)
            made = _contract(
                op,
                _summed(op, done, later | set(term.labels)),
                _summed(op, term, later | set(done.labels)),
                later,
            )
            if isinstance(made, str):
                return made
            done = made
        done = _summed(op, done, set(result))
        missing = [label for label in result if label not in done.labels]
        if missing:
            return f"no operand has axis '{missing[0]}'"
        out = _ordered(op, done, result).value
        return op.Identity(out) if out.producer() is None else out


def _diagonal(op: Builder, term: Term) -> Term | str:
    """Axes with the same label become one."""
    while len(set(term.labels)) < len(term.labels):
        label = next(x for x in term.labels if term.labels.count(x) > 1)
        first = term.labels.index(label)
        second = term.labels.index(label, first + 1)
        shape = g.dims(term.value)
        assert shape is not None
        size = shape[first]
        if not isinstance(size, int) or shape[second] != size:
            return "the size of a diagonal is not a number"
        full = [1] * len(shape)
        full[first] = full[second] = size
        eye = op.constant(np.eye(size, dtype=bool).reshape(full))
        kept = op.Where(eye, term.value, op.constant(0, term.value.dtype))
        labels = [x for i, x in enumerate(term.labels) if i != second]
        term = Term(op.ReduceSum(kept, np.array([second], np.int64), keepdims=0), labels)
    return term


def _summed(op: Builder, term: Term, needed: set[str]) -> Term:
    """Sum over the axes that nothing needs."""
    axes = [i for i, label in enumerate(term.labels) if label not in needed]
    if not axes:
        return term
    value = op.ReduceSum(term.value, np.array(axes, np.int64), keepdims=0)
    return Term(value, [label for label in term.labels if label in needed])


def _ordered(op: Builder, term: Term, labels: Sequence[str]) -> Term:
    """The axes in the order of `labels`, with axes of 1 where the term has none."""
    own = [label for label in labels if label in term.labels]
    perm = [term.labels.index(label) for label in own]
    value = term.value if perm == list(range(len(perm))) else op.Transpose(term.value, perm=perm)
    new = [i for i, label in enumerate(labels) if label not in term.labels]
    if new:
        value = op.Unsqueeze(value, np.array(new, np.int64))
    return Term(value, labels)


def _contract(op: Builder, a: Term, b: Term, later: set[str]) -> Term | str:
    """Multiply two terms and sum over the axes that both have and nothing later needs."""
    both = [label for label in a.labels if label in b.labels]
    summed = [label for label in both if label not in later]
    union = [*a.labels, *(label for label in b.labels if label not in a.labels)]
    if not summed:
        return Term(op.Mul(_ordered(op, a, union).value, _ordered(op, b, union).value), union)
    if any(a.dim(label) != b.dim(label) or a.dim(label) == "?" for label in summed):
        return "sizes of an axis to sum over are not known to be equal"
    batch = [label for label in union if label not in summed and (label in both or label.startswith("..."))]
    rows = [label for label in a.labels if label not in batch and label not in summed]
    columns = [label for label in b.labels if label not in batch and label not in summed]
    sizes = {label: a.dim(label) for label in [*rows, *summed]} | {label: b.dim(label) for label in columns}
    left = _grouped(op, _ordered(op, a, [*batch, *rows, *summed]), len(batch), (rows, summed), sizes)
    right = _grouped(op, _ordered(op, b, [*batch, *summed, *columns]), len(batch), (summed, columns), sizes)
    if left is None or right is None:
        return "the sizes of several axes are not numbers"
    product = op.MatMul(left, right)
    if len(rows) != 1 or len(columns) != 1:
        tail = [sizes[label] for label in [*rows, *columns]]
        shape = _target(len(batch), tail, g.dims(product))
        if shape is None:
            return "the sizes of several axes are not numbers"
        product = op.Reshape(product, shape)
    return Term(product, [*batch, *rows, *columns])


def _grouped(
    op: Builder, term: Term, batch: int, groups: tuple[list[str], list[str]], sizes: dict[str, int | str]
) -> Any:
    """The axes of each group made one, or None where the sizes are not known."""
    if len(groups[0]) == 1 and len(groups[1]) == 1:
        return term.value
    tail: list[int | str] = []
    for group in groups:
        numbers = [sizes[label] for label in group]
        tail.append(math.prod(int(n) for n in numbers) if all(isinstance(n, int) for n in numbers) else
                    str(numbers[0]) if len(numbers) == 1 else "*")  # fmt: skip
    shape = _target(batch, tail, g.dims(term.value))
    return None if shape is None else op.Reshape(term.value, shape)


def _target(batch: int, tail: Sequence[int | str], shape: g.Shape | None) -> np.ndarray[Any, Any] | None:
    """A Reshape's constant shape: batch axes copied, at most one of the others left to be computed."""
    if sum(isinstance(d, str) for d in tail) > 1:
        return None
    return np.array([0] * batch + [d if isinstance(d, int) else -1 for d in tail], np.int64)


class Gemm(NodeRule):
    """Gemm(A, B, C) -> alpha MatMul(A', B') + beta C"""

    ops = ("Gemm",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        a, b, c = (*node.inputs, None)[:3]
        alpha, beta = g.attribute(node, "alpha", 1.0), g.attribute(node, "beta", 1.0)
        if a is None or a.dtype is None:
            return "the type is not known"
        if not a.dtype.is_floating_point() and not (float(alpha).is_integer() and float(beta).is_integer()):
            return "fractional factors of integers"
        a = op.Transpose(a, perm=[1, 0]) if g.attribute(node, "transA", 0) else a
        b = op.Transpose(b, perm=[1, 0]) if g.attribute(node, "transB", 0) else b
        y = op.MatMul(a, b)
        if alpha != 1.0:
            y = op.Mul(y, alpha)
        if c is None or beta == 0.0:
            return y
        return op.Add(y, c if beta == 1.0 else op.Mul(c, beta))


class GeneralGemm(Gemm):
    """A Gemm that is no fully connected layer (factors, a computed W, another bias) -> MatMul and Add"""

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        b, c = node.inputs[1], (*node.inputs, None)[2]
        count = (g.dims(node.outputs[0]) or ("?", "?"))[1]
        row = c is None or (g.is_constant(c) and g.dims(c) in ((count,), (1, count)))
        factors = g.attribute(node, "alpha", 1.0) == 1.0 and g.attribute(node, "beta", 1.0) == 1.0
        if factors and row and not g.attribute(node, "transA", 0) and g.is_constant(b):
            return None
        return super().rewrite(op, node)


CONTRACTIONS = (Einsum(), Gemm())
