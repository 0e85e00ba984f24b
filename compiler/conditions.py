"""What the rules of a recipe share: wildcards over source names and operators, and what is said of mistakes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import onnx_ir as ir

from tapeout.compiler.errors import UsageError
from tapeout.compiler.ir.origin import origin

CONDITIONS = ("node", "op", "tensor")


@dataclass(frozen=True)
class Condition:
    """The nodes (or the tensors) that a rule is for, by its wildcards."""

    index: int  # from 1
    nodes: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()

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


def check(rules: Sequence[Condition], nodes: Iterable[ir.Node], tensors: Iterable[str], source: str) -> None:
    """Raises UsageError naming every rule of `source` that matches nothing, with the nearest name."""
    nodes, tensors = list(nodes), list(tensors)
    idle = []
    for rule in rules:
        if rule.tensors:
            if not any(map(rule.covers, tensors)):
                idle.append((rule, _near(rule.tensors, tensors)))
        elif not any(map(rule.takes, nodes)):
            names = [n for node in nodes for n in origin(node)]
            ops = [op for node in nodes for op in op_names(node)]
            hint = None
            if rule.ops and not _matched(rule.ops, ops):
                hint = _near(rule.ops, ops) or f"operators here: {', '.join(sorted(set(ops)))}"
            idle.append((rule, hint or _near(rule.nodes, names)))
    if idle:
        lines = "; ".join(f"rule {r.index} ({r.text()}) matches nothing" for r, _ in idle)
        hints = [h for _, h in idle if h]
        raise UsageError(
            f"{source}: {lines}", hint=hints[0] if hints else "names are those of the source model"
        )


def parsed(table: Mapping[str, Any], where: str) -> dict[str, tuple[str, ...]]:
    """The conditions among the keys of a rule's table."""
    return {k: _patterns(table[k], f"{where}, {k}") if k in table else () for k in CONDITIONS}


def only(table: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    """Raises UsageError on a key that is none of `keys`, with the nearest."""
    for key in table:
        if key not in keys:
            raise UsageError(f"{where}: unknown key '{key}'", hint=nearest(key, keys))


def nearest(word: str, known: Sequence[str]) -> str:
    """What to say beside a word that is not known."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"valid: {', '.join(known)}"


def tables(value: Any, key: str, where: str) -> list[Mapping[str, Any]]:
    """The tables of [[key]]. Raises UsageError where `value` is something else."""
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise UsageError(f"{where}: '{key}' is no list of tables", hint=f"a {key} begins with [[{key}]]")
    return value


def _any(patterns: tuple[str, ...], names: Iterable[str]) -> bool:
    return not patterns or _matched(patterns, names)


def _matched(patterns: tuple[str, ...], names: Iterable[str]) -> bool:
    return any(fnmatchcase(n, p) for n in names for p in patterns)


def _near(patterns: Iterable[str], names: Iterable[str]) -> str | None:
    known = sorted(set(names))
    for pattern in patterns:
        close = difflib.get_close_matches(pattern.replace("*", ""), known, n=1, cutoff=0.6)
        if close:
            return f"did you mean '{close[0]}'?"
    return None


def _patterns(value: Any, where: str) -> tuple[str, ...]:
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not found or not all(isinstance(v, str) and v for v in found):
        raise UsageError(f"{where}: expected a name or a list of names, with * and ? as wildcards")
    return tuple(found)
