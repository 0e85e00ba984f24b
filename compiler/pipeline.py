"""The driver: runs passes in order, checks the graph before the first and after each, names the pass at fault."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import onnx_ir as ir

from tapeout.compiler.errors import InternalError, TapeoutError, VendorToolError
from tapeout.compiler.ir import check
from tapeout.compiler.ir import graph as g
from tapeout.compiler.rewriting import Changes, Declined


class Pass(Protocol):
    """Graph to graph, in place. A function, or a frozen dataclass whose fields are its options.

    Optional attributes: `requires` and `ensures`, tuples of predicates `(model) -> str | None` (the reason why it
    does not hold), which the driver checks.
    """

    def __call__(self, model: ir.Model, /) -> Changes: ...


def name_of(step: Pass) -> str:
    """The name of a pass in reports: its `name` field, else the name of the function or class."""
    return getattr(step, "name", None) or getattr(step, "__name__", None) or type(step).__name__


@dataclass(frozen=True)
class Step:
    """One pass that ran: its name, its number of edits, seconds, and what it recognised and left."""

    name: str
    count: int
    seconds: float
    declined: tuple[Declined, ...] = ()


@dataclass
class History:
    """The passes that ran, in order."""

    steps: list[Step] = field(default_factory=list)

    def names(self) -> list[str]:
        return [s.name for s in self.steps]


Observer = Callable[[int, str, ir.Model], Any]


def run(model: ir.Model, passes: Sequence[Pass], observer: Observer | None = None) -> History:
    """Run `passes` on `model` in place. `observer(index, name, model)` sees the graph before the first pass
    (index -1, "source") and after each.

    Raises InternalError naming the pass that broke the graph, those before it and the nodes around the fault;
    a TapeoutError that a pass raises goes through unchanged.
    """
    history = History()
    g.share_names(model.graph)
    frozen = check.digests(model)
    _verify(model, frozen, "import", history)
    if observer is not None:
        observer(-1, "source", model)
    for index, step in enumerate(passes):
        name = name_of(step)
        _hold(step, "requires", model, name, history)
        start = time.perf_counter()
        try:
            changes = step(model)
        except TapeoutError:
            raise
        except Exception as error:
            raise InternalError(
                f"pass '{name}' failed after {_list(history)}: {type(error).__name__}: {error}",
                hint="this is a fault of tapeout; please report it with the model",
            ) from error
        history.steps.append(Step(name, changes.count, time.perf_counter() - start, changes.declined))
        if changes.count:
            _verify(model, frozen, name, history, getattr(step, "owner", None))
            frozen |= check.digests(model)
        _hold(step, "ensures", model, name, history)
        if observer is not None:
            observer(index, name, model)
    return history


def _verify(
    model: ir.Model,
    frozen: dict[ir.OperatorIdentifier, str],
    name: str,
    history: History,
    owner: str | None = None,
) -> None:
    found = check.faults(model, frozen)
    if found and owner is not None:
        raise VendorToolError(
            f"{owner}: the graph is not valid after its pass '{name}' (before it ran {_list(history)}): "
            + "; ".join(found)
        )
    if found:
        raise InternalError(
            f"the graph is not valid after '{name}' (before it ran {_list(history)}): " + "; ".join(found),
            hint="this is a fault of tapeout; please report it with the model",
        )


def _hold(step: Pass, kind: str, model: ir.Model, name: str, history: History) -> None:
    for predicate in getattr(step, kind, ()):
        reason = predicate(model)
        if reason is not None:
            raise InternalError(
                f"pass '{name}' {kind} {predicate.__name__}: {reason} (before it ran {_list(history)})"
            )


def _list(history: History) -> str:
    return ", ".join(f"'{n}'" for n in history.names()) or "no other pass"
