"""Which row a float node would match, were its tensors stored as a scheme says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import onnx_ir as ir

from tapeout.compiler.declaration.match import Violation, violations
from tapeout.compiler.declaration.rows import PortRule, Row
from tapeout.compiler.operators import Call, Storage, dtype_name, storage
from tapeout.compiler.schemes import Scheme


class Slot(NamedTuple):
    """One tensor that a kernel wants quantized: the port, the position among the node's inputs or outputs,
    what the row demands, the type that the scheme stores it in, and whether the graph stores it already."""

    port: str
    position: int
    output: bool
    value: ir.Value
    rule: PortRule
    dtype: ir.DataType
    stored: bool = False


def positions(call: Call) -> Iterator[tuple[str, int, bool, ir.Value]]:
    """Every value with its port and its position, inputs first."""
    for output, formals, actual in (
        (False, call.interface.inputs, call.node.inputs),
        (True, call.interface.outputs, call.node.outputs),
    ):
        for i, value in enumerate(actual):
            formal = formals[min(i, len(formals) - 1)] if formals else None
            if value is not None and value.name != "" and formal is not None:
                yield formal.name, i, output, value


def slots(row: Row, call: Call, scheme: Scheme) -> list[Slot] | None:
    """The tensors of `call` that `row` wants quantized by `scheme`; None where the row is not for it."""
    found = []
    for port, index, output, value in positions(call):
        rule = row.rule(port)
        if rule is None or not rule.dtypes or not (value.dtype and value.dtype.is_floating_point()):
            continue
        wanted = {"weight": scheme.weight, "bias": scheme.bias}.get(rule.role or "act", scheme.act)
        wanted = wanted or value.dtype
        known = storage(value, output=output, fuses=row.fuses)
        if known.quantized and known.dtype is not None and known.dtype != wanted:
            if rule.role not in ("weight", "bias"):
                return None
            wanted = known.dtype
        if dtype_name(wanted) not in rule.dtypes:
            return None
        if not wanted.is_floating_point():
            found.append(Slot(port, index, output, value, rule, wanted, known.quantized))
    kinds = {s.dtype for s in found if s.rule.role != "bias"}
    return found if kinds >= {d for d in (scheme.act,) if d is not None} and kinds else None


def unmet(rows: Sequence[Row], call: Call, wanted: Iterable[Slot]) -> Iterator[Violation]:
    """Everything of `rows` (the first is the node's own) that does not hold for `call` once its tensors are
    stored as `wanted` says."""
    planned = {(s.value, s.output): s for s in wanted}

    def plan(value: ir.Value, output: bool) -> Storage:
        slot = planned.get((value, output))
        known = storage(value, output=output, fuses=rows[0].fuses)
        if slot is None or (slot.stored and slot.rule.role == "weight"):
            return known
        # Scales are the quantizer's business.
        return Storage(known.value if slot.stored else value, slot.dtype)

    for row in rows:
        yield from violations(row, call, plan)
