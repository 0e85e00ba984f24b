"""Quantization: QuantizeLinear and DequantizeLinear where the target's rows want them, with the scales that
they want, and the algorithms that make the result better."""

from tapeout.passes.quantization.quantize import Quantize
from tapeout.passes.quantization.report import quantization_report

__all__ = ["Quantize", "quantization_report"]
