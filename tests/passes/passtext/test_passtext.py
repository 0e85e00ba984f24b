"""The helper of the text tests: it prints what it reads, and it notices a pass that computes something
else."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from tapeout.compiler.rewriting import Changes
from tests.passtext import Case, cases, check, imported, parse, text

RIGHT, WRONG = cases(__file__)


def nothing(model: ir.Model) -> Changes:
    return Changes(0)


def wrong(model: ir.Model) -> Changes:
    for node in model.graph:
        node.op_type = "Sigmoid"
    return Changes(1)


PASSES = {"nothing": (nothing,), "wrong": (wrong,)}


def test_prints_what_it_reads(bless: bool) -> None:
    model = check(RIGHT, PASSES, bless)
    again = parse(text(model))
    assert text(imported(again)) == text(model)


def test_notices_a_wrong_pass() -> None:
    with pytest.raises(AssertionError, match=r"output 'y' with \{'N': 3\}: deviation"):
        check(WRONG, PASSES)


@pytest.mark.parametrize("case", [RIGHT], ids=str)
def test_notices_another_text(case: Case) -> None:
    changed = Case(case.path, case.title, case.head, {**case.sections, "after": "agraph"})
    with pytest.raises(AssertionError, match="'after' is not what came out"):
        check(changed, PASSES)
