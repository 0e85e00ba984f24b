"""A recipe: ordered wildcard rules that say how which part of a model is quantized. The last rule that
matches decides, for each thing that it states.

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
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import onnx_ir as ir

from tapeout.compiler.errors import UsageError
from tapeout.compiler.ir.origin import origin
from tapeout.compiler.schemes import FLOAT16, FLOAT32, STATIC, WEIGHTS, instead

METHODS = ("minmax", "percentile", "entropy", "mse", "moving")
TOP = ("scheme", "range", "requantize", "islands", "rule")
CONDITIONS = ("node", "op", "tensor")
NODE_ACTIONS = ("scheme", "range")
TENSOR_ACTIONS = ("range",)

Range = str | tuple[float, float]


@dataclass(frozen=True)
class Rule:
    """One rule: for the nodes (or the tensor) that its wildcards match, what it states."""

    index: int  # from 1
    nodes: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    scheme: str | None = None
    range: Range | None = None

    def takes(self, node: ir.Node) -> bool:
        """Whether the rule is for `node`, by the names of the source nodes that it computes for and by its
        operator: "Conv" stands for its channels-last form too."""
        if self.tensors:
            return False
        return _any(self.nodes, origin(node) or (node.name or "",)) and _any(self.ops, op_names(node))

    def covers(self, tensor: str) -> bool:
        """Whether the rule is for the tensor of this source name."""
        return bool(self.tensors) and _any(self.tensors, (tensor,))

    def text(self) -> str:
        """The rule's conditions as the file has them."""
        parts = [(k, v) for k, v in (("node", self.nodes), ("op", self.ops), ("tensor", self.tensors)) if v]
        return ", ".join(f"{k} = {', '.join(map(repr, v))}" for k, v in parts) or "everything"


def op_names(node: ir.Node) -> tuple[str, ...]:
    """The names under which a rule may call the operator of `node`: ("ConvNHWC", "Conv")."""
    plain = node.op_type
    for suffix in ("NWC", "NHWC", "NDHWC"):
        plain = plain.removesuffix(suffix) if plain.endswith(suffix) else plain
    more = ("Gemm", "MatMul") if plain == "FullyConnected" else ()
    full = () if node.domain == "" else (f"{node.domain}::{node.op_type}",)
    return (node.op_type, *(() if plain == node.op_type else (plain,)), *full, *more)


def _any(patterns: tuple[str, ...], names: Iterable[str]) -> bool:
    return not patterns or any(fnmatchcase(n, p) for n in names for p in patterns)


@dataclass(frozen=True)
class Recipe:
    """What a user asks of quantization beyond the name of a scheme."""

    rules: tuple[Rule, ...] = ()
    scheme: str | None = None
    range: Range = "minmax"
    requantize: float = 2.0
    islands: bool = True
    source: str = "recipe"
    raw: Mapping[str, Any] = field(default_factory=dict, compare=False)

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
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{source} is not valid TOML: {error}") from error
        _only(table, TOP, source)
        rules = table.get("rule", [])
        if not isinstance(rules, list) or not all(isinstance(r, dict) for r in rules):
            raise UsageError(f"{source}: 'rule' is no list of tables", hint="a rule begins with [[rule]]")
        requantize = table.get("requantize", 2.0)
        if isinstance(requantize, bool) or not isinstance(requantize, int | float) or requantize < 1:
            raise UsageError(f"{source}: requantize is {requantize!r}, expected a number of at least 1")
        islands = table.get("islands", True)
        if not isinstance(islands, bool):
            raise UsageError(f"{source}: islands is {islands!r}, expected true or false")
        return cls(
            islands=islands,
            rules=tuple(_rule(i, r, f"{source}, rule {i}") for i, r in enumerate(rules, 1)),
            scheme=_scheme(table.get("scheme"), source),
            range=_range(table.get("range", "minmax"), source),
            requantize=float(requantize),
            source=source,
            raw=table,
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
        nodes, tensors = list(nodes), list(tensors)
        idle = []
        for rule in self.rules:
            if rule.tensors:
                if not any(map(rule.covers, tensors)):
                    idle.append((rule, _near(rule.tensors, tensors)))
            elif not any(map(rule.takes, nodes)):
                names = [n for node in nodes for n in origin(node)]
                ops = [op for node in nodes for op in op_names(node)]
                hint = _near(rule.ops, ops) if rule.ops and not _matched(rule.ops, ops) else None
                idle.append((rule, hint or _near(rule.nodes, names)))
        if idle:
            lines = "; ".join(f"rule {r.index} ({r.text()}) matches nothing" for r, _ in idle)
            hints = [h for _, h in idle if h]
            raise UsageError(
                f"{self.source}: {lines}", hint=hints[0] if hints else "names are those of the source model"
            )


def _matched(patterns: tuple[str, ...], names: Iterable[str]) -> bool:
    return any(fnmatchcase(n, p) for n in names for p in patterns)


def _near(patterns: Iterable[str], names: Iterable[str]) -> str | None:
    known = sorted(set(names))
    for pattern in patterns:
        close = difflib.get_close_matches(pattern.replace("*", ""), known, n=1, cutoff=0.6)
        if close:
            return f"did you mean '{close[0]}'?"
    return None


def _only(table: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in keys:
            close = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
            hint = f"did you mean '{close[0]}'?" if close else f"valid: {', '.join(keys)}"
            raise UsageError(f"{where}: unknown key '{key}'", hint=hint)


def _rule(index: int, table: Mapping[str, Any], where: str) -> Rule:
    _only(table, (*CONDITIONS, *dict.fromkeys((*NODE_ACTIONS, *TENSOR_ACTIONS))), where)
    patterns = {k: _patterns(table[k], f"{where}, {k}") if k in table else () for k in CONDITIONS}
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


def _patterns(value: Any, where: str) -> tuple[str, ...]:
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not found or not all(isinstance(v, str) and v for v in found):
        raise UsageError(f"{where}: expected a name or a list of names, with * and ? as wildcards")
    return tuple(found)


def _scheme(value: Any, where: str) -> str | None:
    if value is None:
        return None
    known = (FLOAT32, FLOAT16, *STATIC, *WEIGHTS)
    if value not in known:
        close = difflib.get_close_matches(str(value), known, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'?" if close else f"valid: {', '.join(known)}"
        raise UsageError(f"{where}: unknown scheme '{value}'", hint=hint)
    return str(value)


def _range(value: Any, where: str) -> Range:
    if isinstance(value, str):
        if value not in METHODS:
            close = difflib.get_close_matches(value, METHODS, n=1, cutoff=0.5)
            hint = f"did you mean '{close[0]}'?" if close else f"valid: {', '.join(METHODS)}, or [low, high]"
            raise UsageError(f"{where}: unknown method '{value}' of ranges", hint=hint)
        return value
    numbers = isinstance(value, list) and len(value) == 2
    if not numbers or any(isinstance(v, bool) or not isinstance(v, int | float) for v in value):
        raise UsageError(f"{where}: range is {value!r}, expected a method or [low, high]")
    low, high = map(float, value)
    if not (low < high and abs(low) < float("inf") and abs(high) < float("inf")):
        raise UsageError(f"{where}: the range {value!r} is empty or infinite")
    return low, high
