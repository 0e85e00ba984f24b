"""Symbolic dimensions: the normal form means what it says, and equal is equal."""

from __future__ import annotations

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from tapeout.compiler.ir.dimensions import (
    Dim,
    Expr,
    Undecided,
    bind,
    exact_divide,
    floor_divide,
    nonnegative,
    parse,
    symbol,
    symbols,
)

N, M = symbol("N"), symbol("M")
NAMES = ("N", "M", "batch size", "unk__749")


def expressions() -> st.SearchStrategy[Dim]:
    leaves = st.one_of(st.integers(-9, 9), st.sampled_from(NAMES).map(symbol))
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.tuples(inner, inner).map(lambda p: p[0] + p[1]),
            st.tuples(inner, inner).map(lambda p: p[0] - p[1]),
            st.tuples(inner, st.integers(-4, 4)).map(lambda p: p[0] * p[1]),
            st.tuples(inner, st.integers(1, 6)).map(lambda p: floor_divide(p[0], p[1])),
        ),
        max_leaves=6,
    )


sizes = st.fixed_dictionaries({name: st.integers(0, 50) for name in NAMES})


@given(expressions(), expressions(), st.integers(1, 7), sizes)
def test_arithmetic_means_what_it_says(a: Dim, b: Dim, k: int, at: dict[str, int]) -> None:
    x, y = bind(a, at), bind(b, at)
    try:
        found = a + b, a - b, a * b
    except Undecided:  # of so many terms that arithmetic gives up, as it says
        reject()
    assert [bind(f, at) for f in found] == [x + y, x - y, x * y]
    assert bind(floor_divide(a, k), at) == x // k
    if nonnegative(a):
        assert x >= 0
    assert symbols(a) <= set(NAMES)


@given(expressions())
def test_text_is_read_back(a: Dim) -> None:
    if isinstance(a, Expr):
        assert parse(str(a)) == a


@given(expressions(), expressions())
def test_equal_is_equal(a: Dim, b: Dim) -> None:
    assert (a + b) - b == a
    assert a * 6 - a * 2 == a * 4
    assert floor_divide(a * 6, 3) == a * 2


@given(expressions(), expressions())
def test_exact_division(a: Dim, b: Dim) -> None:
    if not (isinstance(b, int) and b == 0):
        assert exact_divide(a * b, b) == a


@pytest.mark.parametrize(
    ("dim", "shown"),
    [
        (N * 2 + 1, "2*N+1"),
        ((N + 1) // 2, "(N+1)//2"),
        (N // 2, "N//2"),
        (((N + 1) // 2 + 1) // 2, "(((N+1)//2)+1)//2"),
        (3 - N, "-N+3"),
        (N * M * 64, "64*M*N"),
        (symbol("a b") * 2, "2*[a b]"),
        ((N * 2 + 1) // 4, "N//2"),
    ],
)
def test_shown(dim: Dim, shown: str) -> None:
    assert str(dim) == shown


@pytest.mark.parametrize(
    "text", ["1+1", "N**2", "__import__('os')", "N//0", "f(N)", "N+", "(" * 500, "", "N//M"]
)
def test_other_text_is_a_name(text: str) -> None:
    assert parse(text) == symbol(text)


def test_a_quotient_of_sizes_is_not_decided() -> None:
    with pytest.raises(Undecided):
        floor_divide(N + 1, M)
    with pytest.raises(Undecided):
        bool(N)


def test_what_grows_without_end_is_given_up() -> None:
    product, nested = N + 1, N
    with pytest.raises(Undecided):
        for _ in range(40):
            product = product * product + M
    with pytest.raises(Undecided):
        for _ in range(1000):
            nested = (nested + 1) // 2 + M
