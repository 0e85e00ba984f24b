"""What is known of a loop before it runs, and a device that takes only loops with a bound."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from tapeout.compiler import loops
from tapeout.compiler.declaration import Declaration, Refusal
from tests.passtext import imported, parse

TEXT = """agraph (int64 n, bool first, float[2] x) => (float[2] s) <CONSTANTS> {
    s = Loop (BOUND, START, x) <body = step (int64 i, bool c, float[2] a) => (bool d, float[2] b)
        <bool yes = {1}, float limit = {9}> {
        b = Add (a, a)
        top = ReduceMax <keepdims = 0> (b)
        d = END
    }>
}"""


def node(bound: str, start: str, end: str = "Identity (c)") -> ir.Node:
    constants = (
        "int64 four = {4}, int64 none = {0}, int64 huge = {9223372036854775807}, bool go = {1}, bool no = {0}"
    )
    text = TEXT.replace("CONSTANTS", constants).replace("BOUND", bound).replace("START", start)
    return next(n for n in imported(parse(text.replace("END", end))).graph if n.op_type == "Loop")


@pytest.mark.parametrize(("bound", "start", "end", "count"), [
    ("four", "go", "Identity (c)", 4),
    ("four", '""', "Identity (yes)", 4),
    ("none", "first", "Identity (c)", 0),
    ("n", "no", "Identity (c)", 0),
    ("n", "go", "Identity (c)", "the number of trips is not known"),
    ("four", "first", "Identity (c)", "the condition is not known at the start"),
    ("four", "go", "Less (top, limit)", "the condition is computed"),
])  # fmt: skip
def test_trips(bound: str, start: str, end: str, count: int | str) -> None:
    assert loops.trips(node(bound, start, end)) == count


def test_bounds() -> None:
    assert loops.bounded(node("four", "go")) and loops.bounded(node("n", "go"))
    assert not loops.bounded(node('""', "go")) and not loops.bounded(node("huge", "go"))


def test_a_device_that_needs_a_bound_refuses_a_loop_without_one(tmp_path: Path) -> None:
    (tmp_path / "target.toml").write_text(
        'api = 1\nname = "small"\n[[op.Loop]]\nlower = "loop"\n'
        'quantity."loop.bounded" = {equal = true, fix = "give the Loop a bound"}\n'
    )
    rows = Declaration.load(tmp_path / "target.toml", device="small")
    assert not isinstance(rows.match(node("n", "go")), Refusal)
    refused = rows.match(node('""', "go", "Less (top, limit)"))
    assert isinstance(refused, Refusal) and "give the Loop a bound" in str(refused)
