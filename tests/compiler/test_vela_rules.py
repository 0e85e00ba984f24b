"""The vocabulary is rich enough for a real NPU: all 136 rules of Arm's Vela for Ethos-U55, inside and outside
each."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from tapeout.compiler.declaration import Declaration, Refusal, Row
from tapeout.targets.ethos_u.finish import command
from tests.compiler.vela_u55 import cases, cases_data
from tests.compiler.vela_u55.inside import DECLARATION, INSIDE
from tests.compiler.vela_u55.nodes import build
from tests.compiler.vela_u55.rules import RULES

CASES = cases.CASES + cases_data.CASES


def keys(op: str, row: Row) -> set[str]:
    """Everything that a row states of an operator, as `RULES` spells it."""
    found = {limit.name for limit in row.limits} | {f"rank.{p}" for p in row.rank}
    there = ("*", *DECLARATION.source.interfaces[op].ports)
    for name, port in ((n, p) for n, p in row.ports.items() if n in there):
        stated = {"role": port.role, "dtype": port.dtypes, "per_tensor": port.per_tensor}
        found |= {f"ports.{name}.{k}" for k, v in stated.items() if v}
    return found | ({"same_scale"} if row.same_scale else set())


def everything(op: str, rows: Iterable[Row]) -> set[str]:
    return set().union(*(keys(op, row) for row in (*rows, *DECLARATION.common(op))))


def test_every_rule_of_every_operator_is_stated() -> None:
    assert set(DECLARATION.rows) == set(RULES) - {"generic"} and len(DECLARATION.rows) == 55
    assert sum(map(len, RULES.values())) == 136
    for op, rows in DECLARATION.rows.items():
        stated = everything(op, rows)
        for rule in RULES[op]:
            assert set(rule.split()) <= stated, (op, rule)
    for rule in RULES["generic"]:
        assert set(rule.split()) <= everything("ADD", []), rule


def test_nothing_is_stated_that_is_no_rule() -> None:
    for op, rows in DECLARATION.rows.items():
        stated = everything(op, rows)
        assert stated <= {k for rule in RULES[op] + RULES["generic"] for k in rule.split()}, op


@pytest.mark.skipif(find_spec("ethosu") is None, reason="Arm's Vela (the extra 'vela') is not installed")
def test_the_installed_report_has_these_rules(tmp_path: Path) -> None:
    """The operators, and the number of rules for each, in the report of the Vela that is here."""
    subprocess.run([command(), "--supported-ops-report"], cwd=tmp_path, check=True, capture_output=True)
    report = (tmp_path / "SUPPORTED_OPS.md").read_text()
    if "Vela version: `5.2" not in report:
        pytest.skip("the rules here are those of Vela 5.2")
    counts = dict.fromkeys(RULES, 0)
    part = None
    for line in report.splitlines():
        if line.startswith("## "):
            part = "generic" if line.endswith("Ethos-U55 and Ethos-U65 TFLite Generic Constraints") else None
        elif found := re.match(r"### Ethos-U55 and Ethos-U65 TFLite (\w+) Constraints", line):
            part = found[1]
        elif line.startswith("### "):
            part = None
        elif part and line.startswith("- "):
            counts[part] += 1
    assert counts == {op: len(rules) for op, rules in RULES.items()}
    summary = report.split("## Ethos-U85 TFLite Summary")[0]
    assert set(re.findall(r"^\| ([A-Z0-9_]+) \|", summary, re.M)) == set(RULES) - {"generic"}


def node(op: str, change: dict[str, Any]) -> ir.Node:
    """The call of `INSIDE` with what a case changes."""
    parts = INSIDE[op] | change
    attributes = {k[5:]: v for k, v in parts.items() if k.startswith("attr.")}
    ports = {k: v for k, v in parts.items() if not k.startswith("attr.")}
    return build(DECLARATION.source.interfaces[op], ports, attributes)


def ask(op: str, change: dict[str, Any]) -> Row | Refusal:
    return DECLARATION.match(node(op, change))


@pytest.mark.parametrize("op", sorted(RULES.keys() - {"generic"}))
def test_every_operator_is_taken_inside_its_rules(op: str) -> None:
    found = ask(op, {})
    assert isinstance(found, Row), str(found)


@pytest.mark.parametrize(
    ("op", "outside", "says", "inside"), [pytest.param(*c, id=f"{c[0]}-{i}") for i, c in enumerate(CASES)]
)
def test_inside_and_outside_of_each_rule(
    op: str, outside: dict[str, Any], says: str, inside: dict[str, Any]
) -> None:
    if outside:
        refused = ask(op, outside)
        assert isinstance(refused, Refusal), f"{op} {outside} is taken"
        assert says in str(refused)
    taken = ask(op, inside)
    assert isinstance(taken, Row), str(taken)


def without(row: Row) -> Iterator[tuple[str, Row]]:
    """The row with each of its keys left out in turn."""
    for i, limit in enumerate(row.limits):
        yield limit.name, replace(row, limits=row.limits[:i] + row.limits[i + 1 :])
    for name, port in row.ports.items():
        for key, free in (("role", None), ("dtypes", ()), ("per_tensor", False)):
            if getattr(port, key):
                yield f"{name}.{key}", replace(row, ports={**row.ports, name: replace(port, **{key: free})})
    if row.rank:
        yield "rank", replace(row, rank={})
    if row.same_scale:
        yield "same_scale", replace(row, same_scale=())


@pytest.mark.slow
def test_every_key_keeps_something_out() -> None:
    """Without any one of its keys the declaration takes a case that is outside, or gives another reason.

    But for keys that nothing can break: pools have no dilation, unsigned zero points are never negative.
    """
    outside = [(op, node(op, change), says) for op, change, says, _ in CASES if change]

    def holds(rows: Declaration, op: str | None) -> bool:
        answers = ((rows.match(n), says) for o, n, says in outside if op in (None, o))
        return all(isinstance(a, Refusal) and says in str(a) for a, says in answers)

    assert holds(DECLARATION, None)
    idle = set()
    for op, rows in DECLARATION.rows.items():
        for i, row in enumerate(rows):
            for key, less in without(row):
                changed = Declaration(DECLARATION.source)
                changed.rows[op] = [*rows[:i], less, *rows[i + 1 :]]
                if holds(changed, op):
                    idle.add((op, key))
    for ops, but, row in list(DECLARATION.source.common):
        for key, less in without(row):
            common = [(o, b, less if r is row else r) for o, b, r in DECLARATION.source.common]
            if holds(Declaration(replace(DECLARATION.source, common=common)), None):
                idle.add((f"{ops} {but}", key))
    assert {key for _, key in idle} == {"dilation.max", "unsigned.zero_point"}, idle
