"""What rows of inputs say about the product that reads them: means and second moments, exact in any order of adding.

Rows are integers: sums of their products are exact in float64, whatever kernels a machine adds them with.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tapeout.passes.quantization.gptq import inverse_factor

Array = np.ndarray[Any, Any]

# What is added to the diagonal, of its mean: a weight of blocks that a few hundred rows chose is held to itself.
DAMP = 0.1


class Moments(NamedTuple):
    """What rows of inputs say: their means, second moments [K, K], the gap to the float model's, the order in which
    inputs are rounded and the factor of the inverse in it."""

    mean_wanted: Array
    mean: Array
    hessian: Array
    cross: Array
    order: Array
    upper: Array | None

    @classmethod
    def of(cls, sums: Sums) -> Moments:
        count, first, second = sums.rows, sums.inputs, sums.inputs - sums.wanted
        mean, gap = np.rint(first / count), np.rint(second / count)
        hessian = sums.squares - np.outer(mean, first) - np.outer(first, mean) + count * np.outer(mean, mean)
        cross = sums.gaps + np.outer(gap, first) + np.outer(second, mean) - count * np.outer(gap, mean)
        hessian, cross = hessian / count, cross / count
        return cls(sums.wanted / count, first / count, hessian, cross, *factor(hessian))


class Sums(NamedTuple):
    """Sums over rows of integers: their number, the inputs [K], the float model's, X'X [K, K] and (wanted - X)'X."""

    rows: int
    inputs: Array
    wanted: Array
    squares: Array
    gaps: Array

    @classmethod
    def of(cls, wanted: Array, inputs: Array) -> Sums:
        gaps = (wanted - inputs).T @ inputs if wanted is not inputs else np.zeros((inputs.shape[1],) * 2)
        return cls(len(inputs), inputs.sum(0), wanted.sum(0), inputs.T @ inputs, gaps)

    def plus(self, other: Sums) -> Sums:
        return Sums(
            self.rows + other.rows,
            self.inputs + other.inputs,
            self.wanted + other.wanted,
            self.squares + other.squares,
            self.gaps + other.gaps,
        )


class Rows(NamedTuple):
    """What one group of a product reads: rows [R, K] in integers, as the float model has them and as this one makes
    them, those that are held out; the moments of the others, and of all."""

    wanted_out: Array
    inputs_out: Array
    seen: Moments
    all: Moments

    @classmethod
    def of(cls, wanted: Array, inputs: Array, out: Array) -> Rows:
        seen, held = Sums.of(wanted[~out], inputs[~out]), Sums.of(wanted[out], inputs[out])
        return cls(wanted[out], inputs[out], Moments.of(seen), Moments.of(seen.plus(held)))


def factor(hessian: Array) -> tuple[Array, Array | None]:
    """The order in which inputs are rounded, and the upper U [K, K] with U'U = inverse(H + damping) in that order;
    None where there is none."""
    moments = np.array(hessian, np.float64)
    moments[np.diag_indices(len(moments))] += DAMP * float(np.mean(np.diag(moments)))
    order = np.argsort(-np.diag(moments), kind="stable")
    return order, inverse_factor(moments[order][:, order])
