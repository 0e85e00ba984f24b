"""The conformance kit: cases from rows, a plugin that lies, shrinking, reports, and running a kept case again."""

from __future__ import annotations

import dataclasses
import functools
import xml.etree.ElementTree as xml
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tapeout.compiler.conformance import generated, graphs, kept, shrink
from tapeout.compiler.conformance.case import MATCH, REFUSED, Case, Outcome, difference
from tapeout.compiler.conformance.draws import Draws, Wish, constraints
from tapeout.compiler.conformance.functions import harvest
from tapeout.compiler.conformance.generated import Generator, Made
from tapeout.compiler.conformance.levels import Choice, run_kit, taken_since
from tapeout.compiler.conformance.report import Report
from tapeout.compiler.conformance.running import run_case, unexplained
from tapeout.compiler.declaration import Bound, Declaration
from tapeout.compiler.errors import UsageError
from tapeout.compiler.target import Target
from tapeout.targets.tflite import TARGET
from tests.compiler import tiny_target


@functools.cache
def harvested(target: Target) -> None:
    harvest(target, target.devices[0], target.declaration(target.devices[0]))


def generator(target: Target = TARGET, seed: int = 0) -> Generator:
    device = target.devices[0]
    declaration = target.declaration(device)
    harvested(target)
    return Generator(declaration, device, seed)


def cases(g: Generator, count: int, ops: list[str]) -> list[Case]:
    return [m.case for m in generated.inside(g, count, ops) if isinstance(m, Made)]


def test_choices_are_replayed_and_the_simplest_is_first() -> None:
    draws = Draws(3)
    made = [draws.below(7) for _ in range(20)]
    again = Draws(99, made)
    assert [again.below(7) for _ in range(20)] == made
    assert Draws(99, []).pick(["simple", "complex"]) == "simple"


def test_numbers_lie_within_a_bound_or_just_outside() -> None:
    (row,) = [r for r in tiny_target.declaration("one") if r.op == "Conv"]
    inside = {Wish(Draws(i), row).number("stride.max", (1, 2, 3, 4, 5), low=1) for i in range(60)}
    assert inside == {1, 2, 3}
    broken = {
        Wish(Draws(i), row, "quantity.stride.max").number("stride.max", (1, 2), low=1) for i in range(20)
    }
    assert broken == {4}
    assert "quantity.stride.max" in constraints(row) and "rank.X" in constraints(row)


def test_cases_are_the_same_for_the_same_seed_and_others_for_another() -> None:
    first, again, other = (cases(generator(seed=s), 8, ["Add"]) for s in (0, 0, 1))
    assert [c.model for c in first] == [c.model for c in again]
    assert all(
        np.array_equal(a.inputs[k], b.inputs[k]) for a, b in zip(first, again, strict=True) for k in a.inputs
    )
    assert [c.model for c in first] != [c.model for c in other]


def test_every_type_of_a_row_has_its_case() -> None:
    g = generator()
    row = next(r for r in g.declaration.rows["Add"] if r.types["T"] == ("float32", "int32", "int64"))
    made = [g.inside("Add", row, n) for n in range(3)]
    assert {a.dtype.name for m in made if m for a in m.case.inputs.values()} == {"float32", "int32", "int64"}


@pytest.mark.parametrize("op", ["tapeout::ConvNHWC", "Concat", "Softmax", "Loop"])
def test_cases_of_rows_match_on_the_runtime(op: str) -> None:
    for case in cases(generator(), 8, [op]):
        outcome, runtimes = run_case(case, TARGET)
        assert outcome.status == "pass", outcome
        assert len(runtimes) == 2


def test_cases_outside_are_refused_with_constraint_value_and_fix() -> None:
    g = generator()
    made = list(generated.outside(g, 14, ["tapeout::MaxPoolNHWC"]))
    keys = {m.case.origin.rpartition(", ")[2] for m in made}
    assert {"rank.X", "quantity.dilation.max", "types.X"} & keys
    for each in made:
        outcome, _ = run_case(each.case, TARGET)
        assert outcome.status == "refused" and outcome.reason, outcome


def test_a_refusal_without_constraint_value_or_fix_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    g = generator(tiny_target.TARGET)
    row = g.declaration.rows["Conv"][0]
    made = g.outside("Conv", row, "quantity.group", 0)
    assert made is not None
    (refused,) = g.declaration.accept(_model(made.case)).refused
    assert unexplained(refused) is None
    mute = [dataclasses.replace(v, found="") for v in refused.violations]
    assert unexplained(dataclasses.replace(refused, violations=tuple(mute))) == "no value of group"
    assert unexplained(dataclasses.replace(refused, violations=())) == "no constraint"
    monkeypatch.setattr(type(refused), "fixes", lambda self: [])
    assert unexplained(refused) == "no fix"


def _model(case: Case) -> Any:
    from tapeout.compiler.ir.load import from_proto

    return from_proto(onnx.ModelProto.FromString(case.model))


# --- a plugin that lies --------------------------------------------------------------------------------------


def liar(op: str, **changes: Any) -> Target:
    """The tiny target with rows of `op` that promise what it cannot do."""
    plain = tiny_target.declaration("one")

    def declaration(device: str) -> Declaration:
        rows = [dataclasses.replace(r, **changes) for r in plain.rows[op]]
        plain.rows = {**plain.rows, op: rows}
        return plain

    return dataclasses.replace(tiny_target.TARGET, declaration=declaration)


def test_a_plugin_that_promises_more_than_it_does_is_caught_and_the_case_shrunk(tmp_path: Path) -> None:
    limits = tuple(
        dataclasses.replace(x, bound=Bound(max=3)) if x.name == "dilation.max" else x
        for x in tiny_target.declaration("one").rows["Conv"][0].limits
    )
    lying = liar("Conv", limits=limits)
    g = Generator(lying.declaration("one"), "one")
    row = g.rows(["Conv"])[0][1]
    for number in range(40):
        made = g.inside("Conv", row, number)
        assert made is not None
        outcome, _ = _run(made.case, lying)
        if outcome.fault:
            break
    assert outcome.status == "wrong", "a dilation that is ignored was not seen"

    def again(choices: Any) -> tuple[Case, tuple[int, ...]] | None:
        found = g.again(made.origin, choices)
        return None if found is None else (found.case, found.origin.choices)

    smallest, found = shrink.shrink(
        made.case, outcome, lambda c: _run(c, lying)[0], again, made.origin.choices
    )
    assert found.fault and shrink.size(smallest) <= shrink.size(made.case)
    kept.write_case(smallest, tmp_path / "case", "tiny", found)
    read = kept.read_case(tmp_path / "case")
    assert read.model == smallest.model and read.expects == MATCH
    assert _run(read, lying)[0].fault
    assert "--case" in (tmp_path / "case" / "case.json").read_text()


def _run(case: Case, target: Target) -> tuple[Outcome, tuple[str, ...]]:
    """On the tiny target, whose emission asks its own declaration."""
    before = tiny_target.declaration
    try:
        tiny_target.declaration = target.declaration
        return run_case(case, target)
    finally:
        tiny_target.declaration = before


def test_what_an_earlier_declaration_takes_must_be_taken_still() -> None:
    g = generator()
    (made, *_) = [m for m in generated.inside(g, 4, ["Relu"]) if isinstance(m, Made)]
    now = dataclasses.replace(
        TARGET, declaration=lambda device: tiny_target.declaration("two"), devices=("cpu",)
    )
    case = dataclasses.replace(made.case, outputs=made.case.outputs)
    assert case.expects == MATCH and case.inputs
    float_only = [c for c in cases(g, 30, ["Abs"]) if c.inputs[next(iter(c.inputs))].dtype == np.int32]
    outcome, _ = run_case(float_only[0], now)
    assert outcome.status == "dropped" and outcome.fault


def test_only_rows_that_have_changed_are_asked_again() -> None:
    earlier = Generator(tiny_target.declaration("one"), "one")
    assert list(taken_since(earlier, Generator(tiny_target.declaration("one"), "one"))) == []
    limits = tuple(
        dataclasses.replace(x, bound=Bound(max=1)) if x.name == "stride.max" else x
        for x in tiny_target.declaration("one").rows["Conv"][0].limits
    )
    narrower = liar("Conv", limits=limits)
    made = list(taken_since(earlier, Generator(narrower.declaration("one"), "one")))
    assert {m.case.op for m in made} == {"Conv"} and len(made) >= 20
    assert any(_run(m.case, narrower)[0].status == "dropped" for m in made)
    assert list(taken_since(earlier, Generator(narrower.declaration("one"), "one"), ["Relu"])) == []


def test_random_graphs_run_and_keep_their_state() -> None:
    found = [graphs.graph(n, "float32", "cpu") for n in range(6)]
    found += [graphs.graph(1, "float32", "cpu", state=True)]
    made = [f[0] for f in found if f is not None]
    assert made[-1].steps and len(made) > 3
    for case in made:
        outcome, _ = run_case(case, TARGET)
        assert outcome.status in ("pass", "refused"), outcome
    assert outcome.status == "pass"


def test_integers_are_held_to_quanta_and_their_rate() -> None:
    wanted = np.zeros(1000, np.int8)
    case = Case("x", "X", b"", {}, {"y": wanted}, quanta=1, rate=0.05)
    few, many, far = wanted.copy(), wanted.copy(), wanted.copy()
    few[:50], many[:150], far[0] = 1, 1, 2
    assert difference(case, {"y": few}) is None
    assert "150 of 1000" in str(difference(case, {"y": many}))
    assert "2 quanta" in str(difference(case, {"y": far}))


def test_reports_hold_every_fault(tmp_path: Path) -> None:
    report = Report("t", runtimes=("R 1",), commands={"bad": "tapeout conformance t --case bad"})
    report.outcomes = [
        Outcome("good", "A", "pass", level="generated"),
        Outcome("bad", "B", "dropped", "<refused> & 'n'", level="refused"),
    ]
    assert not report.ok
    top = xml.fromstring(report.junit().partition("\n")[2])
    assert top.get("failures") == "1" and len(top.findall(".//testcase")) == 2
    (failure,) = top.findall(".//failure")
    assert failure.get("message") == "<refused> & 'n'" and "--case bad" in str(failure.text)
    page = report.html()
    assert "&lt;refused&gt; &amp;" in page and "--case bad" in page
    assert "again: tapeout conformance t --case bad" in report.text()


def test_a_folder_without_a_case_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no case"):
        kept.read_case(tmp_path)
    with pytest.raises(UsageError, match="no level 'all'"):
        run_kit("tflite", Choice(levels=("all",)))


@pytest.mark.slow
def test_the_kit_on_its_levels(tmp_path: Path) -> None:
    choice = Choice(("load", "generated", "refused", "damaged"), count=250, keep=tmp_path)
    report = run_kit("tflite", choice)
    assert report.ok, report.text()
    levels = report.levels()
    assert levels["generated"]["pass"] >= 200 and levels["refused"]["refused"] >= 60
    assert levels["damaged"]["pass"] >= 10
    assert not [c for c in report.outcomes if c.level == "refused" and c.status == REFUSED and not c.reason]
