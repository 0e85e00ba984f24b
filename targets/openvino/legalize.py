"""What the front end reads wrongly or not at all, in operators that it reads rightly: where the rows refuse a node,
and there alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.passes.decompose import RULES
from tapeout.passes.decompose.precision import Widen
from tapeout.passes.decompose.recurrent import Steps
from tapeout.passes.decompose.resizing import ResizeByMatMul
from tapeout.passes.decompose.shaping import SliceComputedAxes
from tapeout.sdk import DOMAIN, Builder, Changes, Declaration, NodeRule, Refusal, Rewrite, Rule
from tapeout.sdk import graph as g

FLOAT = ir.DataType.FLOAT
INT8, UINT8, INT32, UINT16 = ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT32, ir.DataType.UINT16

# The plugin's 8-bit arithmetic saturates where ONNX's wraps.
WRAPPING = Rewrite(
    "wrapping",
    (
        Widen(("Add", "Sub", "Mul"), {INT8: INT32, UINT8: INT32}),
        Widen(("BitShift",), {UINT8: UINT16}),
    ),
)


class MaskedRows(NodeRule):
    """ReduceMax(x) == -inf -> ReduceMax(x != -inf) == 0

    Of infinities alone the plugin's maximum is the largest finite number, negated: a row that a mask hides as a
    whole is found otherwise.
    """

    ops = ("Equal",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        for value, other in (node.inputs, node.inputs[::-1]):
            most = None if value is None else value.producer()
            if most is None or most.op_type != "ReduceMax" or most.inputs[0] is None:
                continue
            bound = None if other is None else g.constant(other, limit=1)
            if bound is None or bound.size != 1 or float(bound.reshape(-1)[0]) != -math.inf:
                continue
            x, axes = most.inputs[0], (*most.inputs, None)[1]
            seen = op.Cast(op.Not(op.Equal(x, op.constant(-math.inf, x.dtype))), to=x.dtype)
            return op.Equal(op.ReduceMax(seen, axes, **attributes(most)), op.constant(0, x.dtype))
        return None


class OneType(NodeRule):
    """Norm(x: float16, scale: float32, ...) -> Cast(Norm(Cast(x, float32), scale, ...), float16)

    ONNX has types of their own for scales and statistics; the front end has one for all.
    """

    ops = ("BatchNormalization", "RMSNormalization")

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        if len({v.dtype for v in (*node.inputs, node.outputs[0]) if v is not None}) == 1:
            return "all are of one type"
        inputs = [v if v is None or v.dtype == FLOAT else op.Cast(v, to=FLOAT) for v in node.inputs]
        (made,) = op.node(node.op_type, inputs, dict(node.attributes), 1)
        return made if node.outputs[0].dtype == FLOAT else op.Cast(made, to=node.outputs[0].dtype)


class CountedPadding(NodeRule):
    """AveragePool(x, pads, ceil_mode=1, count_include_pad=1) -> AveragePool(Pad(x, pads), ceil_mode=1)

    The same where a window reaches beyond the padding: what lies there is not counted either way.
    """

    ops = ("AveragePool",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        stated = attributes(node)
        pads = stated.pop("pads", None)
        if not stated.pop("count_include_pad", 0) or not stated.get("ceil_mode") or not pads:
            return "no padding is counted"
        half = len(pads) // 2
        around = [0, 0, *pads[:half], 0, 0, *pads[half:]]
        before, after = g.static_dims(node.inputs[0]), g.static_dims(node.outputs[0])
        if before is None or after is None:
            return "sizes are not known"
        one = [1] * half
        for i in range(half):
            reach = (stated["kernel_shape"][i] - 1) * stated.get("dilations", one)[i] + 1
            rest = before[i + 2] + pads[i] + pads[i + half] - reach
            if -(-rest // stated.get("strides", one)[i]) + 1 != after[i + 2]:
                return "a window would begin behind the data"
        return op.AveragePool(op.Pad(node.inputs[0], np.array(around, np.int64)), **stated)


def attributes(node: ir.Node) -> dict[str, Any]:
    """The attributes of `node` by name."""
    return {name: a.value for name, a in node.attributes.items()}


MASKED_ROWS = Rewrite("masked-rows", (MaskedRows(),))
UNROLLED = 64  # steps of a recurrent operator that are written one by one


@dataclass(frozen=True)
class _Refused(Rule):
    """`rule` on what `rows` refuse."""

    rule: Rule
    rows: Declaration
    ops: Sequence[str] = ()

    @property
    def name(self) -> str:
        return self.rule.name

    def apply(self, node: ir.Node) -> ir.Node | str | None:
        taken = node.domain == DOMAIN or not isinstance(self.rows.match(node), Refusal)
        return None if taken else self.rule.apply(node)


@dataclass(frozen=True)
class WriteOut:
    """Nodes that `rows` refuse, in other operators where a rule has some."""

    rows: Declaration
    name: str = "write-out"

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules for operators with rows."""
        known = {op for op in self.rows.rows if "::" not in op}
        found = (
            OneType(), *RULES, ResizeByMatMul(computed=True), Steps(UNROLLED), SliceComputedAxes(), CountedPadding(),
        )  # fmt: skip
        return tuple(
            _Refused(r, self.rows, ops) for r in found if (ops := tuple(o for o in r.ops if o in known))
        )

    def __call__(self, model: ir.Model) -> Changes:
        return Rewrite(self.name, self.rules)(model)
