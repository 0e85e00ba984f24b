"""Convolutions on channels-last tensors: CONV_2D, DEPTHWISE_CONV_2D, CONV_3D, TRANSPOSE_CONV.

The declaration's rows have made sure that paddings are VALID or SAME.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from ai_edge_litert import schema_py_generated as s

from tapeout.sdk import graph as g
from tapeout.targets.tflite.builder import Builder, Lowering
from tapeout.targets.tflite.clusters import parameters, scales


def padding_of(pads: Sequence[int], auto_pad: str = "NOTSET") -> int:
    """TFLite's padding for pads that a row has found to be VALID (none) or SAME."""
    same = auto_pad == "SAME_UPPER" or (auto_pad == "NOTSET" and any(pads))
    return int(s.Padding.SAME if same else s.Padding.VALID)


def conv_2d(
    b: Builder,
    node: ir.Node,
    *,
    strides: Sequence[int] = (1, 1),
    dilations: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    group: int = 1,
    auto_pad: str = "NOTSET",
    kernel_shape: Sequence[int] = (),
) -> None:
    """X [N,H,W,C], W [O,KH,KW,C/group], B [O]; the number of groups follows from the shapes."""
    output, activation = b.fused(node)
    options = s.Conv2DOptionsT()
    options.padding = padding_of(pads, auto_pad)
    options.strideH, options.strideW = strides
    options.dilationHFactor, options.dilationWFactor = dilations
    options.fusedActivationFunction = activation
    x, w, bias = operands(b, node)
    b.operator("CONV_2D", [x, w, bias], [output], options)


def depthwise_conv_2d(
    b: Builder,
    node: ir.Node,
    *,
    strides: Sequence[int] = (1, 1),
    dilations: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    group: int = 1,
    auto_pad: str = "NOTSET",
    kernel_shape: Sequence[int] = (),
) -> None:
    """X [N,H,W,C], W [C*M,KH,KW,1], B [C*M]; TFLite wants the weight as [1,KH,KW,C*M]."""
    output, activation = b.fused(node)
    options = s.DepthwiseConv2DOptionsT()
    options.padding = padding_of(pads, auto_pad)
    options.strideH, options.strideW = strides
    options.dilationHFactor, options.dilationWFactor = dilations
    options.fusedActivationFunction = activation
    x, w, bias = operands(b, node, (3, 1, 2, 0))
    options.depthMultiplier = b.shape(w)[3] // group
    b.operator("DEPTHWISE_CONV_2D", [x, w, bias], [output], options)


def conv_3d(
    b: Builder,
    node: ir.Node,
    *,
    strides: Sequence[int] = (1, 1, 1),
    dilations: Sequence[int] = (1, 1, 1),
    pads: Sequence[int] = (0,) * 6,
    group: int = 1,
    auto_pad: str = "NOTSET",
    kernel_shape: Sequence[int] = (),
) -> None:
    """X [N,D,H,W,C], W [O,KD,KH,KW,C], B [O]; TFLite wants the weight as [KD,KH,KW,C,O]."""
    output, activation = b.fused(node)
    options = s.Conv3DOptionsT()
    options.padding = padding_of(pads, auto_pad)
    options.strideD, options.strideH, options.strideW = strides
    options.dilationDFactor, options.dilationHFactor, options.dilationWFactor = dilations
    options.fusedActivationFunction = activation
    x, w, bias = operands(b, node, (1, 2, 3, 4, 0))
    b.operator("CONV_3D", [x, w, bias], [output], options)


def transpose_conv(
    b: Builder,
    node: ir.Node,
    *,
    strides: Sequence[int] = (1, 1),
    dilations: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    group: int = 1,
    auto_pad: str = "NOTSET",
    output_padding: Sequence[int] = (0, 0),
    output_shape: Sequence[int] = (),
    kernel_shape: Sequence[int] = (),
) -> None:
    """X [N,H,W,C], W [O,KH,KW,C], B [O] -> [N,(H-1)*stride+KH-pads,...,O]; TFLite is told that shape."""
    output, activation = b.fused(node)
    options = s.TransposeConvOptionsT()
    options.padding = padding_of(pads, auto_pad)
    options.strideH, options.strideW = strides
    options.fusedActivationFunction = activation
    x, w, bias = operands(b, node)
    static = g.static_dims(node.outputs[0])
    if static is not None:
        shape = b.ints(static, "output_shape")
    else:
        kernel = g.static_dims(node.inputs[1])
        assert kernel is not None
        grown = [
            k - st - pads[i] - pads[i + 2] for i, (k, st) in enumerate(zip(kernel[1:3], strides, strict=True))
        ]
        shape = _affine(b, x, [1, *strides, 0], [0, *grown, kernel[0]])
    inputs = [shape, w, x] if bias is None else [shape, w, x, bias]
    b.operator("TRANSPOSE_CONV", inputs, [output], options)


def _affine(b: Builder, x: int, factors: Sequence[int], offsets: Sequence[int]) -> int:
    """The int32 tensor `shape(x) * factors + offsets`."""
    made = [b.tensor("shape", [len(factors)], ir.DataType.INT32) for _ in range(3)]
    options = s.ShapeOptionsT()
    options.outType = s.TensorType.INT32
    b.operator("SHAPE", [x], [made[0]], options)
    b.operator("MUL", [made[0], b.ints(factors)], [made[1]], s.MulOptionsT())
    b.operator("ADD", [made[1], b.ints(offsets)], [made[2]], s.AddOptionsT())
    return made[2]


def operands(b: Builder, node: ir.Node, order: Sequence[int] | None = None) -> tuple[int, int, int | None]:
    """The tensors of X, W and B; the output channels lead W, whose tensor has its axes in `order`. A missing B
    is zeros, which kernels take."""
    x, w, *rest = node.inputs
    assert x is not None and w is not None
    kernel = b.index(w) if order is None else b.transposed(w, order)
    bias = rest[0] if rest else None
    if b.storage(x).quantized and b.storage(w).quantized:
        return b.index(x), kernel, integer_bias(b, x, w, bias)
    if bias is not None:
        return b.index(x), kernel, b.index(bias)
    channels = None if w.shape is None else w.shape[0]
    if not isinstance(channels, int):
        return b.index(x), kernel, None
    return b.index(x), kernel, b.constant(np.zeros(channels, np.float32), "zero_bias")


def integer_bias(b: Builder, x: ir.Value, w: ir.Value, bias: ir.Value | None) -> int:
    """The bias in units of the accumulator, scale(X) * scale(W): int32 beside int8 activations, int64 beside
    int16 ones. A float one is rounded to them, a missing one is zeros."""
    wide = b.storage(x).dtype == ir.DataType.INT16
    dtype = np.dtype(np.int64 if wide else np.int32)
    held = None if bias is None else b.storage(bias)
    step_x, step_w = scales(b.storage(x)), scales(b.storage(w))
    assert step_x is not None and step_w is not None and w.shape is not None
    if held is not None and held.quantized and held.dtype == ir.DataType.INT32 and not wide:
        given = scales(held)
        # Beside one scale for the weights the kernels look for one scale here too.
        if given is not None and given.size == step_w.size:
            return b.stored(held)
    step = step_x.astype(np.float64) * step_w.astype(np.float64)
    channels = int(w.shape[0])  # type: ignore[arg-type]
    codes = np.zeros(channels, dtype)
    if held is not None:
        given = g.constant(held.value)
        assert given is not None
        codes = (given if held.quantized else np.rint(given.astype(np.float64) / step)).astype(dtype)
    made = b.constant(codes, bias.name if bias is not None and bias.name else "zero_bias", fresh=True)
    b.graph.tensors[made].quantization = parameters(step)
    return made


LOWERINGS: dict[str, Lowering] = {
    "CONV_2D": conv_2d,
    "DEPTHWISE_CONV_2D": depthwise_conv_2d,
    "CONV_3D": conv_3d,
    "TRANSPOSE_CONV": transpose_conv,
}
