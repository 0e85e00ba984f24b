"""Schemes of quantization: in which types activations, weights and biases are stored."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

D = ir.DataType


@dataclass(frozen=True)
class Scheme:
    """Storage types of one way to quantize; None stays floating-point.

    `symmetric` activations have zero point 0. `block` elements of a weight along its inner axis share a
    scale, 0: a channel does. `bits` of the weight's type are used, 0: all. With `dynamic` the kernel rounds real
    activations to 8 bits as it reads them. `table` weights are looked up: "logarithmic", "codebook" or "product".
    `powers`: every scale is a power of two.
    """

    name: str
    act: ir.DataType | None
    weight: ir.DataType | None
    bias: ir.DataType | None = None
    symmetric: bool = False
    block: int = 0
    bits: int = 0
    dynamic: bool = False
    table: str | None = None
    powers: bool = False

    @property
    def static(self) -> bool:
        """True where activations have scales that calibration has found."""
        return self.act is not None


FLOAT32 = "float32"

STATIC: dict[str, Scheme] = {
    s.name: s
    for s in (
        Scheme("int8", D.INT8, D.INT8, D.INT32),
        Scheme("int16x8", D.INT16, D.INT8, D.INT64, symmetric=True),
        Scheme("int8-fixed", D.INT8, D.INT8, D.INT32, symmetric=True, powers=True),
        Scheme("int8w4", D.INT8, D.INT4, D.INT32),
        Scheme("int16w4", D.INT16, D.INT4, D.INT64, symmetric=True),
    )
}

# Schemes that store weights and need no ranges of activations.
WEIGHTS: dict[str, Scheme] = {
    s.name: s
    for s in (
        Scheme("int8-dynamic", None, D.INT8, dynamic=True),
        Scheme("w8", None, D.INT8),
        Scheme("w4", None, D.INT4),
        Scheme("w4g32", None, D.INT4, block=32),
        Scheme("w4g64", None, D.INT4, block=64),
        Scheme("w3", None, D.INT4, bits=3),
        Scheme("w3g32", None, D.INT4, block=32, bits=3),
        Scheme("w2", None, D.INT2),
        Scheme("log4", None, D.UINT4, table="logarithmic"),
        Scheme("codebook4", None, D.UINT4, table="codebook"),
        Scheme("product", None, D.UINT8, table="product"),
    )
}


def levels(dtype: ir.DataType) -> tuple[int, int]:
    """The lowest and the highest code of an integer type: (-128, 127) for INT8."""
    bits = dtype.bitwidth
    if dtype.name.startswith("U"):
        return 0, (1 << bits) - 1
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1
