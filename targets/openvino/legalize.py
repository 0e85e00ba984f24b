"""What the front end reads wrongly or not at all, in operators that it reads rightly: where the rows refuse a node,
and there alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from tapeout.passes.decompose import RULES
from tapeout.passes.decompose.precision import Widen
from tapeout.passes.decompose.recurrent import Steps
from tapeout.passes.decompose.resizing import ResizeByMatMul
from tapeout.sdk import DOMAIN, Builder, Changes, Declaration, NodeRule, Refusal, Rewrite, Rule
from tapeout.sdk import graph as g

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
        found = (*RULES, ResizeByMatMul(computed=True), Steps(UNROLLED))
        return tuple(
            _Refused(r, self.rows, ops) for r in found if (ops := tuple(o for o in r.ops if o in known))
        )

    def __call__(self, model: ir.Model) -> Changes:
        return Rewrite(self.name, self.rules)(model)
