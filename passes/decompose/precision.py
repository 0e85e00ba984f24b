"""Computing in a wider type where a narrow one has no kernel: Op(x) -> Cast(Op(Cast(x, wide)), narrow).

Integers wrap alike: the low bits of a sum, difference or product do not depend on the width, and every other
operation on numbers that fit the narrow type is exact in the wide one. A float16 result computed in float32
is rounded once, and not at all where the next operator computes in float32 as well. What only moves elements is
the same in every type that holds them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.rewriting import Builder, NodeRule

D = ir.DataType

SMALL_INTEGERS: Mapping[ir.DataType, ir.DataType] = {
    D.INT8: D.INT32, D.UINT8: D.INT32, D.INT16: D.INT32, D.UINT16: D.INT32, D.UINT32: D.INT64
}  # fmt: skip
HALF: Mapping[ir.DataType, ir.DataType] = {D.FLOAT16: D.FLOAT}


MARK = "tapeout.narrowed"  # on the Cast behind a widened operator


class Widen(NodeRule):
    """Op(x: narrow) -> Cast(Op(Cast(x, wide)), narrow) for the operators and types given."""

    def __init__(
        self, ops: Sequence[str], types: Mapping[ir.DataType, ir.DataType], rounding: bool = True
    ) -> None:
        """With `rounding` false what one widened operator hands to the next stays wide."""
        self.ops = tuple(ops)  # type: ignore[misc]
        self.types = types
        self.rounding = rounding

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | Sequence[ir.Value] | str | None:
        if g.has_subgraph(node):
            return None
        values = [v for v in (*node.inputs, *node.outputs) if v is not None]
        if not any(v.dtype in self.types for v in values):
            return None
        inputs = [self.wide(op, v) for v in node.inputs]
        made = op.node(node.op_type, inputs, dict(node.attributes), len(node.outputs), node.domain)
        return [self.back(op, old, new) for old, new in zip(node.outputs, made, strict=True)]

    def back(self, op: Builder, old: ir.Value, new: ir.Value) -> ir.Value:
        """`new`, computed in the other type, in the type of `old`, which it stands for."""
        if old.dtype is None or old.dtype not in self.types:
            return new
        cast: ir.Value = op.Cast(new, to=old.dtype)
        made = cast.producer()
        assert made is not None
        made.metadata_props[MARK] = "1"
        return cast

    def wide(self, op: Builder, value: ir.Value | None) -> ir.Value | None:
        """`value` in the wide type; without the rounding behind a widened operator unless it is asked for."""
        dtype = None if value is None or value.dtype is None else self.types.get(value.dtype)
        if value is None or dtype is None:
            return value
        made = value.producer()
        if not self.rounding and made is not None and MARK in made.metadata_props:
            return made.inputs[0]
        cast: ir.Value = op.Cast(value, to=dtype)
        return cast


INTEGER_OPS = (
    "Add", "Sub", "Mul", "Div", "Pow", "Neg", "Abs", "Sign", "Mod", "Max", "Min", "Clip", "CumSum", "Range",
    "ReduceSum", "ReduceMean", "ReduceProd", "ReduceMax", "ReduceMin", "ArgMax", "ArgMin", "TopK",
    "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual",
)  # fmt: skip

# Computing operators; those that only move elements keep float16.
FLOAT_OPS = (
    "Add", "Sub", "Mul", "Div", "Pow", "Neg", "Abs", "Sign", "Mod", "Max", "Min", "Sum", "Mean", "Clip",
    "Erf", "Exp", "Log", "Sqrt", "Reciprocal", "Floor", "Ceil", "Round", "CumSum", "Range", "IsNaN",
    "IsInf", "TopK", "Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh",
    "ArgMax", "ArgMin", "ReduceSum", "ReduceMean", "ReduceProd", "ReduceMax", "ReduceMin", "ReduceL1",
    "ReduceL2", "Hardmax", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp", "Equal", "Less",
    "LessOrEqual", "Greater", "GreaterOrEqual", "Einsum", "MatMul", "Gemm", "Conv", "ConvTranspose",
    "AveragePool", "MaxPool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "LRN", "Resize", "Relu",
    "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Gelu", "HardSigmoid", "HardSwish", "Mish", "Sigmoid",
    "Softplus", "Softsign", "Swish", "Tanh", "Shrink", "ThresholdedRelu", "Softmax", "LogSoftmax",
    "BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization",
    "RMSNormalization", "LpNormalization", "Attention", "RotaryEmbedding", "SoftmaxCrossEntropyLoss",
    "NegativeLogLikelihoodLoss", "LSTM", "GRU", "RNN",
)  # fmt: skip

NARROW_INTEGERS = Widen(INTEGER_OPS, SMALL_INTEGERS)
HALF_IN_SINGLE = Widen(FLOAT_OPS, HALF, rounding=False)

# Operators that move elements, and the types of which the kernels that are usual have none; whatever holds the
# numbers brings them along.
_UNSIGNED: Mapping[ir.DataType, ir.DataType] = {D.UINT16: D.INT32, D.UINT32: D.INT64}
_SHORT: Mapping[ir.DataType, ir.DataType] = {D.INT16: D.INT32, **_UNSIGNED}
_BITS: Mapping[ir.DataType, ir.DataType] = {D.BOOL: D.UINT8}
MOVED: tuple[Widen, ...] = (
    Widen(("ReverseSequence",), {D.INT8: D.INT16, **_UNSIGNED, **_BITS, **HALF}),
    Widen(("Split",), {**_UNSIGNED, **_BITS, **HALF}),
    Widen(("Concat",), {D.UINT16: D.INT32}),
    Widen(("Gather", "GatherND", "Pad"), _UNSIGNED),
    Widen(("ScatterND", "OneHot"), {**_SHORT, **HALF}),
    Widen(("NonZero",), {D.INT16: D.INT32, D.UINT16: D.INT32, **HALF}),
    Widen(("DepthToSpace", "SpaceToDepth"), {D.UINT8: D.INT32, D.BOOL: D.INT32, **_SHORT, **HALF}),
)
