"""Weights stored in a narrower type than they compute in: DEQUANTIZE."""

from __future__ import annotations

import onnx_ir as ir
from ai_edge_litert import schema_py_generated as s

from tapeout.targets.tflite.builder import Builder, Lowering


def dequantize(b: Builder, node: ir.Node, *, to: int, saturate: int = 1, round_mode: str = "up") -> None:
    """Cast of a float16 constant to float32: the runtime widens it once."""
    b.operator("DEQUANTIZE", node.inputs, node.outputs, s.DequantizeOptionsT())


LOWERINGS: dict[str, Lowering] = {"DEQUANTIZE": dequantize}
