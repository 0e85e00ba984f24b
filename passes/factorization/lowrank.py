"""A matrix as the product of two thinner ones, and a kernel as two or three smaller convolutions.

    W [O, K]        ~ A [O, r] B [r, K]                        svd, and svd of W H^(1/2) for inputs with moments H
    W [O, I, k..]   ~ A [O, r] . C [r, s, k..] . B [s, I]      tucker: along outputs and inputs at once
    W [O, I, k..]   ~ sum over r of A [O, r] C [r, k..] B [r, I]       cp: the kernel in the middle is depthwise
    W [O, I, h, w]  ~ sum over r of U [O, r, w] V [r, I, h]            uv: columns after rows

Plain SVD keeps what is large in the weights; the whitened one keeps what is large in the outputs (SVD-LLM, 2024). The
others find what they multiply by last anew, so that the outputs are nearest (`refit`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tapeout.passes.sparsity.solve import damped

Array = np.ndarray[Any, Any]


def spectrum(weight: Array, moments: Array | None) -> Array:
    """Share of what a matrix [O, K] puts out that is lost when all but the first r terms go, for r = 0 to all."""
    values = np.linalg.svd(whitened(weight, moments)[0], compute_uv=False) ** 2
    total = max(float(values.sum()), 1e-300)
    return np.concatenate([np.cumsum(values[::-1])[::-1], [0.0]]) / total


def factors(weight: Array, moments: Array | None, rank: int) -> tuple[Array, Array]:
    """A [O, r] and B [r, K] whose product loses least of `weight`, by `moments` [K, K] of its inputs or plainly;
    terms are shared between both alike, so that both keep a moderate range."""
    white, back = whitened(weight, moments)
    u, s, v = np.linalg.svd(white, full_matrices=False)
    root = np.sqrt(s[:rank])
    return u[:, :rank] * root, (root[:, None] * v[:rank]) @ back


def whitened(weight: Array, moments: Array | None) -> tuple[Array, Array]:
    """W L and the inverse of L, with L L' = H."""
    if moments is None:
        return weight, np.eye(weight.shape[1])
    lower = np.linalg.cholesky(damped(moments))
    return weight @ lower, np.linalg.inv(lower)


def tucker(kernel: Array, outputs: int, inputs: int, rounds: int = 3) -> tuple[Array, Array, Array]:
    """A [O, r], C [r, s, P] and B [s, I] for `kernel` [O, I, P] (P positions): higher-order orthogonal iteration
    (De Lathauwer et al., 2000)."""

    def leading(unfolded: Array, count: int) -> Array:
        return np.asarray(np.linalg.eigh(unfolded @ unfolded.T)[1][:, ::-1][:, :count])

    left = leading(kernel.reshape(kernel.shape[0], -1), outputs)
    right = np.empty((kernel.shape[1], inputs))
    for _ in range(rounds):
        seen = np.tensordot(kernel, left, (0, 0))  # [I, P, r]
        right = leading(seen.reshape(len(seen), -1), inputs)
        seen = np.tensordot(kernel, right, (1, 0))  # [O, P, s]
        left = leading(seen.reshape(len(seen), -1), outputs)
    core = np.tensordot(np.tensordot(left, kernel, (0, 0)), right, (1, 0)).transpose(0, 2, 1)
    return left, core, right.T


def cp(kernel: Array, rank: int, rounds: int = 24) -> tuple[Array, Array, Array]:
    """A [O, r], C [r, P] and B [r, I] for `kernel` [O, I, P], by alternating least squares (Kolda and Bader, 2009)
    from the leading singular vectors of each side, and random ones of a fixed seed where there are too few. A little
    is added to the diagonals: terms that cancel each other grow without bound."""
    draw = np.random.default_rng(0)
    unfolded = [np.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1) for axis in range(3)]
    sides: list[Array] = [
        np.hstack([np.linalg.eigh(u @ u.T)[1][:, ::-1], draw.standard_normal((len(u), rank))])[:, :rank]
        for u in unfolded
    ]
    for _ in range(rounds):
        for axis in range(3):
            first, second = (sides[k] for k in range(3) if k != axis)
            gram = (first.T @ first) * (second.T @ second)
            gram[np.diag_indices(rank)] += 1e-6 * np.trace(gram) / rank
            joint = (first[:, None] * second[None]).reshape(-1, rank)
            sides[axis] = np.linalg.solve(gram, (unfolded[axis] @ joint).T).T
            if axis:
                # The first holds the terms' sizes, so that the others keep a moderate range.
                sides[axis] = sides[axis] / np.maximum(np.linalg.norm(sides[axis], axis=0), 1e-30)
    return sides[0], sides[2].T, sides[1].T


def rows(kernel: Array, rank: int) -> Array:
    """V [r, I, h] of the best U, V for `kernel` [O, I, h, w]."""
    outputs, inputs, height, width = kernel.shape
    matrix = kernel.transpose(0, 3, 1, 2).reshape(outputs * width, inputs * height)
    return np.asarray(np.linalg.svd(matrix, full_matrices=False)[2][:rank].reshape(-1, inputs, height))


def refit(weight: Array, moments: Array, inner: Array) -> Array:
    """A [O, r] for which A M puts out what is nearest to `weight` [O, K], with `inner` M [r, K], by the inputs'
    moments."""
    seen = inner @ damped(moments)
    held = seen @ inner.T
    # Parts that are alike share what they carry.
    held[np.diag_indices(len(held))] += 1e-9 * max(float(np.trace(held)) / len(held), 1e-300)
    return np.asarray(np.linalg.solve(held, seen @ weight.T).T)
