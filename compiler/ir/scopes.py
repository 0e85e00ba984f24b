"""Names and scopes while a model is read: what a node may refer to, and one name for each thing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import onnx
import onnx_ir as ir

from tapeout.compiler.errors import InvalidModelError, ResourceError
from tapeout.compiler.ir.budget import Budget

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
FunctionKey = tuple[str, str, str]  # domain, name, overload


@dataclass
class Sink:
    """The nodes and initializers of one graph being made."""

    nodes: list[ir.Node] = field(default_factory=list)
    initializers: list[ir.Value] = field(default_factory=list)


@dataclass
class Scope:
    """Names that nodes of one graph or function body may read; `outer` is where a subgraph looks next.

    `versions`: opset imports. `attributes`: what a function was called with, None outside functions.
    `prefix` and `origin` are set for bodies: nodes are named "call/inner"; a made body has its caller's
    origin.
    `given`: outputs of a body that are values of its caller.
    """

    sink: Sink
    versions: Mapping[str, int]
    values: dict[str, ir.Value] = field(default_factory=dict)
    outer: Scope | None = None
    attributes: Mapping[str, onnx.AttributeProto] | None = None
    prefix: str = ""
    origin: str | None = None
    depth: int = 1
    calls: tuple[FunctionKey, ...] = ()
    given: set[str] = field(default_factory=set)

    def find(self, name: str) -> ir.Value | None:
        scope: Scope | None = self
        while scope is not None:
            found = scope.values.get(name)
            if found is not None:
                return found
            scope = scope.outer
        return None


class Names:
    """The names given so far, to values and to nodes; sources may use one twice in different scopes."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self._values: set[str] = set()
        self._nodes: set[str] = set()
        self._fresh = 0

    def value(self, name: str) -> str:
        """A name for a value that the source calls `name`: that one where it is free."""
        self.check(name, "a value")
        return _unique(name, self._values)

    def node(self, name: str, index: int | None = None) -> str:
        """A name for a node; the second one of a name gets its position in the source."""
        self.check(name, "a node")
        return _unique(name, self._nodes, "" if index is None else f"_{index}")

    def fresh(self, hint: str) -> str:
        """A name for a value that the source does not have; `~` marks it."""
        while True:
            self._fresh += 1
            name = f"{hint}~{self._fresh}"
            if name not in self._values:
                self._values.add(name)
                return name

    def check(self, name: str, what: str) -> None:
        """Raise for names that would garble a report or exhaust memory."""
        if len(name) > self.budget.name_length:
            raise ResourceError(
                f"the name of {what} has {len(name)} characters, at most {self.budget.name_length}"
            )
        if _CONTROL.search(name):
            raise InvalidModelError(f"the name of {what} holds control characters: {name[:80]!r}")


def text(*values: str | bytes) -> None:
    """Raise InvalidModelError for bytes that are no UTF-8: the parser hands them through."""
    for value in values:
        if not isinstance(value, str):
            raise InvalidModelError(f"the model holds text that is not UTF-8: {bytes(value[:40])!r}")


def properties(entries: Iterable[onnx.StringStringEntryProto]) -> dict[str, str]:
    """Metadata as a dictionary."""
    for entry in entries:
        text(entry.key, entry.value)
    return {entry.key: entry.value for entry in entries}


def _unique(name: str, known: set[str], suffix: str = "") -> str:
    candidate, count = name, 1
    if candidate in known and suffix:
        name = candidate = name + suffix
    while candidate in known:
        count += 1
        candidate = f"{name}_{count}"
    known.add(candidate)
    return candidate
