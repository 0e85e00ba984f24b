"""Types and shapes after operators that move, cut, join or reduce elements, on symbolic dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from tapeout.compiler.ir.dimensions import Dim, Expr, Undecided, exact_divide, floor_divide, nonnegative
from tapeout.compiler.ir.kernels import clamped
from tapeout.compiler.ir.shape_context import (
    INT64,
    Context,
    Dims,
    Rule,
    Typed,
    Unknown,
    broadcast,
    plus,
    product,
)


def transpose(c: Context) -> list[Typed]:
    x = c.shape()
    perm = c.attr("perm") or range(len(x))[::-1]
    if len(perm) != len(x):
        raise Unknown
    return [(c.dtype(), tuple(x[p] for p in perm))]


def reshape(c: Context) -> list[Typed]:
    target = c.numbers(1)
    allowzero = c.attr("allowzero", 0)
    dims: list[Dim | None] = []
    hole = None
    x = c._shapes[0]
    for i, d in enumerate(target):
        if isinstance(d, Expr):
            if not nonnegative(d):
                raise Unknown
            dims.append(d)
        elif d == -1:
            hole = i
            dims.append(None)
        elif d == 0 and not allowzero:
            dims.append(None if x is None else x[i])
        else:
            dims.append(d)
    if hole is not None and x is not None:
        dims[hole] = _rest(list(x), dims[:hole] + dims[hole + 1 :])
    return [(c.dtype(), tuple(dims))]


def _rest(have: list[Dim | None], taken: list[Dim | None]) -> Dim | None:
    """product(have) / product(taken), unknown dims that stand in both cancelled by position where they are
    alone."""
    whole, part = product(have), product(taken)
    if whole is None or part is None or part == 0:
        return None
    exact = exact_divide(whole, part)
    if exact is not None:
        return exact
    try:
        return floor_divide(whole, part)
    except Undecided:
        return None


def flatten(c: Context) -> list[Typed]:
    x = c.shape()
    axis = c.attr("axis", 1)
    axis = axis + len(x) if axis < 0 else axis
    return [(c.dtype(), (product(x[:axis]), product(x[axis:])))]


def unsqueeze(c: Context) -> list[Typed]:
    x, axes = list(c.shape()), c.integers(1)
    rank = len(x) + len(axes)
    where_ = {c.axis(a, rank) for a in axes}
    rest = iter(x)
    return [(c.dtype(), tuple(1 if i in where_ else next(rest) for i in range(rank)))]


def squeeze(c: Context) -> list[Typed]:
    x = c.shape()
    if not c.has(1):
        if not all(isinstance(d, int) for d in x):
            raise Unknown
        return [(c.dtype(), tuple(d for d in x if d != 1))]
    axes = {c.axis(a, len(x)) for a in c.integers(1)}
    return [(c.dtype(), tuple(d for i, d in enumerate(x) if i not in axes))]


def concat(c: Context) -> list[Typed]:
    shapes = c.shapes()
    axis = c.axis(c.attr("axis"), len(shapes[0]))
    if any(len(s) != len(shapes[0]) for s in shapes):
        raise Unknown
    dims: list[Dim | None] = []
    for i, sizes in enumerate(zip(*shapes, strict=True)):
        if i == axis:
            total: Dim | None = 0
            for d in sizes:
                total = plus(total, d)
            dims.append(total)
        else:
            known = [d for d in sizes if d is not None]
            dims.append(next((d for d in known if isinstance(d, int)), known[0] if known else None))
    return [(c.dtype(), tuple(dims))]


def slice_(c: Context) -> list[Typed]:
    x = list(c.shape())
    starts, ends = c.known(1), c.known(2)
    axes = c.integers(3) if c.has(3) else list(range(len(starts)))
    steps = c.integers(4) if c.has(4) else [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        axis = c.axis(axis, len(x))
        x[axis] = None if start is None or end is None else sliced(x[axis], start, end, step)
    return [(c.dtype(), tuple(x))]


def sliced(size: Dim | None, start: Dim, end: Dim, step: int) -> Dim | None:
    """The size of Slice along one axis. A number inside a symbolic size counts as inside of it."""
    if step == 0:
        raise Unknown
    if step < 0 and isinstance(end, int) and end >= 2**31 - 1:
        return None  # the standard and ONNX Runtime differ
    if all(isinstance(v, int) for v in (size, start, end)):
        return len(range(*_bounds(int(start), int(end), step, int(size))))  # type: ignore[arg-type]
    if size is None or step < 0:
        if size is not None and step < 0 and start in (-1,) and isinstance(end, int) and end < -(2**30):
            return floor_divide(size + (-step - 1), -step)
        return None
    high = _position(end, size)
    low = start if high == size and isinstance(start, int) and 0 < start < 2**30 else _position(start, size)
    if low is None or high is None:
        return None
    length = high - low
    if not nonnegative(length):
        # N-3, from a slice [3:] or [:-3] of N: right wherever N >= 3, and elsewhere there is nothing to
        # compute.
        inside = isinstance(length, Expr) and nonnegative(length - min(0, _constant(length)))
        if not inside:
            return None
    return floor_divide(length + (step - 1), step)


def _constant(x: Dim) -> int:
    return dict(x.terms).get((), 0) if isinstance(x, Expr) else int(x)


def _bounds(start: int, end: int, step: int, size: int) -> tuple[int, int, int]:
    return slice(start, None if step < 0 and end < -size else end, step).indices(size)


def _position(at: Dim, size: Dim) -> Dim | None:
    """Where a start or end falls along an axis of a symbolic size."""
    if isinstance(at, int):
        if at >= 2**30:
            return size
        if at <= -(2**30):
            return 0
        if at < 0:
            return size + at
        if at == 0:
            return 0
        # A positive number against a symbol: clamped to it. Known only where the size surely reaches it.
        return at if nonnegative(size - at) else None
    away = size - at
    if isinstance(away, int):
        return at if away >= 0 else size
    return at if nonnegative(at) and nonnegative(away) else None


def split(c: Context) -> list[Typed]:
    x = c.shape()
    axis = c.axis(c.attr("axis", 0), len(x))
    n = len(c.node.outputs)
    sizes: list[Dim | None]
    if c.has(1):
        sizes = list(c.numbers(1))
    else:
        size = x[axis]
        if isinstance(size, int):
            chunk = -(-size // n)
            sizes = [max(0, min(chunk, size - i * chunk)) for i in range(n)]
        else:
            part = None if size is None else exact_divide(size, n)
            sizes = [part] * n
    return [(c.dtype(), (*x[:axis], s, *x[axis + 1 :])) for s in sizes]


def gather(c: Context) -> list[Typed]:
    x, indices = c.shape(0), c.shape(1)
    axis = c.axis(c.attr("axis", 0), len(x))
    return [(c.dtype(), x[:axis] + indices + x[axis + 1 :])]


def gather_elements(c: Context) -> list[Typed]:
    return [(c.dtype(), c.shape(1))]


def expand(c: Context) -> list[Typed]:
    return [(c.dtype(), broadcast([c.shape(), tuple(c.numbers(1))]))]


def tile(c: Context) -> list[Typed]:
    x = c.shape()
    return [(c.dtype(), tuple(None if d is None else d * r for d, r in zip(x, c.numbers(1), strict=True)))]


def pad(c: Context) -> list[Typed]:
    x = list(c.shape())
    pads = c.known(1)
    axes = [c.axis(a, len(x)) for a in c.integers(3)] if c.has(3) else list(range(len(x)))
    for i, axis in enumerate(axes):
        before, after = pads[i], pads[i + len(axes)]
        x[axis] = None if before is None or after is None else plus(plus(x[axis], before), after)
    return [(c.dtype(), tuple(x))]


def shape(c: Context) -> list[Typed]:
    low, high = clamped(c.attr("start", 0), c.attr("end"), len(c.shape()))
    return [(INT64, (high - low,))]


def size(c: Context) -> list[Typed]:
    return [(INT64, ())]


def constant_of_shape(c: Context) -> list[Typed]:
    value = c.attr("value")
    return [(ir.DataType.FLOAT if value is None else value.dtype, tuple(c.numbers(0)))]


def range_(c: Context) -> list[Typed]:
    if c.dtype() in (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        raise Unknown
    (start,), (limit,), (delta,) = c.numbers(0), c.numbers(1), c.integers(2)
    if delta == 0:
        raise Unknown
    span = (limit - start) * (1 if delta > 0 else -1)
    count = floor_divide(span + (abs(delta) - 1), abs(delta))
    if isinstance(count, Expr):
        return [(c.dtype(), (count if nonnegative(count) else None,))]
    return [(c.dtype(), (max(0, count),))]


def reduce(c: Context) -> list[Typed]:
    return [(c.dtype(), _reduced(c, c.integers(1) if c.has(1) else None))]


def _reduced(c: Context, axes: Sequence[int] | None) -> Dims:
    x = c.shape()
    if not axes:
        if c.attr("noop_with_empty_axes", 0):
            return x
        axes = range(len(x))
    over = {c.axis(a, len(x)) for a in axes}
    if c.attr("keepdims", 1):
        return tuple(1 if i in over else d for i, d in enumerate(x))
    return tuple(d for i, d in enumerate(x) if i not in over)


def arg_reduce(c: Context) -> list[Typed]:
    return [(INT64, _reduced(c, [c.attr("axis", 0)]))]


def top_k(c: Context) -> list[Typed]:
    x = c.shape()
    axis = c.axis(c.attr("axis", -1), len(x))
    (k,) = c.numbers(1)
    dims = (*x[:axis], k, *x[axis + 1 :])
    return [(c.dtype(), dims), (INT64, dims)]


def stft(c: Context) -> list[Typed]:
    """[batch, signal, 1 or 2] -> [batch, frames, bins, 2]; a one-sided spectrum has length // 2 + 1 bins."""
    x = c.shape()
    (step,) = c.integers(1)
    length = c.shape(2)[0] if c.has(2) else c.numbers(3)[0]
    if len(x) != 3 or x[1] is None or length is None:
        raise Unknown
    bins = floor_divide(length, 2) + 1 if c.attr("onesided", 1) else length
    return [(c.dtype(), (x[0], floor_divide(x[1] - length, step) + 1, bins, 2))]


STRUCTURE: tuple[tuple[Rule, str], ...] = (
    (transpose, "Transpose"),
    (reshape, "Reshape"),
    (flatten, "Flatten"),
    (unsqueeze, "Unsqueeze"),
    (squeeze, "Squeeze"),
    (concat, "Concat"),
    (slice_, "Slice"),
    (split, "Split"),
    (gather, "Gather"),
    (gather_elements, "GatherElements"),
    (expand, "Expand"),
    (tile, "Tile"),
    (pad, "Pad"),
    (shape, "Shape"),
    (size, "Size"),
    (constant_of_shape, "ConstantOfShape"),
    (range_, "Range"),
    (
        reduce,
        "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
        "ReduceSumSquare",
    ),
    (arg_reduce, "ArgMax ArgMin"),
    (top_k, "TopK"),
    (stft, "STFT"),
)
