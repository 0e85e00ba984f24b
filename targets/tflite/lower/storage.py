"""Weights stored in a narrower type than they compute in: DEQUANTIZE."""

from __future__ import annotations

import onnx_ir as ir

from tapeout.targets.tflite.builder import Builder, Lowering


def dequantize(b: Builder, node: ir.Node, *, to: int, saturate: int = 1, round_mode: str = "up") -> None:
    """Cast of a float16 constant to float32. The builder writes the operator where the weight is first read,
    in the order of axes in which it is read: nothing is widened for nobody."""
    if node.outputs[0].is_graph_output():
        b.index(node.outputs[0])


LOWERINGS: dict[str, Lowering] = {"DEQUANTIZE": dequantize}
