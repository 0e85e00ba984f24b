"""The table of quantities, and how a name is found in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tapeout.compiler.operators import Call, Interface

Measure = Callable[[Call], Any]


@dataclass(frozen=True)
class Quantity:
    """`label` is what messages call it, with PORT where the port's name goes (else "of PORT" is added);
    `port` is true where it needs a port in front of its name."""

    name: str
    label: str
    function: Callable[..., Any]
    port: bool = False

    @property
    def doc(self) -> str:
        return (self.function.__doc__ or "").strip()


REGISTRY: dict[str, Quantity] = {}
PORTS: dict[str, Quantity] = {}


def quantity(
    name: str, label: str | None = None, *, port: bool = False
) -> Callable[[Callable[..., Any]], Quantity]:
    """Make a quantity of a documented function; `label` is its name in messages."""

    def make(function: Callable[..., Any]) -> Quantity:
        assert function.__doc__, f"quantity {name} needs a docstring"
        return Quantity(name, label or name.removesuffix(".*").replace(".", " "), function, port)

    return make


def own(
    name: str, label: str | None = None, *, port: bool = False
) -> Callable[[Callable[..., Any]], Quantity]:
    def make(function: Callable[..., Any]) -> Quantity:
        made = quantity(name, label, port=port)(function)
        (PORTS if port else REGISTRY)[name] = made
        return made

    return make


class Vocabulary:
    """The quantities that a declaration may name: ours and the target's own."""

    def __init__(self, extra: Iterable[Quantity] = ()) -> None:
        own = self.extra = tuple(extra)
        self.calls = REGISTRY | {q.name: q for q in own if not q.port}
        self.ports = PORTS | {q.name: q for q in own if q.port}

    def names(self, interface: Interface | None) -> list[str]:
        """Every name that is valid for an operator, for the nearest-name hint."""
        ports = interface.ports if interface else ()
        attributes = [f"attr.{a}" for a in interface.attributes] if interface else []
        return [*self.calls, *attributes, *(f"{p}.{n}" for p in ports for n in self.ports)]

    def resolve(self, name: str, interface: Interface | None) -> tuple[str, Measure] | None:
        """The label and the function of a name; None where there is no such quantity for this operator.

        Without an interface (a function that no model has brought yet) every port and attribute is taken.
        """
        found = _lookup(self.calls, name)
        if found is not None:
            which, argument = found
            if which.name == "attr.*" and interface is not None and argument not in interface.attributes:
                return None
            label = (argument or "") if which.name == "attr.*" else _label(which, argument)
            return label, (lambda call: which.function(call)) if argument is None else (
                lambda call: which.function(call, argument)
            )
        port, _, rest = name.partition(".")
        if not rest or (interface is not None and port not in interface.ports):
            return None
        found = _lookup(self.ports, rest)
        if found is None:
            return None
        which, argument = found
        arguments = () if argument is None else (argument,)

        def measure(call: Call) -> Any:
            return which.function(call, port, *arguments)

        label = _label(which, argument)
        return label.replace("PORT", port) if "PORT" in label else f"{label} of {port}", measure


def _lookup(table: dict[str, Quantity], name: str) -> tuple[Quantity, str | None] | None:
    if name in table:
        return table[name], None
    head = name
    while "." in head:
        head, _, _ = head.rpartition(".")
        if f"{head}.*" in table:
            return table[f"{head}.*"], name[len(head) + 1 :]
    return None


def _label(which: Quantity, argument: str | None) -> str:
    return which.label if argument is None else f"{which.label} {argument}"
