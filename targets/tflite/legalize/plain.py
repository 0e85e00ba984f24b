"""ONNX operators without a kernel in terms of those that have one, in types that kernels take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from tapeout.passes.decompose.arithmetic import ARITHMETIC
from tapeout.passes.decompose.detection import DETECTION
from tapeout.passes.decompose.indexing import INDEXING
from tapeout.passes.decompose.precision import HALF_IN_SINGLE, MOVED, NARROW_INTEGERS
from tapeout.passes.decompose.quantized import QUANTIZED
from tapeout.passes.decompose.reductions import REDUCTIONS
from tapeout.passes.decompose.scattering import SCATTERING
from tapeout.passes.decompose.shaping import SHAPING
from tapeout.sdk import Declaration, Pass, Rewrite, Row, Rule

RULES: tuple[Rule, ...] = (*ARITHMETIC, *REDUCTIONS, *INDEXING, *SCATTERING, *DETECTION, *SHAPING)

PLAIN: tuple[Pass, ...] = (
    Rewrite("quantization as arithmetic", QUANTIZED),
    Rewrite("kernel types", (HALF_IN_SINGLE, NARROW_INTEGERS, *MOVED)),
    Rewrite("plain operators", RULES),
    Rewrite("kernel types of what was made", (HALF_IN_SINGLE, NARROW_INTEGERS, *MOVED)),
)

# The operators that these write out better than their definition in the standard does.
WRITTEN: frozenset[str] = frozenset(op for rule in (*QUANTIZED, *RULES) for op in rule.ops)


@dataclass(frozen=True)
class _Refused(Rule):
    """`rule` on the nodes that no row takes."""

    rule: Rule
    rows: Declaration

    @property
    def ops(self) -> Sequence[str]:
        return self.rule.ops

    @property
    def name(self) -> str:
        return self.rule.name

    def apply(self, node: ir.Node) -> ir.Node | str | None:
        return None if isinstance(self.rows.match(node), Row) else self.rule.apply(node)


def with_integers(device: str) -> Pass:
    """The first of `PLAIN` for schemes that compute in integers: what rows take of it stays."""
    from tapeout.targets.tflite import declaration

    rows = declaration(device)
    return Rewrite("quantization without rows as arithmetic", tuple(_Refused(r, rows) for r in QUANTIZED))
