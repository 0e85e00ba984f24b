"""Whatever is refused says which node, by which constraint, at which value, and what to do."""

from __future__ import annotations

import onnx
import pytest

from tapeout.compiler import pipeline
from tapeout.compiler.conformance.generated import Generator, outside
from tapeout.compiler.conformance.standard import cases
from tapeout.compiler.declaration import Refusal
from tapeout.compiler.errors import TapeoutError, UnsupportedError
from tapeout.compiler.explanation import incomplete
from tapeout.compiler.ir.load import from_proto
from tapeout.road import choose

TARGETS = ("tflite", "ethos-u")


def refused(target: str) -> list[Refusal]:
    """The refusals of node cases; what does not come as far is held to the same here."""
    chosen, request = choose(target, None, "float32" if target == "tflite" else None, None)
    found: list[Refusal] = []
    for case in cases():
        try:
            model = from_proto(onnx.ModelProto.FromString(case.model))
            if chosen.extends is None:
                pipeline.run(model, chosen.passes(request))
            found += chosen.declaration(request.device).accept(model).refused
        except TapeoutError as error:
            assert isinstance(error, UnsupportedError) and error.nodes and error.violations, case.name
            assert all(said for v in error.violations for said in v.values()), error.violations
    return found


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_node_cases(target: str) -> None:
    found = refused(target)
    assert len(found) > 400
    assert [f"{r}: {why}" for r in found if (why := incomplete(r)) is not None] == []


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_cases_outside_the_declaration(target: str) -> None:
    chosen, request = choose(target, None, None, None)
    rows = chosen.declaration(request.device)
    found = [
        refusal
        for made in outside(Generator(rows, request.device), 50)
        for refusal in rows.accept(from_proto(onnx.ModelProto.FromString(made.case.model))).refused
    ]
    assert len(found) >= 50
    assert [f"{r}: {why}" for r in found if (why := incomplete(r)) is not None] == []
