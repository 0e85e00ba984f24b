"""Plants a fault in a pass or in the emission of a target, exports, and judges what the error names."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir

import tapeout
from tapeout.compiler.errors import AccuracyError, TapeoutError, UnsupportedError
from tapeout.compiler.pipeline import Pass, name_of
from tapeout.compiler.rewriting import Changes
from tapeout.compiler.target import Request, Target
from tests.faults.kinds import KINDS

EMISSION = "emission"


@dataclass(frozen=True)
class Spoiled:
    """A pass with a fault: what it does, and then one thing wrong."""

    step: Pass | None
    name: str
    kind: str
    seed: int
    planted: list[tuple[str, ...]] = field(default_factory=list, compare=False)

    def __call__(self, model: ir.Model) -> Changes:
        changes = self.step(model) if self.step is not None else Changes(0)
        spoiled = KINDS[self.kind](model, np.random.default_rng(self.seed))
        if spoiled is not None:
            self.planted.append(spoiled)
        return Changes(changes.count + (spoiled is not None), changes.declined)


class Nowhere(TapeoutError):
    """The graph has no place for the fault."""


@dataclass(frozen=True)
class Outcome:
    """One planted fault: `where` is the pass (or "emission"), `spoiled` the source nodes, `error` what was
    raised."""

    kind: str
    network: str
    where: str
    spoiled: tuple[str, ...]
    error: TapeoutError | None

    @property
    def found(self) -> bool:
        """An accuracy error was raised at all."""
        return isinstance(self.error, AccuracyError)

    @property
    def right_pass(self) -> bool:
        where = f"pass '{self.where}'" if self.where != EMISSION else "pass 'emission ("
        return self.found and where in str(self.error)

    @property
    def right_node(self) -> bool:
        """The node spoiled is among the first three named, and no crowd is."""
        return self.error is not None and bool(set(self.error.nodes[:3]) & set(self.spoiled))

    @property
    def right(self) -> bool:
        return self.right_pass and self.right_node

    def __str__(self) -> str:
        state = "ok  " if self.right else "MISS"
        text = "" if self.right else f"  <- {self.error}"
        where = f"in {self.where:16} at {', '.join(self.spoiled[:3])}"
        return f"{state} {self.kind:24} {self.network:10} {where}{text}"


def spoil(target: Target, request: Request, place: int, kind: str, seed: int) -> tuple[Target, Spoiled]:
    """`target` with a fault in its pass number `place`; past the last pass, in its emission."""
    steps = target.passes(request)
    if place < len(steps):
        spoiled = Spoiled(steps[place], name_of(steps[place]), kind, seed)
        steps = (*steps[:place], spoiled, *steps[place + 1 :])
    else:
        spoiled = Spoiled(None, EMISSION, kind, seed)

    def emit(model: ir.Model, sink: BinaryIO, request: Request) -> None:
        if spoiled.step is None:
            spoiled(model)
        if not spoiled.planted:
            raise Nowhere("there is no place for this fault")
        target.emit(model, sink, request)

    return dataclasses.replace(target, passes=lambda request: steps, emit=emit), spoiled


def plant(
    model: Any, name: str, target: Target, place: int, kind: str, folder: Path, seed: int = 0, **options: Any
) -> Outcome | None:
    """Export `model` with the fault; None where the graph has no place for it there, or it does no harm."""
    target, spoiled = spoil(target, Request(), place, kind, seed)
    error: TapeoutError | None = None
    try:
        tapeout.export(model, target, output=folder / f"planted{target.suffix}", **options)
    except TapeoutError as raised:
        error = raised
    if not spoiled.planted:
        if error is not None and not isinstance(error, Nowhere):
            raise error
        return None
    if error is None or isinstance(error, UnsupportedError):
        return (
            None  # the spoiled number is read by nobody, or the target refuses the spoiled node by its name
        )
    return Outcome(kind, name, spoiled.name, spoiled.planted[0], error)
