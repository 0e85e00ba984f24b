"""The steps of a recipe before quantization: what is pruned or factorized by which method, with rules for layers.

    [[step]]
    prune = "sparsegpt"              # the method
    ratio = 0.5                      # or pattern = "2:4", "1x4:0.5"

    [[step.rule]]
    node = "stem/*"                  # source node names
    op = "Conv"                      # and operators
    skip = true                      # these stay as they are; or a method, ratio or pattern of their own

    [[step]]
    factorize = "svd"
    ratio = 0.3                      # of the operations

    [[step.rule]]
    node = "head"
    rank = 16

Which methods there are, and what each can be told, is for those who carry them out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from tapeout.compiler import conditions
from tapeout.compiler.conditions import Condition
from tapeout.compiler.errors import UsageError

KINDS = ("prune", "factorize")
# What a step or a rule may state of how much goes.
AMOUNTS = ("ratio", "pattern")
# Further options of a method.
OPTIONS = ("multiple", "importance", "rounds", "by")
STATED = ("skip", "method", *AMOUNTS, "rank")


@dataclass(frozen=True)
class StepRule(Condition):
    """For the layers that its wildcards match, what it states in place of the step."""

    skip: bool | None = None
    method: str | None = None
    amount: str | None = None  # a ratio or a pattern, as text
    rank: tuple[int, ...] | None = None

    def as_json(self) -> dict[str, Any]:
        """Conditions and what is stated, as far as there is something."""
        known = ("nodes", "ops", "skip", "method", "amount", "rank")
        return {key: value for key in known if (value := getattr(self, key)) not in (None, ())}


@dataclass(frozen=True)
class Step:
    """One step: `kind` is of KINDS, `amount` a ratio or a pattern as text ("" where the method needs none)."""

    kind: str
    method: str
    amount: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    rules: tuple[StepRule, ...] = ()
    source: str = ""  # what messages call it

    @property
    def text(self) -> str:
        """The step as the command line has it, without its rules: "prune sparsegpt=0.5"."""
        amount = f"={self.amount}" if self.amount else ""
        return f"{self.kind} {self.method}{amount}" + "".join(f",{k}={v}" for k, v in self.options.items())

    def as_json(self) -> dict[str, Any]:
        """The step with its rules, for a manifest."""
        return {
            "step": self.text,
            **({"rules": [rule.as_json() for rule in self.rules]} if self.rules else {}),
        }

    def told(self, node: ir.Node) -> StepRule:
        """What the rules say of a layer's node: for each thing the last that matches and states it."""
        found: dict[str, Any] = {}
        for rule in self.rules:
            if rule.takes(node):
                found |= {
                    k: v for k in ("skip", "method", "amount", "rank") if (v := getattr(rule, k)) is not None
                }
        return StepRule(0, **found)

    def check(self, nodes: Iterable[ir.Node]) -> None:
        """Raises UsageError naming every rule that matches none of `nodes`, with the nearest name."""
        conditions.check(self.rules, nodes, (), self.source)


def parse(value: Any, source: str) -> tuple[Step, ...]:
    """The steps in the tables of [[step]], in order. Raises UsageError."""
    return tuple(
        _step(table, f"{source}, step {number}")
        for number, table in enumerate(conditions.tables(value, "step", source), 1)
    )


def _step(table: Mapping[str, Any], where: str) -> Step:
    conditions.only(table, (*KINDS, *AMOUNTS, *OPTIONS, "rule"), where)
    kinds = [k for k in KINDS if k in table]
    if len(kinds) != 1:
        raise UsageError(
            f"{where}: states {' and '.join(kinds) or 'nothing to do'}",
            hint='a step is one of prune = "METHOD", factorize = "METHOD", and last quantize = "SCHEME"',
        )
    rules = conditions.tables(table.get("rule", []), "rule", where)
    return Step(
        kinds[0],
        _text(table[kinds[0]], f"{where}, {kinds[0]}"),
        _amount(table, where) or "",
        {k: str(table[k]) for k in OPTIONS if k in table},
        tuple(_rule(i, r, f"{where}, rule {i}") for i, r in enumerate(rules, 1)),
        where,
    )


def _rule(index: int, table: Mapping[str, Any], where: str) -> StepRule:
    conditions.only(table, ("node", "op", *STATED), where)
    patterns = conditions.parsed(table, where)
    if not any(k in table for k in STATED):
        raise UsageError(f"{where}: states nothing", hint=f"valid: {', '.join(STATED)}")
    skip = table.get("skip")
    if skip is not None and not isinstance(skip, bool):
        raise UsageError(f"{where}: skip is {skip!r}, expected true or false")
    method = table.get("method")
    return StepRule(
        index,
        patterns["node"],
        patterns["op"],
        skip=skip,
        method=None if method is None else _text(method, f"{where}, method"),
        amount=_amount(table, where),
        rank=_rank(table["rank"], where) if "rank" in table else None,
    )


def _amount(table: Mapping[str, Any], where: str) -> str | None:
    if all(k in table for k in AMOUNTS):
        raise UsageError(f"{where}: states a ratio and a pattern", hint='a pattern may hold one: "1x4:0.5"')
    if "pattern" in table:
        return _text(table["pattern"], f"{where}, pattern")
    ratio = table.get("ratio")
    if ratio is None:
        return None
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio < 1:
        raise UsageError(
            f"{where}: the ratio {ratio!r} lies outside (0, 1)", hint="it is the share that goes: ratio = 0.5"
        )
    return f"{ratio:g}"


def _rank(value: Any, where: str) -> tuple[int, ...]:
    found = value if isinstance(value, list) else [value]
    if not found or not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in found):
        raise UsageError(
            f"{where}: rank is {value!r}, expected a positive number",
            hint="or two for tucker: rank = [16, 8]",
        )
    return tuple(found)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise UsageError(f"{where}: expected text, found {value!r}")
    return value
