"""Output types and shapes of the common operators on symbolic dimensions; the rest goes to ONNX's own inference.

A rule gets a `Context` and returns one (dtype, dims) per output. A dimension is an int, an `Expr`, or None where it
is unknown; dims is None where the rank is unknown. A rule raises `Unknown` to leave the node to ONNX's inference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.dimensions import Dim, Expr, Undecided, exact_divide, floor_divide, nonnegative
from tapeout.compiler.ir.kernels import clamped

Dims: TypeAlias = tuple[Dim | None, ...]
Typed: TypeAlias = tuple[ir.DataType | None, Dims | None]
BOOL, INT64 = ir.DataType.BOOL, ir.DataType.INT64


class Unknown(Exception):
    """This rule does not cover the node."""


class Context:
    """A node with the types and shapes of its inputs."""

    __slots__ = ("_shapes", "_values", "node")

    def __init__(
        self, node: ir.Node, shapes: Sequence[Dims | None], values: Callable[[ir.Value], list[Dim] | None]
    ) -> None:
        self.node, self._shapes, self._values = node, shapes, values

    def __len__(self) -> int:
        return len(self._shapes)

    def has(self, i: int) -> bool:
        return i < len(self.node.inputs) and self.node.inputs[i] is not None

    def dtype(self, i: int = 0) -> ir.DataType | None:
        value = self.node.inputs[i]
        return None if value is None else value.dtype

    def shape(self, i: int = 0) -> Dims:
        """The shape of input i; the rule ends where its rank is unknown."""
        found = self._shapes[i] if i < len(self._shapes) else None
        if found is None:
            raise Unknown
        return found

    def shapes(self) -> list[Dims]:
        return [self.shape(i) for i in range(len(self._shapes)) if self.node.inputs[i] is not None]

    def numbers(self, i: int) -> list[Dim]:
        """The elements of integer input i; the rule ends where they are unknown."""
        value = self.node.inputs[i]
        found = None if value is None else self._values(value)
        if found is None:
            raise Unknown
        return found

    def integers(self, i: int) -> list[int]:
        found = self.numbers(i)
        if any(isinstance(n, Expr) for n in found):
            raise Unknown
        return [int(n) for n in found]  # type: ignore[arg-type]

    def attr(self, name: str, default: Any = None) -> Any:
        return g.attribute(self.node, name, default)

    def axis(self, axis: int, rank: int) -> int:
        if not -rank <= axis < max(rank, 1):
            raise Unknown
        return axis + rank if axis < 0 else axis


Rule: TypeAlias = Callable[[Context], list[Typed]]


# --- dimensions -----------------------------------------------------------------------------------------------


def product(dims: Sequence[Dim | None]) -> Dim | None:
    """The product, None where a factor is unknown (and none is 0)."""
    total: Dim = 1
    unknown = False
    for d in dims:
        if d is None:
            unknown = True
        else:
            total = total * d
    return None if unknown and not (isinstance(total, int) and total == 0) else total


def broadcast(shapes: Sequence[Dims]) -> Dims:
    """The common shape. A symbol against another number than 1 gives that number, for else the graph is not valid."""
    if all(s == shapes[0] for s in shapes[1:]):
        return shapes[0]
    rank = max(len(s) for s in shapes)
    result: list[Dim | None] = []
    for axis in range(-rank, 0):
        sizes = {s[axis] for s in shapes if len(s) >= -axis}
        sizes.discard(1)
        if len(sizes) <= 1:
            result.append(next(iter(sizes), 1))
        else:
            numbers = [d for d in sizes if isinstance(d, int)]
            result.append(numbers[0] if len(numbers) == 1 else None)
    return tuple(result)


def minus(a: Dim | None, b: Dim | None) -> Dim | None:
    return None if a is None or b is None else a - b


def plus(a: Dim | None, b: Dim | None) -> Dim | None:
    return None if a is None or b is None else a + b


def first(c: Context, *outputs: Typed) -> list[Typed]:
    """As many of `outputs` as the node has."""
    return list(outputs[: len(c.node.outputs)])


# --- elementwise ----------------------------------------------------------------------------------------------


def same(c: Context) -> list[Typed]:
    return [(c.dtype(), c.shape())]


def same_of_one(c: Context) -> list[Typed]:
    if len(c.node.outputs) != 1:
        raise Unknown
    return same(c)


def dropout(c: Context) -> list[Typed]:
    return first(c, (c.dtype(), c.shape()), (BOOL, c.shape()))


def boolean(c: Context) -> list[Typed]:
    return [(BOOL, c.shape())]


def broadcasting(c: Context) -> list[Typed]:
    return [(c.dtype(), broadcast(c.shapes()))]


def comparison(c: Context) -> list[Typed]:
    return [(BOOL, broadcast(c.shapes()))]


def where(c: Context) -> list[Typed]:
    return [(c.dtype(1), broadcast(c.shapes()))]


def cast(c: Context) -> list[Typed]:
    return [(ir.DataType(c.attr("to")), c.shape())]


def cast_like(c: Context) -> list[Typed]:
    return [(c.dtype(1), c.shape())]


def dequantize(c: Context) -> list[Typed]:
    to = c.attr("output_dtype", 0)
    return [(ir.DataType(to) if to else c.dtype(1), c.shape())]


# --- products and windows -------------------------------------------------------------------------------------


def matmul(c: Context) -> list[Typed]:
    a, b = c.shape(0), c.shape(1)
    if not a or not b:
        raise Unknown
    left, right = a if len(a) > 1 else (1, *a), b if len(b) > 1 else (*b, 1)
    batch = broadcast([left[:-2], right[:-2]])
    tail = (left[-2:-1] if len(a) > 1 else ()) + (right[-1:] if len(b) > 1 else ())
    return [(c.dtype(), batch + tail)]


def gemm(c: Context) -> list[Typed]:
    a, b = c.shape(0), c.shape(1)
    if len(a) != 2 or len(b) != 2:
        raise Unknown
    return [(c.dtype(), (a[1 if c.attr("transA", 0) else 0], b[0 if c.attr("transB", 0) else 1]))]


def windows(
    c: Context, spatial: Dims, kernel: Sequence[Dim | None], ceil_mode: bool = False
) -> list[Dim | None]:
    """Sizes after a sliding window with the node's strides, dilations, pads and auto_pad."""
    n = len(spatial)
    strides = c.attr("strides") or (1,) * n
    dilations = c.attr("dilations") or (1,) * n
    pads = c.attr("pads") or (0,) * (2 * n)
    auto = c.attr("auto_pad", "NOTSET")
    sizes: list[Dim | None] = []
    for i, size in enumerate(spatial):
        k, stride = kernel[i], strides[i]
        if size is None or k is None:
            sizes.append(None)
            continue
        reach = (k - 1) * dilations[i] + 1
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            sizes.append(floor_divide(size + (stride - 1), stride))
            continue
        total = size - reach if auto == "VALID" else size + pads[i] + pads[i + n] - reach
        if not ceil_mode:
            sizes.append(floor_divide(total, stride) + 1)
            continue
        up = floor_divide(total + (stride - 1), stride) + 1
        if isinstance(up, Expr) or isinstance(size, Expr):
            after = 0 if auto == "VALID" else pads[i + n]
            if not isinstance(k, int) or after + stride - 1 >= (k - 1) * dilations[i] + 1:
                raise Unknown  # whether the last window is dropped depends on the size
            sizes.append(up)
            continue
        # The last window must begin inside the input or its left padding.
        begins_outside = (up - 1) * stride >= size + (0 if auto == "VALID" else pads[i])
        sizes.append(up - 1 if begins_outside else up)
    return sizes


def conv(c: Context) -> list[Typed]:
    x, w = c.shape(0), c.shape(1)
    if len(x) < 3 or len(w) != len(x):
        raise Unknown
    return [(c.dtype(), (x[0], w[0], *windows(c, x[2:], c.attr("kernel_shape") or w[2:])))]


def conv_transpose(c: Context) -> list[Typed]:
    x, w = c.shape(0), c.shape(1)
    n = len(x) - 2
    if n < 1 or len(w) != len(x):
        raise Unknown
    kernel = c.attr("kernel_shape") or w[2:]
    strides = c.attr("strides") or (1,) * n
    dilations = c.attr("dilations") or (1,) * n
    pads = c.attr("pads") or (0,) * (2 * n)
    extra = c.attr("output_padding") or (0,) * n
    stated = c.attr("output_shape")
    auto = c.attr("auto_pad", "NOTSET")
    sizes: list[Dim | None] = []
    for i, size in enumerate(x[2:]):
        if stated:
            sizes.append(stated[-n:][i])
        elif size is None or kernel[i] is None:
            sizes.append(None)
        elif auto in ("SAME_UPPER", "SAME_LOWER"):
            sizes.append(size * strides[i])
        else:
            cut = 0 if auto == "VALID" else pads[i] + pads[i + n]
            reach = (kernel[i] - 1) * dilations[i] + 1  # type: ignore[operator]
            sizes.append((size - 1) * strides[i] + extra[i] + reach - cut)
    channels = None if w[1] is None else w[1] * c.attr("group", 1)
    return [(c.dtype(), (x[0], channels, *sizes))]


def pool(c: Context) -> list[Typed]:
    x = c.shape()
    kernel = c.attr("kernel_shape")
    if len(x) < 3 or kernel is None:
        raise Unknown
    dims: Dims = (x[0], x[1], *windows(c, x[2:], kernel, bool(c.attr("ceil_mode", 0))))
    return first(c, (c.dtype(), dims), (INT64, dims))


def global_pool(c: Context) -> list[Typed]:
    x = c.shape()
    return [(c.dtype(), (*x[:2], *(1 for _ in x[2:])))]


def depth_to_space(c: Context) -> list[Typed]:
    n, ch, h, w = c.shape()
    b = c.attr("blocksize")
    depth = None if ch is None else exact_divide(ch, b * b)
    return [(c.dtype(), (n, depth, None if h is None else h * b, None if w is None else w * b))]


def resize(c: Context) -> list[Typed]:
    x = c.shape()
    axes = c.attr("axes")
    policy = c.attr("keep_aspect_ratio_policy", "stretch")
    over = [c.axis(a, len(x)) for a in axes] if axes else list(range(len(x)))
    dims = list(x)
    if c.has(3):
        if policy != "stretch":
            raise Unknown
        for axis, wanted in zip(over, c.numbers(3), strict=True):
            dims[axis] = wanted
        return [(c.dtype(), tuple(dims))]
    scales = g.constant(c.node.inputs[2], limit=16) if c.has(2) else None
    if scales is None or scales.size != len(over):
        raise Unknown
    for axis, scale in zip(over, scales.tolist(), strict=True):
        size = x[axis]
        if isinstance(size, int):
            dims[axis] = math.floor(size * scale)
        elif size is not None and scale == int(scale):
            dims[axis] = size * int(scale)
        elif size is not None and 1 / scale == int(1 / scale):
            dims[axis] = floor_divide(size, int(1 / scale))
        else:
            dims[axis] = None
    return [(c.dtype(), tuple(dims))]


# --- structure ------------------------------------------------------------------------------------------------


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
    """product(have) / product(taken), unknown dims that stand in both cancelled by position where they are alone."""
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
    starts, ends = c.numbers(1), c.numbers(2)
    axes = c.integers(3) if c.has(3) else list(range(len(starts)))
    steps = c.integers(4) if c.has(4) else [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        axis = c.axis(axis, len(x))
        x[axis] = sliced(x[axis], start, end, step)
    return [(c.dtype(), tuple(x))]


def sliced(size: Dim | None, start: Dim, end: Dim, step: int) -> Dim | None:
    """The size of Slice along one axis. A number inside a symbolic size counts as inside of it."""
    if step == 0:
        raise Unknown
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
        # N-3, from a slice [3:] or [:-3] of N: right wherever N >= 3, and elsewhere there is nothing to compute.
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
    return at if nonnegative(at) and nonnegative(size - at) else None


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
    pads = c.numbers(1)
    axes = [c.axis(a, len(x)) for a in c.integers(3)] if c.has(3) else list(range(len(x)))
    for i, axis in enumerate(axes):
        x[axis] = plus(plus(x[axis], pads[i]), pads[i + len(axes)])
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


def layer_normalization(c: Context) -> list[Typed]:
    if len(c.node.outputs) > 1:
        raise Unknown
    return same(c)


def _table() -> dict[str, Rule]:
    table: dict[str, Rule] = {}
    for rule, names in (
        (same, "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Ceil Celu Clip Cos Cosh CumSum Elu Erf Exp Floor Gelu "
               "HardSigmoid HardSwish Hardmax Identity InstanceNormalization GroupNormalization LRN LeakyRelu Log "
               "LogSoftmax LpNormalization MeanVarianceNormalization Mish Neg Not PRelu RMSNormalization Reciprocal "
               "Relu Round ScatterElements ScatterND Selu Shrink Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt "
               "Swish Tan Tanh ThresholdedRelu Trilu"),
        (same_of_one, "BatchNormalization"),
        (layer_normalization, "LayerNormalization"),
        (dropout, "Dropout"),
        (boolean, "IsInf IsNaN"),
        (broadcasting, "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Max Mean Min Mod Mul Or Pow Sub Sum Xor"),
        (comparison, "Equal Greater GreaterOrEqual Less LessOrEqual"),
        (where, "Where"), (cast, "Cast"), (cast_like, "CastLike"), (dequantize, "DequantizeLinear"),
        (matmul, "MatMul"), (gemm, "Gemm"), (conv, "Conv"), (conv_transpose, "ConvTranspose"), (pool, "MaxPool AveragePool LpPool"),
        (global_pool, "GlobalAveragePool GlobalMaxPool GlobalLpPool"),
        (depth_to_space, "DepthToSpace"), (resize, "Resize"),
        (transpose, "Transpose"), (reshape, "Reshape"), (flatten, "Flatten"), (unsqueeze, "Unsqueeze"),
        (squeeze, "Squeeze"), (concat, "Concat"), (slice_, "Slice"), (split, "Split"), (gather, "Gather"),
        (gather_elements, "GatherElements"), (expand, "Expand"), (tile, "Tile"), (pad, "Pad"), (shape, "Shape"),
        (size, "Size"), (constant_of_shape, "ConstantOfShape"), (range_, "Range"),
        (reduce, "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
                 "ReduceSumSquare"),
        (arg_reduce, "ArgMax ArgMin"), (top_k, "TopK"), (stft, "STFT"),
    ):  # fmt: skip
        table.update(dict.fromkeys(names.split(), rule))
    return table


RULES = _table()
