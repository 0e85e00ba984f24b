"""Text tests of what goes with a channel: channels that are always zero are cut, and the model computes the same."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tapeout.compiler.ir import graph as g
from tapeout.compiler.rewriting import Changes
from tapeout.passes.sparsity.channels import analyse
from tapeout.passes.sparsity.cut import cut
from tapeout.passes.sparsity.layers import layers
from tapeout.passes.sparsity.structured import cost_of
from tests.passtext import Case, cases, check


def cut_silent(model: ir.Model) -> Changes:
    """Remove the channels whose makers' weights, and whatever vectors go with them, are all zero."""
    ties = analyse(model.graph)
    costs = [c for c in (cost_of(ties, found) for found in layers(model.graph)) if c is not None]
    loud = set(ties.reasons)
    made: set[int] = set()
    for cost in costs:
        rows = cost.layer.weight().reshape(len(cost.outputs), -1)
        made |= set(cost.outputs.tolist())
        loud |= {int(r) for r, row in zip(cost.outputs, rows, strict=True) if row.any()}
    for (value, axis), atoms in ties.weights.items():
        array = g.constant(value)
        assert array is not None
        if array.ndim == 1:
            loud |= {int(r) for r, x in zip(ties.roots(atoms), np.moveaxis(array, axis, 0), strict=True) if x}
    return Changes(
        cut(model, ties, {ties.root(r) for r in made if r >= 0} - {ties.root(r) for r in loud if r >= 0})
    )


@pytest.mark.parametrize("case", cases(__file__), ids=str)
def test_text(case: Case, bless: bool) -> None:
    check(case, {"cut": (cut_silent,)}, bless)
