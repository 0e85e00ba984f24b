"""Text tests of the decompositions into plainer operators and types, each beside a numeric check."""

from __future__ import annotations

import pytest

from tapeout.compiler.rewriting import Rewrite
from tapeout.passes.decompose.arithmetic import ARITHMETIC
from tapeout.passes.decompose.indexing import INDEXING
from tapeout.passes.decompose.precision import HALF_IN_SINGLE, NARROW_INTEGERS
from tapeout.passes.decompose.quantized import QUANTIZED
from tapeout.passes.decompose.reductions import REDUCTIONS
from tapeout.passes.decompose.scattering import SCATTERING
from tapeout.passes.decompose.shaping import SHAPING
from tests.passtext import Case, cases, check

PASSES = {
    "arithmetic": (Rewrite("arithmetic", ARITHMETIC),),
    "reductions": (Rewrite("reductions", REDUCTIONS),),
    "indexing": (Rewrite("indexing", (*INDEXING, *SCATTERING)),),
    "shaping": (Rewrite("shaping", SHAPING),),
    "quantized": (Rewrite("quantized", QUANTIZED),),
    "narrow": (Rewrite("narrow", (NARROW_INTEGERS,)),),
    "half": (Rewrite("half", (HALF_IN_SINGLE,)),),
}


@pytest.mark.parametrize("case", cases(__file__), ids=str)
def test_text(case: Case, bless: bool) -> None:
    check(case, PASSES, bless)
