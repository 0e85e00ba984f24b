"""Arithmetic on symbolic dimensions: "N", "2*N+1", "N*M", "(H+1)//2", in one normal form, so that equal is
equal.

A dimension is an int or an `Expr`: a polynomial with integer coefficients over atoms. An atom is a symbol or
`Floor(p, k)`, the floor of a polynomial over a positive int. Symbols stand for sizes, hence for numbers >= 0.
Whole multiples leave a floor and common factors cancel:

    (2*k*p + r) // k -> 2*p + r // k            (g*p + c) // (g*k) -> (p + c // g) // k
"""

from __future__ import annotations

import ast
import functools
import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeAlias

# Expressions with more symbols and terms than this are given up: a graph can make them grow without end.
LARGEST = 64


class Floor(NamedTuple):
    """The floor of `of` over `by` > 0, with all coefficients of `of` in [0, by)."""

    of: Expr
    by: int

    def __str__(self) -> str:
        inner = _print(self.of.terms, alone=False)
        return f"({inner}//{self.by})" if _ATOM.fullmatch(inner) else f"(({inner})//{self.by})"


Atom: TypeAlias = str | Floor
Monomial: TypeAlias = tuple[Atom, ...]


class Undecided(Exception):
    """The answer depends on the sizes."""


class Expr:
    """A polynomial that is no plain number. Made by arithmetic on `symbol(...)`, or by `parse`.

    Arithmetic raises Undecided where the result is larger than `LARGEST`.
    """

    __slots__ = ("_hash", "_text", "size", "terms")

    def __init__(self, terms: tuple[tuple[Monomial, int], ...]) -> None:
        atoms = [atom for monomial, _ in terms for atom in monomial]
        self.size: int = len(terms) + sum(a.of.size if isinstance(a, Floor) else 1 for a in atoms)
        if self.size > LARGEST:
            raise Undecided("an expression of so many terms is not followed")
        self.terms = terms
        self._hash = hash(terms)
        self._text: str | None = None

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Expr) and self.terms == other.terms)

    def __add__(self, other: Dim) -> Dim:
        if not isinstance(other, Expr) and not _is_int(other):
            return NotImplemented
        total = dict(self.terms)
        for monomial, k in _terms(other):
            total[monomial] = total.get(monomial, 0) + k
        return _make(total)

    __radd__ = __add__

    def __neg__(self) -> Dim:
        return self * -1

    def __sub__(self, other: Dim) -> Dim:
        return self + other * -1

    def __rsub__(self, other: Dim) -> Dim:
        return self * -1 + other

    def __mul__(self, other: Dim) -> Dim:
        if not isinstance(other, Expr) and not _is_int(other):
            return NotImplemented
        total: dict[Monomial, int] = {}
        for left, a in self.terms:
            for right, b in _terms(other):
                monomial = tuple(sorted((*left, *right), key=str))
                total[monomial] = total.get(monomial, 0) + a * b
        return _make(total)

    __rmul__ = __mul__

    def __floordiv__(self, other: Dim) -> Dim:
        return floor_divide(self, other)

    def __rfloordiv__(self, other: Dim) -> Dim:
        return floor_divide(other, self)

    def __mod__(self, other: Dim) -> Dim:
        return self - floor_divide(self, other) * other

    def __bool__(self) -> bool:
        raise Undecided(f"is {self} zero?")

    def __str__(self) -> str:
        if self._text is None:
            self._text = _print(self.terms)
        return self._text

    __repr__ = __str__


Dim: TypeAlias = int | Expr


def _is_int(x: object) -> bool:
    return isinstance(x, int) or hasattr(x, "__index__")


def _terms(x: Dim) -> Iterable[tuple[Monomial, int]]:
    return x.terms if isinstance(x, Expr) else (((), int(x)),)


def _make(total: Mapping[Monomial, int]) -> Dim:
    terms = sorted(
        ((m, k) for m, k in total.items() if k), key=lambda t: (-len(t[0]), [str(a) for a in t[0]])
    )
    if not terms:
        return 0
    if len(terms) == 1 and terms[0][0] == ():
        return terms[0][1]
    return Expr(tuple(terms))


@functools.cache
def symbol(name: str) -> Expr:
    """The dimension called `name`, whatever characters that has."""
    return Expr((((name,), 1),))


def floor_divide(a: Dim, b: Dim) -> Dim:
    """floor(a / b) in normal form. Raises Undecided where it has none (a divisor with several terms, or of
    unknown sign) and ZeroDivisionError for b == 0."""
    if isinstance(b, Expr):
        return _divide_by_expr(a, b)
    b = int(b)
    if not isinstance(a, Expr):
        return int(a) // b
    if b <= 0:
        if b == 0:
            raise ZeroDivisionError
        return floor_divide(a * -1, -b)
    whole = {m: k // b for m, k in a.terms}
    rest = {m: k % b for m, k in a.terms if k % b}
    constant = rest.pop((), 0)
    if not rest:
        return _make(whole)
    shared = math.gcd(b, *rest.values())
    inner = _make({**{m: k // shared for m, k in rest.items()}, (): constant // shared})
    assert isinstance(inner, Expr)
    by = b // shared
    part = inner if by == 1 else Expr(((((Floor(inner, by)),), 1),))
    return _make(whole) + part


def _divide_by_expr(a: Dim, b: Expr) -> Dim:
    quotient = exact_divide(a, b)
    if quotient is None:
        raise Undecided(f"({a})//({b})")
    return quotient


def exact_divide(a: Dim, b: Dim) -> Dim | None:
    """a / b where b divides a as a polynomial (b not zero), else None."""
    if not isinstance(b, Expr):
        if int(b) == 0 or any(k % int(b) for _, k in _terms(a)):
            return None
        return _make({m: k // int(b) for m, k in _terms(a)})
    if not isinstance(a, Expr):
        return 0 if int(a) == 0 else None
    # Long division by the leading term; the order of terms is by degree, so it ends.
    (lead, by), left, result = b.terms[0], a, 0
    for _ in range(64):
        if not isinstance(left, Expr):
            return result if left == 0 else None
        monomial, k = left.terms[0]
        remaining = list(monomial)
        for atom in lead:
            if atom not in remaining:
                return None
            remaining.remove(atom)
        if k % by:
            return None
        step = _make({tuple(remaining): k // by})
        result, left = result + step, left - step * b  # type: ignore[assignment]
    return None


def nonnegative(x: Dim) -> bool:
    """True where x >= 0 for every size of its symbols."""
    return all(k >= 0 for _, k in _terms(x))


def symbols(x: Dim) -> set[str]:
    """The names of the symbols in x."""
    found: set[str] = set()
    for monomial, _ in _terms(x):
        for atom in monomial:
            found |= symbols(atom.of) if isinstance(atom, Floor) else {atom}
    return found


def bind(x: Dim, sizes: Mapping[str, int]) -> int:
    """The number that x is for these sizes. Raises KeyError for a symbol without one."""
    total = 0
    for monomial, k in _terms(x):
        for atom in monomial:
            k *= bind(atom.of, sizes) // atom.by if isinstance(atom, Floor) else sizes[atom]
        total += k
    return total


# --- text --------------------------------------------------------------------------------------------------

_NAME = re.compile(r"[A-Za-z_]\w*")
_ATOM = re.compile(r"[A-Za-z_]\w*|\[[^\[\]]*\]")


def _print(terms: tuple[tuple[Monomial, int], ...], alone: bool = True) -> str:
    """A name that is no identifier stands in brackets, but where the whole text is that name."""
    if alone and len(terms) == 1 and terms[0][1] == 1 and len(terms[0][0]) == 1:
        atom = terms[0][0][0]
        return atom if isinstance(atom, str) else str(atom)[1:-1]
    text = ""
    for monomial, k in terms:
        factors = [a if isinstance(a, Floor) or _NAME.fullmatch(a) else f"[{a}]" for a in monomial]
        shown = "*".join(str(f) for f in factors)
        number = "" if abs(k) == 1 and shown else str(abs(k))
        sign = "-" if k < 0 else "+" if text else ""
        text += sign + number + ("*" if number and shown else "") + shown
    return text


@functools.lru_cache(maxsize=65536)
def parse(text: str) -> Dim:
    """The dimension written in `text`; text that is no expression in our normal form is one symbol of that
    name."""
    if _NAME.fullmatch(text):
        return symbol(text)
    odd: dict[str, str] = {}

    def hide(match: re.Match[str]) -> str:
        odd[f"_odd{len(odd)}_"] = match[1]
        return f"_odd{len(odd) - 1}_"

    try:
        found = _of(ast.parse(re.sub(r"\[([^\[\]]*)\]", hide, text), mode="eval").body, odd)
    except (SyntaxError, ValueError, Undecided, ZeroDivisionError, RecursionError, MemoryError):
        return symbol(text)
    return found if isinstance(found, Expr) and str(found) == text else symbol(text)


def _of(node: ast.expr, odd: Mapping[str, str]) -> Dim:
    if isinstance(node, ast.Name):
        return symbol(odd.get(node.id, node.id))
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return _of(node.operand, odd) * -1
    if isinstance(node, ast.BinOp):
        a, b = _of(node.left, odd), _of(node.right, odd)
        if isinstance(node.op, ast.Add):
            return a + b
        if isinstance(node.op, ast.Sub):
            return a - b
        if isinstance(node.op, ast.Mult):
            return a * b
        if isinstance(node.op, ast.FloorDiv):
            return floor_divide(a, b)
    raise ValueError
