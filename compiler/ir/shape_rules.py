"""Types and shapes after the common operators, on symbolic dimensions; the rest goes to ONNX's own
inference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.dimensions import Dim, Expr, exact_divide, floor_divide
from tapeout.compiler.ir.shape_context import (
    BOOL,
    INT64,
    Context,
    Dims,
    Rule,
    Typed,
    Unknown,
    broadcast,
    first,
)
from tapeout.compiler.ir.shape_structure import STRUCTURE

# --- elementwise -------------------------------------------------------------------------------------------


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


# --- products and windows ----------------------------------------------------------------------------------


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


ELEMENTWISE: tuple[tuple[Rule, str], ...] = (
    (
        same,
        "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Ceil Celu Clip Cos Cosh CumSum Elu Erf Exp Floor "
        "Gelu HardSigmoid HardSwish Hardmax Identity InstanceNormalization GroupNormalization LRN LeakyRelu "
        "Log LogSoftmax LpNormalization MeanVarianceNormalization Mish Neg Not PRelu RMSNormalization "
        "Reciprocal Relu Round ScatterElements ScatterND Selu Shrink Sigmoid Sign Sin Sinh Softmax Softplus "
        "Softsign Sqrt Swish Tan Tanh ThresholdedRelu Trilu",
    ),
    (same_of_one, "BatchNormalization LayerNormalization"),
    (dropout, "Dropout"),
    (boolean, "IsInf IsNaN"),
    (
        broadcasting,
        "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Max Mean Min Mod Mul Or Pow Sub Sum Xor",
    ),
    (comparison, "Equal Greater GreaterOrEqual Less LessOrEqual"),
    (where, "Where"),
    (cast, "Cast"),
    (cast_like, "CastLike"),
    (dequantize, "DequantizeLinear"),
)
WINDOWS: tuple[tuple[Rule, str], ...] = (
    (matmul, "MatMul"),
    (gemm, "Gemm"),
    (conv, "Conv"),
    (conv_transpose, "ConvTranspose"),
    (pool, "MaxPool AveragePool LpPool"),
    (global_pool, "GlobalAveragePool GlobalMaxPool GlobalLpPool"),
    (depth_to_space, "DepthToSpace"),
    (resize, "Resize"),
)

RULES: dict[str, Rule] = {
    name: rule for rule, names in (*ELEMENTWISE, *WINDOWS, *STRUCTURE) for name in names.split()
}
