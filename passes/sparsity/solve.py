"""What makes a matrix sparse: magnitude, Wanda, SparseGPT, and ADMM with least squares on its mask.

All but the first see the second moments H = X'X of the rows that the matrix multiplies, and hold
|X W' - X V'|^2 small, with V the sparse matrix:

- magnitude: the smallest |w| go;
- Wanda: the smallest |w| * |x|, row by row (Sun et al., 2023);
- SparseGPT: input by input, the smallest w^2 / inverse(H)_kk go, and the inputs still to come make good what
  was lost (Frantar and Alistarh, 2023); those before them, too, in a last step of least squares on the mask;
- ADMM: the mask comes out of alternating between the least-squares solution and its projection on the pattern,
  with ratios that grow (after Boza, 2024); the values are then the least-squares solution on the mask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tapeout.passes.quantization.gptq import inverse_factor
from tapeout.passes.sparsity.pattern import Pattern

Array = np.ndarray[Any, Any]

# Added to the diagonal of H, of its mean: what loses least on rows that were held out, over the layers of small
# convolutional and attention networks (a third of it and three times as much lose 3 to 5% more).
DAMP = 0.1
# Inputs that SparseGPT decides on together where the pattern has no runs of its own.
BLOCK = 64
# Rounds of ADMM, and in which of them the mask still changes.
ROUNDS, SETTLED = 24, 16
PENALTY = np.float32(1.0)
# Rounds of conjugate gradients on the mask that is settled.
FITTING = 12

Solver = Callable[[Array, Array, Pattern, float], Array]


def damped(moments: Array, damp: float = DAMP) -> Array:
    """Second moments [K, K] that can be inverted; an input that never moves counts as one of the mean."""
    result = np.array(moments, np.float64)
    diagonal = np.diag(result)
    mean = float(diagonal.mean()) or 1.0
    result[np.diag_indices(len(result))] += damp * mean + np.where(diagonal > 0, 0.0, mean)
    return result


def magnitude(weight: Array, moments: Array, pattern: Pattern, ratio: float) -> Array:
    """`weight` [O, K] without its smallest."""
    return np.where(pattern.mask(weight**2, ratio), weight, 0.0)


def wanda(weight: Array, moments: Array, pattern: Pattern, ratio: float) -> Array:
    """`weight` [O, K] without the smallest of |w| times the norm of its input, row by row."""
    score = weight**2 * np.diag(moments)
    by_row = pattern.block[0] == 1
    return np.where(pattern.mask(score, ratio, by_row), weight, 0.0)


def sparsegpt(weight: Array, moments: Array, pattern: Pattern, ratio: float) -> Array:
    """`weight` [O, K] pruned input by input, the rest moved to make it good."""
    upper = inverse_factor(damped(moments))
    if upper is None:
        return wanda(weight, moments, pattern, ratio)
    inputs = weight.shape[1]
    width = pattern.of or max(BLOCK // pattern.width, 1) * pattern.width
    rest = np.array(weight, np.float64)
    for start in range(0, inputs, width):
        end = min(start + width, inputs)
        stay = pattern.mask((rest[:, start:end] / np.diag(upper)[start:end]) ** 2, ratio)
        lost = np.zeros((len(rest), end - start))
        for k in range(start, end):
            gone = ~stay[:, k - start]
            lost[gone, k - start] = rest[gone, k] / upper[k, k]
            rest[gone, k] = 0
            rest[:, k + 1 : end] -= lost[:, k - start, None] * upper[k, k + 1 : end]
        rest[:, start:end] *= stay
        rest[:, end:] -= lost @ upper[start:end, end:]
    return refit(weight, moments, rest)


def admm(weight: Array, moments: Array, pattern: Pattern, ratio: float) -> Array:
    """`weight` [O, K] on the mask that ADMM settles on, fitted there."""
    scaled, norm = even(damped(moments))
    target = (weight * norm).astype(np.float32)
    inverse = np.linalg.inv(scaled + PENALTY * np.eye(len(scaled), dtype=np.float32))
    wanted = target @ scaled
    sparse, dual = target, np.zeros_like(target)
    stay = np.ones(target.shape, bool)
    for step in range(1, ROUNDS + 1):
        dense = (wanted + PENALTY * (sparse - dual)) @ inverse
        if step <= SETTLED:
            # The ratio grows as a cubic, as in gradual pruning (Zhu and Gupta, 2017).
            stay = pattern.mask((dense + dual) ** 2, ratio * (1 - (1 - step / SETTLED) ** 3))
        sparse = (dense + dual) * stay
        dual += dense - sparse
    return np.where(stay, fitted(target, scaled, stay, sparse) / norm, 0.0)


def even(moments: Array) -> tuple[Array, Array]:
    """Moments of inputs that are all brought to one size, float32, and the sizes they had [K]: one penalty suits all,
    and conjugate gradients settle soon."""
    norm = np.sqrt(np.diag(moments))
    return (moments / norm / norm[:, None]).astype(np.float32), norm


def refit(weight: Array, moments: Array, sparse: Array, rounds: int = FITTING) -> Array:
    """`sparse` [O, K] with the values that lose least of `weight` where it is not zero."""
    scaled, norm = even(damped(moments))
    target, start = ((w * norm).astype(np.float32) for w in (weight, sparse))
    return np.asarray(fitted(target, scaled, sparse != 0, start, rounds) / norm)


def fitted(target: Array, moments: Array, stay: Array, start: Array, rounds: int = FITTING) -> Array:
    """The least-squares solution on the mask `stay` [O, K] toward `target`, from `start`, by conjugate gradients
    with all rows at once."""
    best = start * stay
    residual = ((target - best) @ moments) * stay
    step = residual
    power = (residual**2).sum(1, keepdims=True)
    for _ in range(rounds):
        moved = (step @ moments) * stay
        curve = (step * moved).sum(1, keepdims=True)
        length = np.where(curve > 0, power / np.where(curve > 0, curve, 1), 0.0)
        best = best + length * step
        residual = residual - length * moved
        new = (residual**2).sum(1, keepdims=True)
        step = residual + np.where(power > 0, new / np.where(power > 0, power, 1), 0.0) * step
        power = new
    return np.asarray(best)


SOLVERS: dict[str, Solver] = {"magnitude": magnitude, "wanda": wanda, "sparsegpt": sparsegpt, "admm": admm}
# Those that take the other weights as they are.
UNMOVED = (magnitude, wanda)


def saliency(weight: Array, moments: Array) -> Array:
    """What it costs at least that a weight goes alone: w^2 / inverse(H)_kk [O, K]."""
    return np.asarray(weight**2 / np.diag(np.linalg.inv(damped(moments))))
