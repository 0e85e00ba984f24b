"""Mutations of a target: of what it emits, and of its declaration. Sites are enumerated, not chosen."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Site:
    """One place where one mutation can be made: `kind` is the operator's name, `where` the TFLite operator or the
    row, `detail` what of it, `change` how."""

    kind: str
    where: str
    detail: str
    change: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}, {self.detail}{f' ({self.change})' if self.change else ''}"
