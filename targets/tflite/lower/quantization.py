"""Between real numbers and integers: QUANTIZE, DEQUANTIZE, and QUANTIZE from one scale to another."""

from __future__ import annotations

import onnx_ir as ir
from ai_edge_litert import schema_py_generated as s

from tapeout.targets.tflite.builder import Builder, Lowering
from tapeout.targets.tflite.lower.shape import filled


def quantize(b: Builder, node: ir.Node, **_: object) -> None:
    """Real numbers, or integers of another scale, to integers."""
    b.operator("QUANTIZE", node.inputs[:1], node.outputs, s.QuantizeOptionsT())


def dequantize(b: Builder, node: ir.Node, **_: object) -> None:
    """Integers to real numbers, where something reads them."""
    b.defer(node.outputs[0])


def negate(b: Builder, node: ir.Node) -> None:
    """-x as 0 - x: the kernel of NEG takes scales and zero points for equal that are not."""
    x = node.inputs[0]
    assert x is not None
    options = s.SubOptionsT()
    b.operator("SUB", [filled(b, x, 0.0), x], node.outputs, options)


def rounded(b: Builder, node: ir.Node) -> None:
    """RoundRows, RoundSamples: the kernels that read the result do it."""
    x = node.inputs[0]
    assert x is not None
    b.bind(node.outputs[0], b.index(x))


LOWERINGS: dict[str, Lowering] = {
    "QUANTIZE": quantize,
    "DEQUANTIZE_CODES": dequantize,
    "NEG_BY_SUB": negate,
    "ROUNDED": rounded,
}
