"""The rows say what OpenVINO computes: cases made from them pass, and what lies outside is refused."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("openvino", reason="the package 'openvino' is not installed")

from tapeout.compiler.conformance.generated import Generator, Made, inside, results
from tapeout.compiler.conformance.levels import Choice, run_kit
from tapeout.compiler.conformance.running import run_case
from tapeout.compiler.ir.load import from_text
from tapeout.targets.openvino import TARGET, declaration
from tests.extent import extent
from tests.targets.openvino.road import HEADER

LEVELS = ("load", "generated", "refused", "graphs", "damaged")
# Where rows are narrower than the front end: types, magnitudes, axes, windows, formats.
NARROW = ("AveragePool", "BatchNormalization", "Equal", "Gemm", "QuantizeLinear", "Resize", "Slice")


def test_cases_on_the_edges_of_rows() -> None:
    made = [m.case for m in inside(Generator(declaration("cpu"), "cpu"), 42, NARROW) if isinstance(m, Made)]
    assert {c.op for c in made} == set(NARROW)
    outcomes = [run_case(c, TARGET)[0] for c in made]
    assert {o.status for o in outcomes} == {"pass"}, [o for o in outcomes if o.status != "pass"]


@pytest.mark.slow
def test_cases_of_every_row() -> None:
    """3,000 with TAPEOUT_WHOLE=1."""
    count = extent(500, 3000)
    report = run_kit("openvino", Choice(levels=LEVELS, count=count))
    assert report.ok, report.text()
    assert report.counts()["pass"] >= count


def test_integers_stay_within_what_a_row_promises() -> None:
    generator = Generator(declaration("cpu"), "cpu")
    made = [m.case for m in inside(generator, 24, ["Identity", "Less"]) if isinstance(m, Made)]
    bits = {"Identity": 31, "Less": 24}
    arrays = [
        (c.op, a) for c in made for a in (*c.inputs.values(), *c.outputs.values()) if a.dtype == np.int64
    ]
    assert {op for op, _ in arrays} == set(bits)
    assert all(np.abs(a).max(initial=0) < 2 ** bits[op] for op, a in arrays)
    assert any(np.abs(a).max(initial=0) > 2**20 for _, a in arrays)


def test_bfloat16_is_rounded_once() -> None:
    model = from_text(f"{HEADER}g (bfloat16[64] x) => (bfloat16[1] y) {{ y = ReduceSum(x) }}")
    x = np.full(64, 1.0, ml_dtypes.bfloat16)
    x[0] = 512  # a sum in bfloat16 loses every 1 that is added to it
    assert results(model, {"x": x})["y"] == ml_dtypes.bfloat16(512 + 63)
