"""One function per row's `lower` name, by family: of the builder, the node and its ONNX attributes."""

from __future__ import annotations

from tapeout.targets.tflite.builder import Lowering
from tapeout.targets.tflite.lower import (
    activation,
    control,
    convolution,
    detection,
    elementwise,
    indexing,
    logical,
    matrix,
    normalization,
    pooling,
    quantization,
    reduction,
    shape,
    sizes,
    storage,
)

FAMILIES = (
    activation,
    control,
    convolution,
    detection,
    elementwise,
    indexing,
    logical,
    matrix,
    normalization,
    pooling,
    quantization,
    reduction,
    shape,
    sizes,
    storage,
)

LOWERINGS: dict[str, Lowering] = {
    name: lower for family in FAMILIES for name, lower in family.LOWERINGS.items()
}
