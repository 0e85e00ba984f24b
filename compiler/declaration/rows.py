"""A row: everything one alternative of one operator demands, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from tapeout.compiler.operators import ABSENT, Activation
from tapeout.compiler.quantities import Measure

ANY_PORT = "*"  # in types, rank and ports: every tensor that goes in or out and is not named itself


@dataclass(frozen=True)
class Bound:
    """Limits of one number, string, bool or tuple. A tuple keeps `min`, `max` and `multiple_of` in every
    element, `in`, `not_in` and `equal` too unless they are themselves lists. Unknown values are refused
    unless `unknown_ok`.
    """

    min: float | None = None
    max: float | None = None
    among: tuple[Any, ...] | None = None
    outside: tuple[Any, ...] | None = None
    multiple_of: int | None = None
    equal: Any = None
    unknown_ok: bool = False
    fix: str | None = None

    def broken(self, value: Any) -> str | None:
        """What is expected, in words, where `value` breaks it; None where it holds."""
        if value is None:
            return None if self.unknown_ok else self._wanted()
        many = value if isinstance(value, tuple) else (value,)
        if self.min is not None and not all(_number(v) and v >= self.min for v in many):
            return f"at least {spell(self.min)}"
        if self.max is not None and not all(_number(v) and v <= self.max for v in many):
            return f"at most {spell(self.max)}"
        if self.multiple_of is not None and not all(_number(v) and v % self.multiple_of == 0 for v in many):
            return f"a multiple of {self.multiple_of}"
        if self.equal is not None and not _same(value, self.equal):
            return self._equal()
        if self.among is not None and not _among(value, self.among):
            return f"must be {either(self.among)}"
        if self.outside is not None and any(_same(v, o) for v in (value, *many) for o in self.outside):
            return f"must not be {either(self.outside)}"
        return None

    def _equal(self) -> str:
        if isinstance(self.equal, str):
            return f"must be {either((self.equal,))}"
        return f"exactly {spell(self.equal)}"

    def _wanted(self) -> str:
        """What is expected of a value that is not known."""
        alone = self.min is None and self.max is None and self.multiple_of is None
        if alone and self.equal is not None:
            return self._equal()
        return f"must be {either(self.among)}" if alone and self.among is not None else self.words()

    def words(self) -> str:
        """The whole bound in words, for tables."""
        parts = []
        if self.min is not None and self.max is not None:
            parts.append(f"{spell(self.min)} to {spell(self.max)}")
        elif self.min is not None:
            parts.append(f"at least {spell(self.min)}")
        elif self.max is not None:
            parts.append(f"at most {spell(self.max)}")
        if self.multiple_of is not None:
            parts.append(f"a multiple of {self.multiple_of}")
        if self.equal is not None:
            parts.append(f"exactly {spell(self.equal)}")
        if self.among is not None:
            parts.append(f"{'one of ' if len(self.among) > 1 else ''}{', '.join(map(spell, self.among))}")
        if self.outside is not None:
            parts.append(f"not {', '.join(map(spell, self.outside))}")
        return " and ".join(parts) or "known"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(value: Any, wanted: Any) -> bool:
    if isinstance(value, tuple) and not isinstance(wanted, tuple):
        return all(_same(v, wanted) for v in value)
    if isinstance(value, bool) != isinstance(wanted, bool):
        return False
    return bool(value == wanted)


def _among(value: Any, wanted: tuple[Any, ...]) -> bool:
    if any(_same(value, w) for w in wanted):
        return True
    return isinstance(value, tuple) and all(any(_same(v, w) for w in wanted) for v in value)


def either(values: Sequence[Any]) -> str:
    """Alternatives as people say them: "1, 2 or left out"."""
    said = ["left out" if v == ABSENT else spell(v) for v in values]
    return said[0] if len(said) == 1 else f"{', '.join(said[:-1])} or {said[-1]}"


def spell(value: Any) -> str:
    """A value as people read it: `yes`, `3`, `[1, 2]`, `'SAME'` without quotes."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(spell, value))}]"
    return str(value)


@dataclass(frozen=True)
class PortRule:
    """What a row demands of one port. `dtypes` are storage types (behind DequantizeLinear / QuantizeLinear);
    `axis`, `symmetric`, `scale` and `zp` hold only where the port is quantized. `scale` is a number, or a
    product of other ports' scales such as "X*W". `scale_above`: it is larger than that of a port times a number."""

    role: str | None = None
    dtypes: tuple[str, ...] = ()
    axis: int | None = None
    per_tensor: bool = False
    symmetric: bool | None = None
    scale: float | str | None = None
    zp: int | None = None
    scale_above: tuple[str, float] | None = None
    rank: Bound | None = None
    optional: bool | None = None
    fix: str | None = None


@dataclass(frozen=True)
class Tolerance:
    """How far the kernel may be from the reference: quanta of the output, at which share of the elements."""

    quanta: int = 1
    rate: float = 1.0


@dataclass(frozen=True)
class Limit:
    """One bounded quantity: its name, what messages call it, how it is measured, its bound."""

    name: str
    label: str
    measure: Measure
    bound: Bound


@dataclass(frozen=True)
class Row:
    """One alternative of one operator. All of its keys hold at once."""

    op: str
    index: int  # among the rows of the operator, from 1
    file: str
    lower: str | None = None
    ports: Mapping[str, PortRule] = field(default_factory=dict)
    types: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rank: Mapping[str, Bound] = field(default_factory=dict)
    limits: tuple[Limit, ...] = ()
    same_scale: tuple[str, ...] = ()
    fuses: tuple[Activation, ...] = ()
    layout: str | None = None
    bound: Tolerance = Tolerance()
    exact: Mapping[str, int] = field(default_factory=dict)  # bits of magnitude that integers of a type keep
    fix: str | None = None
    note: str | None = None
    devices: tuple[str, ...] = ()

    def rule(self, port: str) -> PortRule | None:
        """What is said of a port: by its name, or else of every port."""
        return self.ports.get(port, self.ports.get(ANY_PORT))

    @property
    def where(self) -> str:
        return f"{self.file}: op.{self.op}, row {self.index}"


def narrowed(row: Row, own: Row) -> Row:
    """`row` of a target with what `own`, a row of a target that extends it, demands besides: ports, ranks,
    types, limits and equal scales; lowering and bound stay."""
    ports = {name: _port(row, own, name) for name in (*row.ports, *own.ports)}
    return replace(
        row,
        ports=ports,
        rank={**row.rank, **own.rank},
        types={**row.types, **own.types},
        limits=(*row.limits, *own.limits),
        same_scale=tuple(dict.fromkeys((*row.same_scale, *own.same_scale))),
        exact={**row.exact, **own.exact},
        fix=own.fix or row.fix,
    )


def _port(row: Row, own: Row, name: str) -> PortRule:
    first = row.rule(name) or PortRule()
    second = own.rule(name) or PortRule()
    stated = {f.name: getattr(second, f.name) for f in fields(PortRule)}
    stated = {k: v for k, v in stated.items() if v != getattr(PortRule(), k)}
    if first.dtypes and second.dtypes:
        stated["dtypes"] = tuple(d for d in first.dtypes if d in second.dtypes)
    elif not first.dtypes:
        stated.pop("dtypes", None)  # a port that the kernel takes as it is in the graph
    return replace(first, **stated)
