"""Activations: RELU and its bounded forms, LEAKY_RELU, GELU, LOGISTIC, TANH, SOFTMAX and others."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from ai_edge_litert import schema_py_generated as s

from tapeout.sdk import graph as g
from tapeout.targets.tflite.builder import Builder, Lowering
from tapeout.targets.tflite.lower.elementwise import copy
from tapeout.targets.tflite.nodes import activation_of

CLIP_CODES = {
    s.ActivationFunctionType.RELU: "RELU",
    s.ActivationFunctionType.RELU6: "RELU6",
    s.ActivationFunctionType.RELU_N1_TO_1: "RELU_N1_TO_1",
}


def unary(code: str, options: Callable[[], object] | None = None) -> Lowering:
    """The lowering of an operator of one input without attributes."""

    def lower(b: Builder, node: ir.Node) -> None:
        b.operator(code, node.inputs[:1], node.outputs, None if options is None else options())

    return lower


def binary(code: str) -> Lowering:
    """The lowering of an operator of two inputs without attributes or options."""

    def lower(b: Builder, node: ir.Node) -> None:
        b.operator(code, node.inputs[:2], node.outputs)

    return lower


def clip(b: Builder, node: ir.Node) -> None:
    """Clip(x, min, max): the bounded RELU where the bounds are one's, else MINIMUM(MAXIMUM(x, min), max)."""
    x, low, high = (*node.inputs, None, None)[:3]
    assert x is not None and x.dtype is not None
    real = x.dtype == ir.DataType.FLOAT
    code = CLIP_CODES.get(activation_of(node)) if real else None
    if code is None and real and (g.scalar(low), g.scalar(high)) == (0.0, 1.0):
        code = "RELU_0_TO_1"
    if code is not None:
        b.operator(code, [x], node.outputs)
        return
    if low is None and high is None:
        copy(b, node)
        return
    value: ir.Value | int = x
    for name, bound, last in (("MAXIMUM", low, high is None), ("MINIMUM", high, True)):
        if bound is not None:
            made: ir.Value | int = node.outputs[0] if last else b.tensor("clip", g.dims(x), x.dtype)
            b.operator(name, [value, bound], [made], s.MaximumMinimumOptionsT())
            value = made


def leaky_relu(b: Builder, node: ir.Node, *, alpha: float = 0.01) -> None:
    options = s.LeakyReluOptionsT()
    options.alpha = alpha
    b.operator("LEAKY_RELU", node.inputs, node.outputs, options)


def gelu(b: Builder, node: ir.Node, *, approximate: str = "none") -> None:
    options = s.GeluOptionsT()
    options.approximate = approximate == "tanh"
    b.operator("GELU", node.inputs, node.outputs, options)


def softmax(b: Builder, node: ir.Node, *, axis: int = -1) -> None:
    """Softmax over the last axis, which the row asks for."""
    options = s.SoftmaxOptionsT()
    options.beta = 1.0
    b.operator("SOFTMAX", node.inputs, node.outputs, options)


def log_softmax(b: Builder, node: ir.Node, *, axis: int = -1) -> None:
    """LogSoftmax over the last axis, which the row asks for."""
    b.operator("LOG_SOFTMAX", node.inputs, node.outputs, s.LogSoftmaxOptionsT())


def elu(b: Builder, node: ir.Node, *, alpha: float = 1.0) -> None:
    """Elu with alpha 1, which the row asks for."""
    b.operator("ELU", node.inputs, node.outputs)


LOWERINGS: dict[str, Lowering] = {
    "RELU": unary("RELU"),
    "CLIP": clip,
    "LEAKY_RELU": leaky_relu,
    "PRELU": binary("PRELU"),
    "ELU": elu,
    "GELU": gelu,
    "HARD_SWISH": unary("HARD_SWISH", s.HardSwishOptionsT),
    "LOGISTIC": unary("LOGISTIC"),
    "TANH": unary("TANH"),
    "SOFTMAX": softmax,
    "LOG_SOFTMAX": log_softmax,
}
