"""ONNX operators without a kernel in terms of those that have one, in types that kernels take."""

from __future__ import annotations

from tapeout.compiler.pipeline import Pass
from tapeout.compiler.rewriting import Rewrite, Rule
from tapeout.passes.decompose.arithmetic import ARITHMETIC
from tapeout.passes.decompose.indexing import INDEXING
from tapeout.passes.decompose.precision import HALF_IN_SINGLE, NARROW_INTEGERS
from tapeout.passes.decompose.quantized import QUANTIZED
from tapeout.passes.decompose.reductions import REDUCTIONS
from tapeout.passes.decompose.shaping import SHAPING

RULES: tuple[Rule, ...] = (*ARITHMETIC, *REDUCTIONS, *INDEXING, *SHAPING)

PLAIN: tuple[Pass, ...] = (
    Rewrite("quantization as arithmetic", QUANTIZED),
    Rewrite("kernel types", (HALF_IN_SINGLE, NARROW_INTEGERS)),
    Rewrite("plain operators", RULES),
    Rewrite("kernel types of what was made", (HALF_IN_SINGLE, NARROW_INTEGERS)),
)

# The operators that these write out better than their definition in the standard does.
WRITTEN: frozenset[str] = frozenset(op for rule in (*QUANTIZED, *RULES) for op in rule.ops)
