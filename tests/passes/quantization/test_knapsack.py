"""The knapsack against every choice there is."""

import itertools

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tapeout.passes.quantization.knapsack import STEPS, Option, solve

option = st.builds(
    Option, st.just("x"), st.integers(0, 50).map(float), st.integers(0, 40).map(lambda n: n / 100)
)
layers = st.lists(st.lists(option, min_size=1, max_size=4), min_size=1, max_size=5)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(layers, st.integers(1, 100).map(lambda n: n / 100))
def test_the_choice_keeps_the_bound_and_costs_the_least(table: list[list[Option]], most: float) -> None:
    found = solve(table, most)
    every = list(itertools.product(*table))
    inside = [c for c in every if sum(o.error for o in c) <= most]
    # What rounding errors up to steps may leave out: a step for each layer.
    sure = [c for c in every if sum(o.error for o in c) <= most - len(table) * most / STEPS]
    if found is None:
        assert not sure
        return
    assert all(o in options for o, options in zip(found, table, strict=True))
    assert sum(o.error for o in found) <= most + 1e-9
    cost = sum(o.cost for o in found)
    assert cost >= min(sum(o.cost for o in c) for c in inside)
    if sure:
        assert cost <= min(sum(o.cost for o in c) for c in sure)


def test_of_choices_that_cost_the_same_the_least_error_is_taken() -> None:
    table = [[Option("coarse", 1, 0.3), Option("fine", 1, 0.1)], [Option("a", 2, 0.2), Option("b", 3, 0.0)]]
    assert [o.name for o in solve(table, 1.0) or ()] == ["fine", "a"]


def test_one_layer_that_is_beyond_the_bound_in_all_options_leaves_no_choice() -> None:
    assert solve([[Option("x", 1, 0.5)]], 0.4) is None
