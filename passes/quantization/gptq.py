"""GPTQ: weights are rounded one input at a time, and what rounding lost is made good by the inputs still to come.

    q_k = round(w_k / s);  w_j += (q_k s - w_k) * U[k, j] / U[k, k]   for j > k,   U = chol(inverse(H)), upper

after E. Frantar et al., GPTQ (ICLR 2023), with H = X'X of the inputs as the quantized model makes them. The
target may be made to undo what earlier layers lost (`toward`), as Qronos does: W' = argmin |X_float W - X W'|.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# Added to the diagonal, of its mean.
DAMP = 0.01
# Inputs worked on together.
BLOCK = 64
# Bits that are kept of a factor: its last ones depend on the machine's kernels for linear algebra, codes must not.
BITS = 20


def gptq(weight: Array, hessian: Array, scale: Array, highest: int, damp: float = DAMP) -> Array:
    """Codes [O, K] (float64 holding integers in [-highest, highest]) of `weight` [O, K] with scales [O], for
    inputs with second moments `hessian` [K, K]."""
    size = len(hessian)
    moments = np.array(hessian, np.float64)
    dead = np.diag(moments) <= 0
    moments[dead, dead] = 1
    moments[np.diag_indices(size)] += damp * float(np.mean(np.diag(moments)))
    order = np.argsort(-np.diag(moments), kind="stable")
    upper = inverse_factor(moments[order][:, order])
    if upper is None:
        return np.clip(np.rint(weight / scale[:, None]), -highest, highest)
    rest = np.array(weight[:, order], np.float64)
    codes = np.empty_like(rest)
    for start in range(0, size, BLOCK):
        end = min(start + BLOCK, size)
        lost = np.empty((len(rest), end - start))
        for k in range(start, end):
            codes[:, k] = np.clip(np.rint(rest[:, k] / scale), -highest, highest)
            lost[:, k - start] = (rest[:, k] - codes[:, k] * scale) / upper[k, k]
            rest[:, k + 1 : end] -= lost[:, k - start, None] * upper[k, k + 1 : end]
        rest[:, end:] -= lost @ upper[start:end, end:]
    result = np.empty_like(codes)
    result[:, order] = codes
    return result


def inverse_factor(moments: Array) -> Array | None:
    """The upper triangular U with U'U = inverse(moments); None where that is not positive definite."""
    try:
        factor = np.linalg.cholesky(moments[::-1, ::-1])
        lower = factor[::-1, ::-1].T  # moments = lower' lower reversed: inverse has the factor inverse(lower)
        identity = np.eye(len(moments))
        upper = np.linalg.solve(lower.T, identity)
    except np.linalg.LinAlgError:
        return None
    return truncated(np.triu(upper) if np.allclose(np.tril(upper, -1), 0) else upper)


def truncated(array: Array) -> Array:
    """`array` with BITS bits of each number."""
    fraction, exponent = np.frexp(array)
    return np.ldexp(np.rint(fraction * 2.0**BITS) / 2.0**BITS, exponent)


def toward(weight: Array, wanted: Array, inputs: Array, hessian: Array, damp: float = DAMP) -> Array:
    """The real weight [O, K] that makes of `inputs` what `weight` makes of `wanted` (rows [R, K], both centred),
    held to `weight` by `damp`."""
    cross = (wanted - inputs).T @ inputs
    size = len(hessian)
    held = hessian + (damp * float(np.trace(hessian)) / size + 1e-12) * np.eye(size)
    try:
        change = np.linalg.solve(held, (weight @ cross).T).T
    except np.linalg.LinAlgError:
        return weight
    return weight + truncated(change)
