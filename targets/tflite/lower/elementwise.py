"""Arithmetic element by element, casts and selection."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from ai_edge_litert import schema_py_generated as s

from tapeout.sdk import graph as g
from tapeout.targets.tflite.builder import TYPES, Builder, Lowering
from tapeout.targets.tflite.nodes import NONE

_OPTIONS = {
    "ABS": s.AbsOptionsT,
    "NEG": s.NegOptionsT,
    "EXP": s.ExpOptionsT,
    "COS": s.CosOptionsT,
    "SIGN": s.SignOptionsT,
    "POW": s.PowOptionsT,
    "MAXIMUM": s.MaximumMinimumOptionsT,
    "MINIMUM": s.MaximumMinimumOptionsT,
    "FLOOR_MOD": s.FloorModOptionsT,
    "RIGHT_SHIFT": s.RightShiftOptionsT,
    "BITWISE_XOR": s.BitwiseXorOptionsT,
}


def options_of(code: str) -> Any:
    """The options object of an operator whose options have no fields, or None."""
    make = _OPTIONS.get(code)
    return None if make is None else make()


def plain(code: str) -> Lowering:
    """An operator with the node's own inputs and outputs and no options."""

    def lower(b: Builder, node: ir.Node, **_: Any) -> None:
        b.operator(code, node.inputs, node.outputs, options_of(code))

    return lower


def fusing(code: str, make: Any) -> Lowering:
    """An operator that takes the activation behind it along. The builtin kernels hold its results to finite
    numbers, so where an operand is made to hold infinities (a mask) another kernel is used that does not."""

    def lower(b: Builder, node: ir.Node, **_: Any) -> None:
        x, y = node.inputs
        if code in UNBOUNDED and not b.storage(x).quantized and (may_be_infinite(x) or may_be_infinite(y)):
            _unbounded(b, node, code)
            return
        options = make()
        output, options.fusedActivationFunction = b.fused(node)
        b.operator(code, node.inputs, [output], options)

    return lower


UNBOUNDED = {"ADD": "STABLEHLO_ADD", "SUB": "STABLEHLO_ADD", "MUL": "STABLEHLO_MULTIPLY"}
_KEEP_INFINITY = frozenset(
    {
        "Where",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Expand",
        "Slice",
        "Concat",
        "Tile",
        "Identity",
        "Gather",
    }
    | {"Add", "Sub", "Mul", "Max", "Min", "Neg", "Split", "Cast", "Pad", "Clip"}
)


def may_be_infinite(value: ir.Value | None, depth: int = 32) -> bool:
    """True where an infinite constant flows into a float tensor through what moves, selects and adds."""
    if value is None or value.dtype is None or not value.dtype.is_floating_point() or depth == 0:
        return False
    array = g.constant(value, limit=1 << 20)
    if array is not None:
        return bool(np.any(np.isinf(array)))
    node = value.producer()
    if node is None or node.domain != "":
        return False
    if node.op_type == "ConstantOfShape":
        fill = g.attribute(node, "value")
        return fill is not None and bool(np.any(np.isinf(fill.numpy())))
    return node.op_type in _KEEP_INFINITY and any(may_be_infinite(v, depth - 1) for v in node.inputs)


def _unbounded(b: Builder, node: ir.Node, code: str) -> None:
    """`code` by a kernel that keeps infinities, which takes operands of one shape."""
    output = node.outputs[0]
    dims, dtype = g.dims(output), output.dtype
    assert dtype is not None
    operands: list[ir.Value | int] = []
    for place, value in enumerate(node.inputs):
        assert value is not None
        operand: ir.Value | int = value
        if code == "SUB" and place == 1:
            operand = b.tensor("neg", g.dims(value), dtype)
            b.operator("NEG", [value], [operand], options_of("NEG"))
        if g.dims(value) != dims or g.static_dims(value) is None:
            wide = b.tensor("expand", dims, dtype)
            b.operator("BROADCAST_TO", [operand, _common_shape(b, node)], [wide], s.BroadcastToOptionsT())
            operand = wide
        operands.append(operand)
    b.operator(UNBOUNDED[code], operands, [output])


def _common_shape(b: Builder, node: ir.Node) -> int:
    """The shape of a broadcast result as an int32 vector."""
    static = g.static_dims(node.outputs[0])
    if static is not None:
        return b.ints(static)
    shapes = []
    for value in node.inputs:
        options = s.ShapeOptionsT()
        options.outType = TYPES[ir.DataType.INT32]
        shapes.append(b.tensor("shape", [g.rank(value) or 0], ir.DataType.INT32))
        assert value is not None
        b.operator("SHAPE", [value], [shapes[-1]], options)
    made = b.tensor("shape", [g.rank(node.outputs[0]) or 0], ir.DataType.INT32)
    b.operator("BROADCAST_ARGS", shapes, [made])
    return made


def reciprocal(b: Builder, node: ir.Node) -> None:
    """1 / x."""
    options = s.DivOptionsT()
    output, options.fusedActivationFunction = b.fused(node)
    b.operator("DIV", [b.constant(np.float32(1)), node.inputs[0]], [output], options)


def float_remainder(b: Builder, node: ir.Node, *, fmod: int = 0) -> None:
    """sign(x) * floormod(|x|, |y|): the remainder with the sign of x, exact like C's fmod."""
    x, y = node.inputs
    dtype = ir.DataType.FLOAT
    sign, size_x, size_y = (b.tensor(h, g.dims(v), dtype) for h, v in (("sign", x), ("abs", x), ("abs", y)))
    remainder = b.tensor("remainder", g.dims(node.outputs[0]), dtype)
    b.operator("SIGN", [x], [sign], options_of("SIGN"))
    b.operator("ABS", [x], [size_x], options_of("ABS"))
    b.operator("ABS", [y], [size_y], options_of("ABS"))
    b.operator("FLOOR_MOD", [size_x, size_y], [remainder], options_of("FLOOR_MOD"))
    options = s.MulOptionsT()
    options.fusedActivationFunction = NONE
    b.operator("MUL", [sign, remainder], node.outputs, options)


def copy(b: Builder, node: ir.Node) -> None:
    """The first input under the name of the output."""
    x, output = node.inputs[0], node.outputs[0]
    if not output.is_graph_output():
        assert x is not None
        b.bind(output, b.index(x))
    else:
        b.operator("CAST", [x], [output], _cast_options(x, output))


def cast(b: Builder, node: ir.Node, *, to: int, saturate: int = 1, round_mode: str = "up") -> None:
    """To another type; floats are cut toward zero, integers wrap."""
    b.operator("CAST", node.inputs, node.outputs, _cast_options(node.inputs[0], node.outputs[0]))


def _cast_options(x: ir.Value | None, output: ir.Value) -> Any:
    assert x is not None and x.dtype is not None and output.dtype is not None
    options = s.CastOptionsT()
    options.inDataType, options.outDataType = TYPES[x.dtype], TYPES[output.dtype]
    return options


def select(b: Builder, node: ir.Node) -> None:
    """The second input where the first holds, else the third, broadcast."""
    b.operator("SELECT_V2", node.inputs, node.outputs, s.SelectV2OptionsT())


def shift_left(b: Builder, node: ir.Node, *, direction: str) -> None:
    """x << n on unsigned integers through int32, where the kernel is; bits that leave the type are lost."""
    x, n = node.inputs
    output = node.outputs[0]
    assert x is not None and n is not None and output.dtype is not None
    code, make = (
        ("BITCAST", s.BitcastOptionsT) if output.dtype == ir.DataType.UINT32 else ("CAST", s.CastOptionsT)
    )
    wide = []
    for value in (x, n):
        assert value.dtype is not None
        made = b.tensor("wide", g.dims(value), ir.DataType.INT32)
        options = make()
        if code == "CAST":
            options.inDataType, options.outDataType = TYPES[value.dtype], TYPES[ir.DataType.INT32]
        b.operator(code, [value], [made], options)
        wide.append(made)
    shifted = b.tensor("shifted", g.dims(output), ir.DataType.INT32)
    b.operator("STABLEHLO_SHIFT_LEFT", wide, [shifted], s.StablehloShiftLeftOptionsT())
    options = make()
    if code == "CAST":
        options.inDataType, options.outDataType = TYPES[ir.DataType.INT32], TYPES[output.dtype]
    b.operator(code, [shifted], [output], options)


def _ones(b: Builder, like: ir.Value) -> int:
    """A float32 tensor of ones with the shape of `like`."""
    shape = g.static_dims(like)
    made = b.tensor("ones", g.dims(like), ir.DataType.FLOAT)
    if shape is not None:
        dims = b.ints(shape)
    else:
        options = s.ShapeOptionsT()
        options.outType = s.TensorType.INT32
        dims = b.tensor("shape", [g.rank(like) or 0], ir.DataType.INT32)
        b.operator("SHAPE", [like], [dims], options)
    b.operator("FILL", [dims, b.constant(np.float32(1))], [made], s.FillOptionsT())
    return made


def atan(b: Builder, node: ir.Node) -> None:
    """atan2(x, 1)."""
    x = node.inputs[0]
    assert x is not None
    b.operator("ATAN2", [x, _ones(b, x)], node.outputs, s.ATan2OptionsT())


def _circle(b: Builder, x: ir.Value) -> int:
    """sqrt((1 - x) * (1 + x)), without the cancellation of 1 - x*x."""
    one = b.constant(np.float32(1))
    low, high, product, root = (b.tensor("circle", g.dims(x), ir.DataType.FLOAT) for _ in range(4))
    b.operator("SUB", [one, x], [low], s.SubOptionsT())
    b.operator("ADD", [one, x], [high], s.AddOptionsT())
    b.operator("MUL", [low, high], [product], s.MulOptionsT())
    b.operator("SQRT", [product], [root])
    return root


def asin(b: Builder, node: ir.Node) -> None:
    """atan2(x, sqrt(1 - x*x))."""
    x = node.inputs[0]
    assert x is not None
    b.operator("ATAN2", [x, _circle(b, x)], node.outputs, s.ATan2OptionsT())


def acos(b: Builder, node: ir.Node) -> None:
    """atan2(sqrt(1 - x*x), x)."""
    x = node.inputs[0]
    assert x is not None
    b.operator("ATAN2", [_circle(b, x), x], node.outputs, s.ATan2OptionsT())


_PLAIN = (
    *("ABS", "NEG", "EXP", "LOG", "SQRT", "SIN", "COS", "FLOOR", "CEIL", "ROUND", "SIGN"),
    *("POW", "MAXIMUM", "MINIMUM", "FLOOR_MOD", "RIGHT_SHIFT", "BITWISE_XOR"),
)

LOWERINGS: dict[str, Lowering] = {
    **{code: plain(code) for code in _PLAIN},
    "ADD": fusing("ADD", s.AddOptionsT),
    "SUB": fusing("SUB", s.SubOptionsT),
    "MUL": fusing("MUL", s.MulOptionsT),
    "DIV": fusing("DIV", s.DivOptionsT),
    "RECIPROCAL": reciprocal,
    "FLOAT_REMAINDER": float_remainder,
    "COPY": copy,
    "CAST": cast,
    "SELECT_V2": select,
    "SHIFT_LEFT": shift_left,
    "STABLEHLO_AND": plain("STABLEHLO_AND"),
    "ATAN": atan,
    "ASIN": asin,
    "ACOS": acos,
}
