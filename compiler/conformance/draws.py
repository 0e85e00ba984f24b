"""Choices that a generator makes: drawn from a seed, or replayed, so that a failing case can be made smaller.

Every choice is a place in a list that goes from simple to complex. A case is the list of its places: lowering
them and making the case again gives a simpler one, whatever the generator is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from tapeout.compiler.declaration import Bound, Row
from tapeout.compiler.declaration.rows import ANY_PORT

T = TypeVar("T")
Rng = np.random.Generator


class Draws:
    """Choices from a seed, or those of `replay` (clipped to what is there; past its end the simplest)."""

    def __init__(
        self, seed: int | Sequence[int], replay: Sequence[int] | None = None, turn: int | None = None
    ) -> None:
        self.turn = turn
        self._cycles = 0
        self.rng: Rng = np.random.default_rng(seed)
        self.made: list[int] = []
        self._replay = replay

    def below(self, count: int) -> int:
        """A number from 0 to `count` - 1."""
        if count < 1:
            raise Impossible("nothing to choose from")
        if self._replay is None:
            found = int(self.rng.integers(count))
        else:
            place = len(self.made)
            found = min(self._replay[place], count - 1) if place < len(self._replay) else 0
        self.made.append(found)
        return found

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, which go from simple to complex."""
        return options[self.below(len(options))]

    def cycle(self, options: Sequence[T]) -> T:
        """One of the options, each in its turn: of as many cases as there are options none leaves one out."""
        if self._replay is not None or self.turn is None or not options:
            return self.pick(options)
        place = (self.turn + self._cycles) % len(options)
        self._cycles += 1
        self.made.append(place)
        return options[place]

    def often(self, options: Sequence[T]) -> T:
        """The first of the options every other time, else any."""
        return options[self.below(len(options)) if self.below(2) else 0]

    def flip(self, one_in: int = 2) -> bool:
        """True once in `one_in` times; False is the simple answer."""
        return self.below(one_in) == one_in - 1


class Impossible(Exception):
    """The choices make no valid case; others are tried."""


class Wish:
    """What a maker asks for the numbers of a case: those that the row's bounds allow, their edges above all.

    `outside` names one constraint of the row ("rank.X", "types.T", "quantity.stride.max") that is to be broken
    while the others hold; None for a case inside.
    """

    def __init__(self, draws: Draws, row: Row | None = None, outside: str | None = None) -> None:
        self.draws = draws
        self.row = row
        self.outside = outside
        self.limits: dict[str, list[Bound]] = {}
        for limit in row.limits if row is not None else ():
            self.limits.setdefault(limit.name, []).append(limit.bound)

    # --- plain choices, from the row where it says something -------------------------------------------------

    def pick(self, options: Sequence[T]) -> T:
        return self.draws.pick(options)

    def often(self, options: Sequence[T]) -> T:
        return self.draws.often(options)

    def flip(self, one_in: int = 2) -> bool:
        return self.draws.flip(one_in)

    def dtype(self, name: str, ports: Sequence[str] = (), options: Sequence[str] = ("float32",)) -> str:
        """The type of a type variable or port, of `options` where the row says nothing."""
        allowed: Sequence[str] | None = None
        key = ""
        for key in (*ports, name, "T", ANY_PORT):
            if self.row is not None and key in self.row.types:
                allowed = self.row.types[key]
                break
        if allowed is None:
            return self.pick(options)
        if self.outside == f"types.{key}":
            wider = [t for t in KNOWN if t not in allowed]
            return self.pick(wider)
        return self.draws.cycle(allowed)

    def rank(self, *ports: str, low: int = 0, high: int = 6) -> int:
        """A rank for the ports; `low` to `high` where the row does not bound it, and never below `low`. A bound
        from above is reached in one case of three."""
        bounds = []
        key = ANY_PORT
        for port in (*ports, ANY_PORT):
            if self.row is not None and port in self.row.rank:
                bounds, key = [self.row.rank[port]], port
                break
            rule = self.row.ports.get(port) if self.row is not None else None
            if rule is not None and rule.rank is not None:
                bounds, key = [rule.rank], port
                break
        broken = self.outside == f"rank.{key}"
        return int(self._number(bounds, list(range(low, high + 1)), broken, low, 8))

    def number(
        self, names: Sequence[str] | str, options: Sequence[int], low: int = 0, high: int = 70000
    ) -> int:
        """A number that is bounded under one of `names`, the quantities that it is (or, for a list, the largest
        of): of `options` where no bound says otherwise."""
        names = (names,) if isinstance(names, str) else names
        bounds = [b for n in names for b in self.limits.get(n, ())]
        broken = any(self.outside == f"quantity.{n}" for n in names)
        return int(self._number(bounds, options, broken, low, high))

    def value(self, name: str, options: Sequence[Any]) -> Any:
        """A value of a bounded quantity that is no number: "attr.mode", "padding.kind"."""
        bounds = self.limits.get(name, [])
        broken = self.outside == f"quantity.{name}"
        extra = [v for b in bounds for v in (*(b.among or ()), b.equal) if v is not None]
        wanted = [*options, *(v for v in extra if v not in options)]
        fitting = [v for v in wanted if _fits(v, bounds) != broken]
        return self.pick(fitting or list(options))

    def _number(
        self, bounds: Sequence[Bound], options: Sequence[int], broken: bool, low: int, high: int
    ) -> int:
        fitting = [n for n in options if _fits(n, bounds) and n >= low]
        if broken:
            outer = [n for b in bounds for n in _outside(b) if low <= n <= high]
            outer += [n for n in options if not _fits(n, bounds) and n >= low]
            return self.pick(list(dict.fromkeys(outer)))
        edges = [n for b in bounds for n in _edges(b) if low <= n <= high and _fits(n, bounds)]
        if edges and (not fitting or self.flip(3)):
            return self.pick(sorted(set(edges)))
        return self.pick(fitting)


def _fits(value: Any, bounds: Sequence[Bound]) -> bool:
    return all(b.broken(value) is None for b in bounds)


def _whole(values: Sequence[Any]) -> Iterator[int]:
    for value in values:
        if isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer():
            yield int(value)


def _edges(bound: Bound) -> list[int]:
    """The numbers just inside a bound."""
    found = [*_whole((bound.min, bound.max, bound.equal)), *_whole(bound.among or ())]
    if bound.multiple_of:
        found += [bound.multiple_of, 2 * bound.multiple_of]
    return found


def _outside(bound: Bound) -> list[int]:
    """The numbers just outside a bound."""
    found = [n - 1 for n in _whole((bound.min,))] + [n + 1 for n in _whole((bound.max,))]
    found += [n + d for n in (*_whole((bound.equal,)), *_whole(bound.among or ())) for d in (1, -1)]
    found += list(_whole(bound.outside or ()))
    if bound.multiple_of:
        found.append(bound.multiple_of + 1)
    return [n for n in found if bound.broken(n) is not None]


# Types that cases are made of.
KNOWN = (
    "float32", "int32", "int64", "int8", "uint8", "bool", "float16", "int16", "float64", "uint16", "uint32",
    "uint64",
)  # fmt: skip


def constraints(row: Row) -> list[str]:
    """Everything that a row demands of graph tensors and quantities, as the names that `outside` takes."""
    found = [f"types.{n}" for n in row.types] + [f"rank.{n}" for n in row.rank]
    found += [f"rank.{n}" for n, rule in row.ports.items() if rule.rank is not None]
    for name, rule in row.ports.items():
        found += [f"ports.{name}.{key}" for key in port_keys(rule)]
    found += [f"quantity.{limit.name}" for limit in row.limits]
    if row.same_scale:
        found.append("same_scale")
    return list(dict.fromkeys(found))


def port_keys(rule: Any) -> list[str]:
    """The keys of a port rule that a quantized tensor can break."""
    found = []
    if rule.role in ("weight", "bias", "const"):
        found.append("constant")
    for key, stated in (
        ("dtype", bool(rule.dtypes)),
        ("axis", rule.axis is not None),
        ("per_tensor", rule.per_tensor),
        ("symmetric", bool(rule.symmetric)),
        ("scale", rule.scale is not None),
        ("zp", rule.zp is not None),
    ):
        if stated:
            found.append(key)
    return found


Maker = Callable[[Wish, str], Any]
