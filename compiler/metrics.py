"""How far two arrays lie apart: the numbers that verification, comparison and fault location share."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Difference:
    """`found` against `reference`.

    `error` is max|a-b|, `relative` is that over max|reference|, `sqnr` is 10 log10(sum a^2 / sum (a-b)^2) in
    dB (inf where equal), `cosine` the cosine between both as vectors, `argmax` the share of rows along the
    last axis whose largest element is at the same place (None where that means nothing). `exact` holds where
    every element is equal; `pattern` where NaN and infinities are at the same places, and shape and dtype are
    the same.
    """

    error: float
    relative: float
    sqnr: float
    cosine: float
    argmax: float | None
    exact: bool
    pattern: bool
    shape: tuple[int, ...]
    found_shape: tuple[int, ...]
    dtype: str
    found_dtype: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def is_inexact(array: Array) -> bool:
    """True for floating point and complex arrays, ml_dtypes' small floats included."""
    return array.dtype.kind in "fc" or (array.dtype.kind == "V" and "float" in array.dtype.name)


def relative(reference: Array, found: Array) -> float:
    """max|a-b| / max|a| over the finite elements of a float array, inf where shapes or non-finite patterns
    differ; for others 0 where equal, else inf."""
    if reference.shape != found.shape:
        return math.inf
    if not is_inexact(reference):
        return 0.0 if np.array_equal(reference, found) else math.inf
    a, b, same = _finite(reference, found)
    return _ratio(_largest(a - b), _largest(a)) if same else math.inf


def difference(reference: Array, found: Array) -> Difference:
    """Every number of `Difference`, computed in float64."""
    shapes = reference.shape == found.shape
    names = reference.dtype.name, found.dtype.name
    if not shapes or reference.dtype.kind in "OSU":
        equal = shapes and bool(np.array_equal(reference, found))
        bad = 0.0 if equal else math.inf
        return Difference(
            error=bad,
            relative=bad,
            sqnr=math.inf if equal else -math.inf,
            cosine=1.0 if equal else 0.0,
            argmax=None,
            exact=equal,
            pattern=equal,
            shape=reference.shape,
            found_shape=found.shape,
            dtype=names[0],
            found_dtype=names[1],
        )
    a, b, same = _finite(reference, found)
    gap = a - b
    noise, power = float(np.vdot(gap, gap)), float(np.vdot(a, a))
    error = _largest(gap)
    if not same:
        error = math.inf
    return Difference(
        error=error,
        relative=_ratio(error, _largest(a)),
        sqnr=math.inf if noise == 0 else 10 * math.log10(power / noise) if power else -math.inf,
        cosine=_cosine(a, b, power),
        argmax=_argmax(reference, found),
        exact=same and noise == 0,
        pattern=same and names[0] == names[1],
        shape=reference.shape,
        found_shape=found.shape,
        dtype=names[0],
        found_dtype=names[1],
    )


def _finite(reference: Array, found: Array) -> tuple[Array, Array, bool]:
    """Both as flat float64 with the elements that are not finite zeroed, and whether those agree."""
    a, b = _wide(reference), _wide(found)
    fine = np.isfinite(a)
    same = True
    if not fine.all() or not np.isfinite(b).all():
        same = bool(np.array_equal(np.where(fine, 0, a), np.where(np.isfinite(b), 0, b), equal_nan=True))
        both = fine & np.isfinite(b)
        a, b = np.where(both, a, 0.0), np.where(both, b, 0.0)
    return a, b, same


def _wide(array: Array) -> Array:
    if array.dtype.kind == "c":
        return np.ascontiguousarray(array).astype(np.complex128).reshape(-1).view(np.float64)
    return array.astype(np.float64).reshape(-1)


def _largest(array: Array) -> float:
    return float(np.abs(array).max()) if array.size else 0.0


def _ratio(error: float, scale: float) -> float:
    return 0.0 if error == 0 else error / scale if scale else math.inf


def _cosine(a: Array, b: Array, power: float) -> float:
    other = float(np.vdot(b, b))
    if power == 0 or other == 0:
        return 1.0 if power == other else 0.0
    return float(np.vdot(a, b) / math.sqrt(power) / math.sqrt(other))


def _argmax(reference: Array, found: Array) -> float | None:
    if (
        not is_inexact(reference)
        or reference.dtype.kind == "c"
        or reference.ndim < 1
        or reference.shape[-1] < 2
        or not reference.size
    ):
        return None
    if np.isnan(reference).any() or np.isnan(found).any():
        return None
    return float((reference.argmax(-1) == found.argmax(-1)).mean())
