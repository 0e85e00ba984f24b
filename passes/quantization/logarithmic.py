"""Powers of two as the levels of weights: a product by one is a shift.

levels of b bits: 0, 2^0, 2^-1, ..., -2^0, -2^-1, ...        as many negative ones as codes are left
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def powers_of_two(bits: int) -> Array:
    """The numbers [2 ** bits] that codes stand for, float32: 0, the positive powers, the negative ones."""
    half = 1 << (bits - 1)
    steps = np.exp2(-np.arange(half, dtype=np.float64))
    made: Array = np.concatenate([[0.0], steps[:-1], -steps]).astype(np.float32)
    return made


def nearest_power(weight: Array, table: Array) -> Array:
    """Codes uint8 of the numbers in `table` that are nearest to `weight` (within -1 and 1)."""
    order = np.argsort(table, kind="stable")
    levels = table[order].astype(np.float64)
    middles = ((levels[1:] + levels[:-1]) / 2).astype(np.float32)
    made: Array = order[np.searchsorted(middles, weight)].astype(np.uint8)
    return made
