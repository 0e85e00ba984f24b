"""Computing in a wider type where a narrow one has no kernel: Op(x) -> Cast(Op(Cast(x, wide)), narrow).

Integers wrap alike: the low bits of a sum, difference or product do not depend on the width, and every other
operation on numbers that fit the narrow type is exact in the wide one. A float16 result computed in float32
is rounded once, as ONNX Runtime's CPU kernels do.
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


class Widen(NodeRule):
    """Op(x: narrow) -> Cast(Op(Cast(x, wide)), narrow) for the operators and types given."""

    def __init__(self, ops: Sequence[str], types: Mapping[ir.DataType, ir.DataType]) -> None:
        self.ops = tuple(ops)  # type: ignore[misc]
        self.types = types

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | Sequence[ir.Value] | str | None:
        if g.has_subgraph(node):
            return None
        values = [v for v in (*node.inputs, *node.outputs) if v is not None]
        if not any(v.dtype in self.types for v in values):
            return None
        inputs = [
            v
            if v is None or v.dtype is None or v.dtype not in self.types
            else op.Cast(v, to=self.types[v.dtype])
            for v in node.inputs
        ]
        made = op.node(node.op_type, inputs, dict(node.attributes), len(node.outputs), node.domain)
        results = []
        for old, new in zip(node.outputs, made, strict=True):
            narrow = old.dtype
            if narrow is not None and narrow in self.types:
                new = op.Cast(new, to=narrow)
            results.append(new)
        return results


INTEGER_OPS = (
    *(
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Pow",
        "Neg",
        "Abs",
        "Sign",
        "Mod",
        "Max",
        "Min",
        "Clip",
        "CumSum",
        "Range",
    ),
    *("ReduceSum", "ReduceMean", "ReduceProd", "ReduceMax", "ReduceMin", "ArgMax", "ArgMin", "TopK"),
    *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"),
)

# Computing operators; those that only move elements keep float16.
FLOAT_OPS = (
    *("Add", "Sub", "Mul", "Div", "Pow", "Neg", "Abs", "Sign", "Mod", "Max", "Min", "Sum", "Mean", "Clip"),
    *(
        "Exp",
        "Log",
        "Sqrt",
        "Reciprocal",
        "Floor",
        "Ceil",
        "Round",
        "Erf",
        "CumSum",
        "Range",
        "IsNaN",
        "IsInf",
    ),
    *("Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh"),
    *("ReduceSum", "ReduceMean", "ReduceProd", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"),
    *("ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp", "ArgMax", "ArgMin", "TopK", "Hardmax"),
    *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Einsum", "MatMul", "Gemm", "Conv"),
    *(
        "ConvTranspose",
        "AveragePool",
        "MaxPool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "LpPool",
        "LRN",
        "Resize",
    ),
    *(
        "Relu",
        "LeakyRelu",
        "PRelu",
        "Elu",
        "Selu",
        "Celu",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "Mish",
        "Sigmoid",
    ),
    *("Softplus", "Softsign", "Swish", "Tanh", "ThresholdedRelu", "Shrink", "Softmax", "LogSoftmax"),
    *("BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization"),
    *("RMSNormalization", "LpNormalization", "Attention", "RotaryEmbedding", "SoftmaxCrossEntropyLoss"),
    *("NegativeLogLikelihoodLoss", "LSTM", "GRU", "RNN"),
)

NARROW_INTEGERS = Widen(INTEGER_OPS, SMALL_INTEGERS)
HALF_IN_SINGLE = Widen(FLOAT_OPS, HALF)
