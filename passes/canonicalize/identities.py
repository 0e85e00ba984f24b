"""What does nothing goes, and what does one thing in two steps does it in one. Exact for every input.

    Identity(x) -> x                        Dropout(x) -> x                     Concat(x) -> x
    x + (-0.0), x - 0, x * 1, x / 1, x ** 1 -> x            Neg(Neg(x)) -> x    Relu(Relu(x)) -> Relu(x)
    Transpose(Transpose(x, p), q) -> Transpose(x, p[q])     Transpose(x, identity) -> x
    Slice, Pad, Expand, Tile, Split, Resize of nothing -> x
    Reduce over axes of one element -> x or Squeeze(x)      Where(true, x, y) -> x

x + 0.0 turns -0.0 into 0.0, so it goes only where x comes from a sum, whose zeros have no stated sign. x * 0
stays: it is NaN for infinity.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.shapes import dims_of, known_value
from tapeout.compiler.rewriting import Builder, NodeRule, Rule

# Operators whose result is a sum or a positive number: the sign of a zero in it is not stated.
SUMS = (
    *("Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum", "ReduceSum", "ReduceMean", "AveragePool"),
    *("GlobalAveragePool", "Exp", "Sigmoid", "Softmax", "BatchNormalization", "LayerNormalization"),
)


def same_shape(a: ir.Value | None, b: ir.Value | None) -> bool:
    """True where both shapes are known to be equal for every size of their symbols."""
    x, y = dims_of(a), dims_of(b)
    return x is not None and x == y and None not in x


def uniform(value: ir.Value | None, limit: int = 4096) -> float | int | bool | None:
    """The number that fills a constant, or None. The sign of a zero is kept; a mixture of both has none."""
    array = g.constant(value, limit=limit)
    if array is None or array.size == 0 or array.dtype.kind not in "biuf":
        return None
    first = array.reshape(-1)[0]
    if not (array == first).all():
        return None
    if array.dtype.kind == "f" and first == 0 and len(set(np.signbit(array).reshape(-1).tolist())) > 1:
        return None
    return first.item()  # type: ignore[no-any-return]


class DropIdentity(NodeRule):
    """Identity(x) -> x, but where a graph output must be held apart from an input, a constant or another
    output."""

    ops = ("Identity",)

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | None:
        x, y = node.inputs[0], node.outputs[0]
        if x is None:
            return None
        if y.is_graph_output():
            made = x.producer()
            if made is None or made.graph is not y.graph or x.is_graph_output():
                return None
        return x


class DropDropout(NodeRule):
    """Dropout(x) -> x at inference; the mask, where read, is all true."""

    ops = ("Dropout",)

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | Sequence[ir.Value] | str | None:
        x = node.inputs[0]
        training = node.inputs[2] if len(node.inputs) > 2 else None
        if x is None or (training is not None and g.scalar(training) is not False):
            return "it is in training mode, or may be"
        if len(node.outputs) == 1:
            return x
        mask = node.outputs[1]
        if not mask.uses() and not mask.is_graph_output():
            return x, mask
        yes = op.ConstantOfShape(op.Shape(x), value=ir.tensor(np.array([True])))
        return x, yes


class DropNeutral(NodeRule):
    """x + 0, x - 0, x * 1, x / 1, x ** 1 -> x where the constant does not broadcast x to a larger shape."""

    ops = ("Add", "Sub", "Mul", "Div", "Pow", "And", "Or")

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | str | None:
        a, b = node.inputs
        for x, c in ((a, b), (b, a)) if node.op_type in ("Add", "Mul", "And", "Or") else ((a, b),):
            number = uniform(c)
            if x is None or number is None or g.is_constant(x) or not self._neutral(node.op_type, number, x):
                continue
            if x.dtype == node.outputs[0].dtype and same_shape(x, node.outputs[0]):
                return x
        return None

    def _neutral(self, op_type: str, number: float | int | bool, x: ir.Value) -> bool:
        if op_type in ("And", "Or"):
            return number is (op_type == "And")
        if op_type in ("Mul", "Div", "Pow"):
            return number == 1
        if number != 0 or isinstance(number, int):
            return number == 0
        if op_type == "Sub":
            return not np.signbit(number)
        return bool(np.signbit(number)) or g.producer(x, *SUMS) is not None


class TwiceIsNone(NodeRule):
    """f(f(x)) -> x for Neg, Not and BitwiseNot."""

    ops = ("Neg", "Not", "BitwiseNot")

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | None:
        inner = g.producer(node.inputs[0], node.op_type)
        return None if inner is None else inner.inputs[0]


class TwiceIsOnce(NodeRule):
    """f(f(x)) -> f(x) for Relu, Abs, Floor, Ceil, Round and Sign."""

    ops = ("Relu", "Abs", "Floor", "Ceil", "Round", "Sign")

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | None:
        inner = g.producer(node.inputs[0], node.op_type)
        return None if inner is None else inner.outputs[0]


class MergeTransposes(NodeRule):
    """Transpose(Transpose(x, p), q) -> Transpose(x, p[q]); a Transpose that moves nothing -> x."""

    ops = ("Transpose",)

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | None:
        x = node.inputs[0]
        rank = g.rank(x)
        if x is None or rank is None:
            return None
        perm = g.attribute(node, "perm") or tuple(range(rank))[::-1]
        inner = g.producer(x, "Transpose")
        if inner is not None and inner.inputs[0] is not None:
            first = g.attribute(inner, "perm") or tuple(range(rank))[::-1]
            x, perm = inner.inputs[0], tuple(first[p] for p in perm)
            if perm != tuple(range(rank)):
                return op.Transpose(x, perm=perm)  # type: ignore[no-any-return]
        return x if perm == tuple(range(rank)) else None


class DropOne(NodeRule):
    """Concat, Sum, Max, Min, Mean of one tensor and Split into one -> x."""

    ops = ("Concat", "Sum", "Max", "Min", "Mean", "Split")

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | None:
        if node.op_type == "Split":
            return (
                node.inputs[0]
                if len(node.outputs) == 1 and same_shape(node.inputs[0], node.outputs[0])
                else None
            )
        return node.inputs[0] if len(node.inputs) == 1 else None


class DropEmptyConcat(NodeRule):
    """Concat(a, empty, b) -> Concat(a, b)."""

    ops = ("Concat",)

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | None:
        rank = g.rank(node.outputs[0])
        if rank is None:
            return None
        axis = g.attribute(node, "axis") % rank
        kept = [v for v in node.inputs if (dims_of(v) or (None,) * rank)[axis] != 0]
        if not kept or len(kept) == len(node.inputs):
            return None
        return op.Concat(*kept, axis=axis)  # type: ignore[no-any-return]


class DropWhole(NodeRule):
    """Slice of everything, Pad of nothing, Expand to the same shape, Tile once -> x."""

    ops = ("Slice", "Pad", "Expand", "Tile")

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | None:
        x, y = node.inputs[0], node.outputs[0]
        if x is None:
            return None
        if node.op_type in ("Pad", "Tile"):
            amounts = known_value(node.inputs[1])
            neutral = 0 if node.op_type == "Pad" else 1
            return (
                x if amounts is not None and all(a == neutral for a in amounts.reshape(-1).tolist()) else None
            )
        if not same_shape(x, y):
            return None
        if node.op_type == "Slice" and len(node.inputs) > 4 and node.inputs[4] is not None:
            steps = known_value(node.inputs[4])
            if steps is None or any(s != 1 for s in steps.reshape(-1).tolist()):
                return None
        return x


class DropResize(NodeRule):
    """Resize to the same size by nearest or linear -> x."""

    ops = ("Resize",)

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | None:
        plain = g.attribute(node, "mode", "nearest") in ("nearest", "linear")
        mapped = g.attribute(node, "coordinate_transformation_mode", "half_pixel")
        scales = g.constant(node.inputs[2], limit=16) if len(node.inputs) > 2 else None
        if scales is not None and scales.size and not (scales == 1).all():
            return None
        if plain and mapped != "tf_crop_and_resize" and same_shape(node.inputs[0], node.outputs[0]):
            return node.inputs[0]
        return None


class DropReduce(NodeRule):
    """A sum, mean, product, maximum or minimum over axes of one element -> x, or x in the other shape."""

    ops = (
        "ReduceSum",
        "ReduceMean",
        "ReduceProd",
        "ReduceMax",
        "ReduceMin",
        "GlobalAveragePool",
        "GlobalMaxPool",
    )

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | None:
        x, y = node.inputs[0], node.outputs[0]
        dims = dims_of(x)
        if x is None or dims is None:
            return None
        if node.op_type.startswith("Global"):
            return x if all(d == 1 for d in dims[2:]) else None
        given = node.inputs[1] if len(node.inputs) > 1 else None
        axes = g.constant(given, limit=64) if given is not None else None
        if given is not None and axes is None:
            return None
        if axes is None or axes.size == 0:
            over = [] if g.attribute(node, "noop_with_empty_axes", 0) else list(range(len(dims)))
        else:
            over = [int(a) % len(dims) for a in axes.reshape(-1)]
        if any(dims[a] != 1 for a in over):
            return None
        if g.attribute(node, "keepdims", 1) or not over:
            return x
        return op.Squeeze(x, np.array(over, dtype=np.int64)) if g.rank(y) is not None else None


class DecideWhere(NodeRule):
    """Where(all true, x, y) -> x and Where(all false, x, y) -> y, where that has the shape of the result."""

    ops = ("Where",)

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | None:
        which = uniform(node.inputs[0])
        if which is None:
            return None
        taken = node.inputs[1 if which else 2]
        return taken if same_shape(taken, node.outputs[0]) else None


IDENTITIES: tuple[Rule, ...] = (
    DropIdentity(),
    DropDropout(),
    DropNeutral(),
    TwiceIsNone(),
    TwiceIsOnce(),
    MergeTransposes(),
    DropOne(),
    DropEmptyConcat(),
    DropWhole(),
    DropResize(),
    DropReduce(),
    DecideWhere(),
)
