"""Text tests of the decompositions."""

from __future__ import annotations

import pytest

from tapeout.compiler.rewriting import Rewrite
from tapeout.passes.decompose import (
    DEPTH_TO_SPACE_DCR,
    ELU_OF_ONE,
    PLAIN_GEMM,
    RESIZE_BY_MATMUL,
    SOFTMAX_ON_LAST_AXIS,
    Decompose,
)
from tapeout.passes.decompose.resizing import ResizeByMatMul
from tapeout.passes.decompose.unrolling import Unroll
from tests.passtext import Case, cases, check

PASSES = {
    "decompose": (Decompose(),),
    "keep-gelu": (Decompose(frozenset({"Gelu"})),),
    "last-axis": (SOFTMAX_ON_LAST_AXIS,),
    "dcr": (DEPTH_TO_SPACE_DCR,),
    "gemm": (PLAIN_GEMM,),
    "resize": (RESIZE_BY_MATMUL,),
    "resize-any": (Rewrite("resize-any", (ResizeByMatMul(computed=True),)),),
    "elu": (ELU_OF_ONE,),
    "unroll": (Unroll(),),
}


@pytest.mark.parametrize("case", cases(__file__), ids=str)
def test_text(case: Case, bless: bool) -> None:
    check(case, PASSES, bless)
