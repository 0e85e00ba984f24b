"""Mutations of a declaration: bounds off by one, refused operators accepted, accepted ones dropped."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

from tapeout.compiler.conformance.draws import KNOWN
from tapeout.compiler.conformance.makers import MAKERS
from tapeout.compiler.declaration import Bound, Declaration, Row
from tests.faults.mutants import Site

OFF, ACCEPTED, DROPPED = "off-by-one in a bound", "refused operator accepted", "accepted operator dropped"
# Operators that have no row, by how many tensors they take: rows that borrow another's lowering.
ONE = (
    "Tan",
    "Sinh",
    "Cosh",
    "Softsign",
    "Asinh",
    "Atanh",
    "Selu",
    "Celu",
    "ThresholdedRelu",
    "Shrink",
    "Hardmax",
)
FIELDS = ("min", "max", "equal")


def sites(declaration: Declaration) -> Iterator[Site]:
    """Every mutation of the rows of a declaration."""
    for op, rows in declaration.rows.items():
        for row in rows:
            where = f"{op} row {row.index}"
            for name, bound in _bounds(row):
                for field in FIELDS:
                    value = getattr(bound, field)
                    if isinstance(value, int | float) and not isinstance(value, bool):
                        yield Site(OFF, where, f"{name}.{field}", "+1")
                        yield Site(OFF, where, f"{name}.{field}", "-1")
                yield Site(ACCEPTED, where, name, "no bound")
            for name, types in row.types.items():
                for dtype in KNOWN[:9]:
                    if dtype not in types:
                        yield Site(ACCEPTED, where, f"types.{name}", dtype)
                if len(types) > 1:
                    yield from (Site(DROPPED, where, f"types.{name}", t) for t in types)
            yield Site(DROPPED, where, "row")
    for op in ONE:
        if op in MAKERS and op not in declaration.rows:
            yield from (Site(ACCEPTED, op, "operator", low) for low in ("RELU", "TANH", "SIN", "EXP", "ABS"))


def _bounds(row: Row) -> Iterator[tuple[str, Bound]]:
    yield from ((f"rank.{n}", b) for n, b in row.rank.items())
    yield from ((f"quantity.{limit.name}", limit.bound) for limit in row.limits)


def mutated(declaration: Declaration, site: Site) -> Declaration:
    """A declaration with the mutation, the given one as it was."""
    made = copy.copy(declaration)
    made._shared, made._interfaces = {}, dict(declaration._interfaces)
    made.rows = {op: list(rows) for op, rows in declaration.rows.items()}
    if site.detail == "operator":
        like = next(r for r in declaration if r.lower == site.change and r.types.get("T") == ("float32",))
        made.rows[site.where] = [
            replace(like, op=site.where, index=1, types={"*": ("float32",)}, limits=(), rank={})
        ]
        return made
    op, _, index = site.where.rpartition(" row ")
    place = next(i for i, r in enumerate(made.rows[op]) if r.index == int(index))
    if site.kind == DROPPED and site.detail == "row":
        del made.rows[op][place]
        return made
    made.rows[op][place] = _changed(made.rows[op][place], site)
    return made


def _changed(row: Row, site: Site) -> Row:
    key, _, rest = site.detail.partition(".")
    if key == "types":
        types = row.types[rest]
        kept = (*types, site.change) if site.kind == ACCEPTED else tuple(t for t in types if t != site.change)
        return replace(row, types={**row.types, rest: kept})
    field = ""
    if site.kind == OFF:
        rest, _, field = rest.rpartition(".")

    def new(bound: Bound) -> Bound | None:
        if site.kind == ACCEPTED:
            return None
        return replace(bound, **{field: getattr(bound, field) + int(site.change)})

    if key == "rank":
        rank = dict(row.rank)
        bound = new(rank.pop(rest))
        return replace(row, rank=rank if bound is None else {**rank, rest: bound})
    limits = []
    for limit in row.limits:
        bound = new(limit.bound) if limit.name == rest else limit.bound
        if bound is not None:
            limits.append(replace(limit, bound=bound))
    return replace(row, limits=tuple(limits))
