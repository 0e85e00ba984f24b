"""The vocabulary is rich enough for a real NPU: all 136 rules of Arm's Vela for Ethos-U55, inside and outside
each."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tapeout.compiler.declaration import Refusal, Row
from tests.compiler.vela_u55.cases import CASES
from tests.compiler.vela_u55.inside import DECLARATION, INSIDE
from tests.compiler.vela_u55.nodes import build
from tests.compiler.vela_u55.rules import RULES


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


@pytest.mark.skipif(shutil.which("vela") is None, reason="Arm's Vela (the extra 'vela') is not installed")
def test_the_installed_report_has_these_rules(tmp_path: Path) -> None:
    """The operators, and the number of rules for each, in the report of the Vela that is here."""
    subprocess.run(["vela", "--supported-ops-report"], cwd=tmp_path, check=True, capture_output=True)
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


def ask(op: str, change: dict[str, Any]) -> Row | Refusal:
    parts = INSIDE[op] | change
    attributes = {k[5:]: v for k, v in parts.items() if k.startswith("attr.")}
    return DECLARATION.match(
        build(
            DECLARATION.source.interfaces[op],
            {k: v for k, v in parts.items() if not k.startswith("attr.")},
            attributes,
        )
    )


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
