"""A matrix as the product of two thinner ones, and a kernel as two or three smaller convolutions.

    W [O, K]        ~ A [O, r] B [r, K]                        svd, and svd of W H^(1/2) for inputs with moments H
    W [O, I, k..]   ~ A [O, r] . C [r, s, k..] . B [s, I]      tucker: along outputs and inputs at once

Plain SVD keeps what is large in the weights; the whitened one keeps what is large in the outputs (SVD-LLM, 2024).
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


def refit(weight: Array, moments: Array, core: Array, inner: Array) -> Array:
    """A [O, r] for which A . C . B puts out what is nearest to `weight` [O, K], by the inputs' moments."""
    rest = np.einsum("rsp,si->rip", core, inner).reshape(len(core), -1)
    seen = rest @ damped(moments)
    return np.asarray(np.linalg.solve(seen @ rest.T, seen @ weight.T).T)
