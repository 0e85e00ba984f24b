"""The multiple-choice knapsack: one option for each layer, least cost, errors that add up to at most a bound.

    minimize  sum_i cost(i, o_i)    subject to  sum_i error(i, o_i) <= most

by dynamic programming over the error in STEPS equal steps, each error rounded up to a step: what is found keeps
the bound, and costs no more than the best choice whose errors leave a step for each layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

STEPS = 4096


class Option(NamedTuple):
    """One way to treat a layer: what it costs and what error it adds, neither below 0."""

    name: str
    cost: float
    error: float


def solve(layers: Sequence[Sequence[Option]], most: float) -> list[Option] | None:
    """The choice, an option for each of `layers`; None where no choice keeps `most`. Of choices that cost the
    same, that with the least error."""
    units = [[_units(o.error, most) for o in options] for options in layers]
    best = np.zeros(STEPS + 1)
    best[1:] = math.inf  # best[j]: the least cost of layers so far whose errors are j steps together
    taken = np.zeros((len(layers), STEPS + 1), np.int16)
    for i, options in enumerate(layers):
        reached = np.full(STEPS + 1, math.inf)
        for k, option in enumerate(options):
            steps = units[i][k]
            if steps is None:
                continue
            cost = best[: STEPS + 1 - steps] + option.cost
            better = cost < reached[steps:]
            reached[steps:][better] = cost[better]
            taken[i, steps:][better] = k
        best = reached
    at = int(np.argmin(best))
    if not math.isfinite(best[at]):
        return None
    chosen: list[Option] = []
    for i in range(len(layers) - 1, -1, -1):
        k = int(taken[i, at])
        chosen.append(layers[i][k])
        steps = units[i][k]
        assert steps is not None
        at -= steps
    return chosen[::-1]


def _units(error: float, most: float) -> int | None:
    """The steps of an error, rounded up; None where it is beyond `most` by itself."""
    if error <= 0:
        return 0
    if not error <= most:
        return None
    return min(STEPS, math.ceil(error / most * STEPS))
