"""A recipe: ordered wildcard rules that say how which part of a model is quantized, and the steps (`steps.py`) that
go before. The last rule that matches decides, for each thing that it states.

    scheme = "int8"                  # what no rule says otherwise; --quantize on the command line wins
    range = "minmax"                 # how the ranges of activations are chosen
    requantize = 2.0                 # how many times coarser a tensor may become before a requantize is put in
    islands = true                   # whether what is measured to cost accuracy may stay in floats without a rule

    [[rule]]
    node = "encoder/*"               # source node names
    op = ["Conv", "Gemm"]            # and operators; a rule without `node`, `op` and `tensor` is for everything
    scheme = "float32"

    [[rule]]
    tensor = "attention_mask*"       # source tensor names
    range = [-1.0, 1.0]              # or a method: minmax, percentile, entropy, mse, moving

The same keys may stand in the last step, [[step]] with quantize = "int8" for the scheme.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from tapeout.compiler import conditions, steps
from tapeout.compiler.conditions import CONDITIONS, Condition, nearest, only
from tapeout.compiler.errors import UsageError
from tapeout.compiler.schemes import FLOAT16, FLOAT32, STATIC, WEIGHTS, instead
from tapeout.compiler.steps import Step

METHODS = ("minmax", "percentile", "entropy", "mse", "moving")
QUANTIZATION = ("scheme", "range", "requantize", "islands", "rule")
NODE_ACTIONS = ("scheme", "range")
TENSOR_ACTIONS = ("range",)

Range = str | tuple[float, float]


@dataclass(frozen=True)
class Rule(Condition):
    """One rule: for the nodes (or the tensor) that its wildcards match, what it states."""

    scheme: str | None = None
    range: Range | None = None


@dataclass(frozen=True)
class Recipe:
    """What a user asks of quantization beyond the name of a scheme, and of what goes before it."""

    rules: tuple[Rule, ...] = ()
    scheme: str | None = None
    range: Range = "minmax"
    requantize: float = 2.0
    islands: bool = True
    source: str = "recipe"
    raw: Mapping[str, Any] = field(default_factory=dict, compare=False)
    steps: tuple[Step, ...] = ()  # before quantization

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """Read a TOML file. Raises UsageError naming the rule, the key and the nearest valid one."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
            raise UsageError(f"the recipe '{path}' cannot be read: {reason}") from error
        return cls.parse(text, f"the recipe '{path}'")

    @classmethod
    def parse(cls, text: str, source: str = "the recipe") -> Recipe:
        """The recipe written in `text`; `source` is what messages call it."""
        try:
            whole = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{source} is not valid TOML: {error}") from error
        only(whole, (*QUANTIZATION, "step"), source)
        table, listed, where = _quantization(whole, source)
        rules = conditions.tables(table.get("rule", []), "rule", where)
        requantize = table.get("requantize", 2.0)
        if isinstance(requantize, bool) or not isinstance(requantize, int | float) or requantize < 1:
            raise UsageError(f"{where}: requantize is {requantize!r}, expected a number of at least 1")
        islands = table.get("islands", True)
        if not isinstance(islands, bool):
            raise UsageError(f"{where}: islands is {islands!r}, expected true or false")
        return cls(
            islands=islands,
            rules=tuple(_rule(i, r, f"{where}, rule {i}") for i, r in enumerate(rules, 1)),
            scheme=_scheme(table.get("scheme"), where),
            range=_range(table.get("range", "minmax"), where),
            requantize=float(requantize),
            source=where,
            raw=table,
            steps=steps.parse(listed, source),
        )

    def scheme_of(self, node: ir.Node) -> str | None:
        """The scheme that the last matching rule states; None where none does."""
        return next((r.scheme for r in reversed(self.rules) if r.scheme is not None and r.takes(node)), None)

    def check_schemes(self, target: str, offered: Collection[str]) -> None:
        """Raises UsageError for a rule that states a scheme which `target` does not offer."""
        for rule in self.rules:
            if rule.scheme is not None and rule.scheme not in (FLOAT32, *offered):
                raise UsageError(
                    f"{self.source}, rule {rule.index} ({rule.text()}): target '{target}' does not offer "
                    f"'{rule.scheme}'; it offers {', '.join(offered)}",
                    hint=instead(rule.scheme, list(offered)),
                )

    def states(self, schemes: Collection[str]) -> bool:
        """Whether a rule states one of `schemes`."""
        return any(r.scheme in schemes for r in self.rules)

    def otherwise(self, scheme: str) -> Recipe:
        """The same, with `scheme` for the nodes that no rule states one for."""
        return replace(self, rules=(Rule(0, scheme=scheme), *self.rules))

    def range_of(self, names: Iterable[str], node: ir.Node | None) -> Range:
        """How the range of a tensor is chosen, by its source names and the node that makes it: a method, or
        the range itself."""
        names = tuple(names)
        for rule in reversed(self.rules):
            if rule.range is None:
                continue
            if any(map(rule.covers, names)) or (node is not None and rule.takes(node)):
                return rule.range
        return self.range

    def check(self, nodes: Iterable[ir.Node], tensors: Iterable[str]) -> None:
        """Raises UsageError naming every rule that matches nothing, with the nearest name."""
        conditions.check(self.rules, nodes, tensors, self.source)

    @property
    def quantization(self) -> Recipe | None:
        """What it says of quantization; None where it has other steps alone."""
        said = self.raw or self.rules or self.scheme
        return replace(self, steps=()) if said or not self.steps else None


def _quantization(table: Mapping[str, Any], source: str) -> tuple[Mapping[str, Any], list[Any], str]:
    """The keys that say how to quantize, at the top or in the last step, the other steps, and where the keys are."""
    listed = list(conditions.tables(table.get("step", []), "step", source))
    found = [i for i, step in enumerate(listed) if "quantize" in step]
    if not found:
        return {k: v for k, v in table.items() if k != "step"}, listed, source
    where = f"{source}, step {found[0] + 1}"
    if found != [len(listed) - 1]:
        raise UsageError(f"{where}: quantize is not the last step", hint="prune and factorize before it")
    beside = [k for k in table if k != "step"]
    if beside:
        raise UsageError(
            f"{source}: '{beside[0]}' stands at the top, and {where} quantizes", hint="move it into that step"
        )
    last = listed.pop()
    only(last, ("quantize", *QUANTIZATION), where)
    if "scheme" in last:
        raise UsageError(f"{where}: states quantize and scheme", hint="quantize is the scheme")
    return {"scheme" if k == "quantize" else k: v for k, v in last.items()}, listed, where


def _rule(index: int, table: Mapping[str, Any], where: str) -> Rule:
    only(table, (*CONDITIONS, *dict.fromkeys((*NODE_ACTIONS, *TENSOR_ACTIONS))), where)
    patterns = conditions.parsed(table, where)
    if patterns["tensor"] and (patterns["node"] or patterns["op"]):
        raise UsageError(f"{where}: is for a tensor and for nodes", hint="make two rules of it")
    stated = [k for k in table if k not in CONDITIONS]
    if not stated:
        raise UsageError(f"{where}: states nothing", hint=f"valid: {', '.join(NODE_ACTIONS)}")
    for key in stated:
        if patterns["tensor"] and key not in TENSOR_ACTIONS:
            raise UsageError(f"{where}: '{key}' is said of nodes, not of a tensor", hint="use node = or op =")
    return Rule(
        index,
        patterns["node"],
        patterns["op"],
        patterns["tensor"],
        _scheme(table.get("scheme"), where),
        _range(table["range"], where) if "range" in table else None,
    )


def _scheme(value: Any, where: str) -> str | None:
    if value is None:
        return None
    known = (FLOAT32, FLOAT16, *STATIC, *WEIGHTS)
    if value not in known:
        raise UsageError(f"{where}: unknown scheme '{value}'", hint=nearest(str(value), known))
    return str(value)


def _range(value: Any, where: str) -> Range:
    if isinstance(value, str):
        if value not in METHODS:
            hint = nearest(value, (*METHODS, "[low, high]"))
            raise UsageError(f"{where}: unknown method '{value}' of ranges", hint=hint)
        return value
    numbers = isinstance(value, list) and len(value) == 2
    if not numbers or any(isinstance(v, bool) or not isinstance(v, int | float) for v in value):
        raise UsageError(f"{where}: range is {value!r}, expected a method or [low, high]")
    low, high = map(float, value)
    if not (low < high and abs(low) < float("inf") and abs(high) < float("inf")):
        raise UsageError(f"{where}: the range {value!r} is empty or infinite")
    return low, high
