"""Computing in half precision: which operators do, and which stay wide because their sums would overflow.

Op(x: float32) -> Cast(Op(Cast(x, half)), float32); what one such operator hands to the next is not widened between.
Sums of squares and of exponentials leave float16 (65504) at quite ordinary inputs, and lose bits in bfloat16: they
keep float32, and so does a node that reads a finite constant beyond the half type (the -3.4e38 of a mask).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.narrowing import matches
from tapeout.passes.decompose.precision import Widen
from tapeout.sdk import Builder, Changes, Rewrite, origin
from tapeout.sdk import graph as g

D = ir.DataType
HALF = {"float16": D.FLOAT16, "bfloat16": D.BFLOAT16}

# What accumulates over squares, exponentials or long rows.
WIDE_OPS = (
    "LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization", "LpNormalization",
    "MeanVarianceNormalization", "BatchNormalization", "LRN", "Softmax", "LogSoftmax", "ReduceSum", "ReduceMean",
    "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd", "CumSum", "Pow",
    "Exp", "Log", "Softplus", "GlobalAveragePool", "Attention",
)  # fmt: skip

# Products, what follows them element by element, and what moves elements between them.
HALF_OPS = (
    "Conv", "ConvTranspose", "MatMul", "Gemm", "LSTM", "GRU", "RNN",
    "Add", "Sub", "Mul", "Div", "Neg", "Abs", "Max", "Min", "Clip", "Relu", "LeakyRelu", "PRelu", "Elu", "Selu",
    "Celu", "Gelu", "HardSigmoid", "HardSwish", "Mish", "Sigmoid", "Swish", "Tanh", "Softsign", "Erf", "Sqrt",
    "Where", "MaxPool", "AveragePool", "GlobalMaxPool", "ReduceMax", "ReduceMin", "Resize",
    "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Concat", "Split", "Slice", "Gather", "Expand",
    "Tile", "Pad", "DepthToSpace", "SpaceToDepth", "Identity",
)  # fmt: skip

# Inputs whose type the operator fixes.
FIXED = {"Resize": frozenset({1, 2})}

# Half-precision models of other tools: their sums become wide as well.
WIDE_SUMS = Rewrite("wide-sums", (Widen(WIDE_OPS, {D.FLOAT16: D.FLOAT, D.BFLOAT16: D.FLOAT}),))


@dataclass(frozen=True)
class ComputeInHalf:
    """Compute in `dtype` ("float16", "bfloat16") but for what accumulates, and what fits one of the patterns `wide`
    (names of source nodes or of values); `ops` do so. Inputs and outputs of the graph keep their types."""

    dtype: str
    wide: tuple[str, ...] = ()
    ops: tuple[str, ...] = HALF_OPS
    name: str = "compute-in-half"

    def __call__(self, model: ir.Model) -> Changes:
        return Rewrite(self.name, (_Narrow(self.ops, HALF[self.dtype], self.wide, _of_elements(model)),))(
            model
        )


def _of_elements(model: ir.Model) -> frozenset[ir.Node]:
    """The nodes that compute on elements of the inputs: sizes, and what is made of them, must stay exact."""
    found: set[ir.Node] = set()
    values: set[ir.Value] = set(model.graph.inputs)
    for node in model.graph:
        if node.op_type not in ("Shape", "Size") and any(v in values for v in node.inputs):
            found.add(node)
            values.update(node.outputs)
    return frozenset(found)


@dataclass
class _Narrow(Widen):
    """One node in half precision, or the reason why it is not."""

    narrow: tuple[str, ...]
    half: ir.DataType
    stay: tuple[str, ...]
    nodes: frozenset[ir.Node]
    made: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.narrow, {D.FLOAT: self.half}, rounding=False)

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | Sequence[ir.Value] | str | None:
        if node not in self.nodes or any(v is not None and v.dtype == D.DOUBLE for v in node.inputs):
            return None
        if not any(v.dtype == D.FLOAT for v in node.outputs):
            return None
        names = (*origin(node), *(v.name or "" for v in node.outputs))
        if any(matches(name, self.stay) for name in names):
            return "it is to stay float32"
        beyond = next((v for v in node.inputs if v is not None and not self._fits(v)), None)
        if beyond is not None:
            return f"'{beyond.name}' holds numbers beyond {self.half.name.lower()}"
        kept = FIXED.get(node.op_type, frozenset())
        inputs = [v if i in kept else self.wide(op, v) for i, v in enumerate(node.inputs)]
        made = op.node(node.op_type, inputs, dict(node.attributes), len(node.outputs), node.domain)
        copy, name = made[0].producer(), node.name
        assert copy is not None and name is not None
        node.name = g.fresh(op.graph, name)
        copy.name = name  # it is the source's node that builders and profilers report
        return [self.back(op, old, new) for old, new in zip(node.outputs, made, strict=True)]

    def wide(self, op: Builder, value: ir.Value | None) -> ir.Value | None:
        """`value` in half precision: constants are rounded when they are written."""
        if value is None or value.dtype != D.FLOAT or not g.is_constant(value):
            return super().wide(op, value)
        if value not in self.made:
            tensor, dtype = value.const_value, self.half
            assert tensor is not None and value.graph is not None
            shape = [int(d) for d in tensor.shape]  # type: ignore[arg-type]
            self.made[value] = g.add_lazy_constant(
                value.graph,
                shape,
                dtype,
                lambda: tensor.numpy().astype(dtype.numpy()),
                value.name or "weight",
            )
        return self.made[value]

    def _fits(self, value: ir.Value) -> bool:
        """Whether no finite number in a constant becomes infinite in the half type."""
        if value.dtype != D.FLOAT or value in self.made or not g.is_constant(value):
            return True
        array: np.ndarray[Any, Any] | None = g.constant(value)
        finite = array[np.isfinite(array)] if array is not None else None
        if finite is None or not finite.size:
            return True
        with np.errstate(over="ignore"):
            ends = np.array([finite.max(), finite.min()]).astype(self.half.numpy())
        return bool(np.isfinite(ends).all())
