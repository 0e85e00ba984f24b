"""Rounding to half precision whose errors cancel where they would add up.

The inputs of a layer mostly have a mean: they come out of activations. With weights W + d its output moves by
sum_k d_k x_k = m sum_k d_k + sum_k d_k (x_k - m), and of the two terms the first repeats at every position, where
the second is noise. So the weights of each output are rounded such that sum_k d_k is nearly 0: from the nearest
values on, those go to their other neighbour that lose least by it, until the sum is closest to 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# Elements that are rounded together, as whole rows.
BLOCK = 1 << 20
# Rows beyond this length are not sorted as a whole: this share of each is looked at.
LONG = 1024
SHARE = 4
# Times sqrt(length) values of a row, the closest to the middle between two float16, are looked at first.
CLOSE = 6.0


def steered(array: Array, axis: int) -> Array:
    """`array` (float32) as float16, each value one of its two neighbours, the errors of each slice along `axis`
    adding up to nearly 0. Values must lie within the range of float16."""
    turned = np.moveaxis(array, axis, 0)
    rows = turned.reshape(turned.shape[0], -1)
    made = np.empty(rows.shape, np.float16)
    step = max(1, BLOCK // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        made[start : start + step] = _rows(np.ascontiguousarray(rows[start : start + step]))
    return np.ascontiguousarray(np.moveaxis(made.reshape(turned.shape), 0, axis))


def _rows(exact: Array) -> Array:
    near = exact.astype(np.float16)
    if exact.shape[1] < 2:
        return near
    error = near.astype(np.float32) - exact  # without rounding: both share their exponent, or one is zero
    total = error.sum(1, dtype=np.float64)
    rest = _closest_moved(exact, near, error, total)
    if len(rest):
        near[rest] = _sorted_whole(exact[rest], error[rest], total[rest])
    return near


def _closest_moved(exact: Array, near: Array, error: Array, total: Array) -> Array:
    """Move the values of `near` that are closest to the middle between their neighbours, as many in each row as
    bring its sum of errors closest to 0; the rows where this share of the values is not enough are left, and named.

    Roundings add up like a random walk: sums are of the order of sqrt(length), and so is the number of moves.
    """
    length = exact.shape[1]
    share = min(1.0, CLOSE / length**0.5)
    # The distance of two float16 about a value: 2^-10 of its power of two, 2^-24 at least.
    powers = (exact.view(np.uint32) & np.uint32(0x7F800000)).view(np.float32)
    bound = np.maximum(powers, np.float32(2**-14)) * np.float32((1 - share) / 2**11)
    rows, columns = np.nonzero(error * np.sign(total).astype(np.float32)[:, None] > bound)
    old, away = near[rows, columns], error[rows, columns]
    other = _neighbour(old, away)
    with np.errstate(invalid="ignore"):
        step = other.astype(np.float32) - old.astype(np.float32)
        price = np.where(np.isfinite(step), 1 + 2 * away / step, np.inf)
    order = np.lexsort((price, rows))
    order = order[np.isfinite(price[order])]
    rows, columns, other, step = rows[order], columns[order], other[order], step[order]
    counts = np.bincount(rows, minlength=len(exact))
    first = np.cumsum(counts) - counts
    moved = np.concatenate([[0.0], np.cumsum(step, dtype=np.float64)])
    after = total[rows] + moved[1:] - moved[first[rows]]
    # Every move brings the sum towards 0: those before it is crossed, and the one across where that is nearer.
    before = after - step
    taken = np.abs(after) < np.abs(before)
    chosen = np.zeros(len(exact), np.int64)
    np.add.at(chosen, rows[taken], 1)
    near[rows[taken], columns[taken]] = other[taken]
    short: Array = np.flatnonzero((chosen == counts) & (total != 0) & (share < 1))
    return short


def _sorted_whole(exact: Array, error: Array, total: Array) -> Array:
    """Rows that need many moves, with more of their values looked at."""
    near = exact.astype(np.float16)
    other = _neighbour(near, error)
    with np.errstate(invalid="ignore"):
        step = other.astype(np.float32) - near.astype(np.float32)
    useful = (error * total[:, None] > 0) & np.isfinite(step)
    # How far from the middle between both neighbours a value lies: those there lose least.
    with np.errstate(invalid="ignore", divide="ignore"):
        price = np.where(useful, 1 + 2 * error / step, np.inf).astype(np.float32)
    length = exact.shape[1]
    if length > LONG:
        order = np.argpartition(price, length // SHARE, axis=1)[:, : length // SHARE]
        inner = np.take_along_axis(price, order, 1).argsort(1, kind="stable")
        order = np.take_along_axis(order, inner, 1)
    else:
        order = price.argsort(1, kind="stable")
    taken = np.where(np.take_along_axis(useful, order, 1), np.take_along_axis(step, order, 1), 0)
    sums = total[:, None] + np.cumsum(taken, 1, dtype=np.float64)
    best = np.abs(sums).argmin(1)
    best = np.where(np.abs(sums[np.arange(len(sums)), best]) < np.abs(total), best + 1, 0)
    chosen = np.arange(order.shape[1]) < best[:, None]
    flips = np.zeros(exact.shape, bool)
    np.put_along_axis(flips, order, chosen, 1)
    return np.where(flips & useful, other, near)


def _neighbour(near: Array, error: Array) -> Array:
    """The float16 on the other side of the exact value, which is `near - error`."""
    bits = near.view(np.uint16)
    lower = error > 0
    toward_zero = (bits < 0x8000) == lower
    moved = np.where(toward_zero, bits - np.uint16(1), bits + np.uint16(1))
    least = np.where(lower, np.uint16(0x8001), np.uint16(0x0001))
    found: Array = np.where(bits & 0x7FFF == 0, least, moved).view(np.float16)
    return found
