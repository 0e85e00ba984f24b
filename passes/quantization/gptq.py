"""GPTQ: weights are rounded one input at a time, and what rounding lost is made good by the inputs still to come.

    q_k = round(w_k / s);  w_j += (q_k s - w_k) * U[k, j] / U[k, k]   for j > k,   U = chol(inverse(H)), upper

after E. Frantar et al., GPTQ (ICLR 2023), with H = X'X of the inputs as the quantized model makes them. The
target may be made to undo what earlier layers lost (`toward`), as Qronos does: W' = argmin |X_float W - X W'|.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

# Added to the diagonal, of its mean.
DAMP = 0.01
# Inputs worked on together.
BLOCK = 64
# Bits that are kept of a factor: its last ones depend on the machine's kernels for linear algebra, codes must not.
BITS = 20


class Factor(NamedTuple):
    """What GPTQ needs of the inputs' second moments: the order of the inputs, and the factor U in that order."""

    order: Array
    upper: Array | None


def factor(hessian: Array, damp: float = DAMP) -> Factor:
    """The factor of second moments [K, K], inputs that move most first."""
    moments = np.array(hessian, np.float64)
    dead = np.diag(moments) <= 0
    moments[dead, dead] = 1
    moments[np.diag_indices(len(moments))] += damp * float(np.mean(np.diag(moments)))
    order = np.argsort(-np.diag(moments), kind="stable")
    return Factor(order, inverse_factor(moments[order][:, order]))


def gptq(weight: Array, inputs: Factor, scale: Array, highest: int) -> Array:
    """Codes [O, K] (float64 holding integers in [-highest, highest]) of `weight` [O, K] with scales [O]."""
    order, upper = inputs
    if upper is None:
        return np.clip(np.rint(weight / scale[:, None]), -highest, highest)
    size = len(order)
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
        reverse = np.linalg.cholesky(np.ascontiguousarray(moments[::-1, ::-1]))
        # moments = V V' with V = reverse[::-1, ::-1] upper triangular, so inverse(moments) = U'U with U = inverse(V).
        upper = np.linalg.solve(np.ascontiguousarray(reverse[::-1, ::-1]), np.eye(len(moments)))
    except np.linalg.LinAlgError:
        return None
    return truncated(np.triu(upper))


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
