"""Schemes of quantization: in which types activations, weights and biases are stored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

D = ir.DataType


@dataclass(frozen=True)
class Scheme:
    """Storage types of one way to quantize; None stays floating-point.

    `symmetric` activations have zero point 0. `block` elements of a weight along its inner axis share a
    scale, 0: a channel does. `bits` of the weight's type are used, 0: all. With `dynamic` the kernel rounds real
    activations to 8 bits as it reads them. `table` weights are looked up: "logarithmic", "codebook" or
    "product"; "nf4" and "mxfp4" are tables that kernels know.
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


FLOAT32, FLOAT16 = "float32", "float16"

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
        Scheme("w4g128", None, D.INT4, block=128),
        Scheme("w3", None, D.INT4, bits=3),
        Scheme("w3g32", None, D.INT4, block=32, bits=3),
        Scheme("w2", None, D.INT2),
        Scheme("log4", None, D.UINT4, table="logarithmic"),
        Scheme("codebook4", None, D.UINT4, table="codebook"),
        Scheme("product", None, D.UINT8, table="product"),
        Scheme("nf4", None, D.UINT4, block=64, table="nf4"),
        Scheme("mxfp4", None, D.UINT4, block=32, table="mxfp4"),
    )
}


# Storage in floating-point numbers, and the bits of a weight.
FLOATS = {FLOAT32: 32, "float16": 16, "bfloat16": 16, "fp8": 8, "fp8-e4m3": 8, "fp8-e5m2": 8}


def bits(name: str) -> int | None:
    """The bits of a weight that the scheme `name` stores; None where there is no such scheme."""
    found = STATIC.get(name) or WEIGHTS.get(name)
    if found is None or found.weight is None:
        return FLOATS.get(name)
    return found.bits or found.weight.bitwidth


def instead(name: str, offered: Sequence[str]) -> str:
    """What a target that offers the schemes `offered` says to one who asks for another: those with weights of as many
    bits, or the name that was meant."""
    width = bits(name)
    if width is None:
        import difflib

        close = difflib.get_close_matches(name, [*STATIC, *WEIGHTS, *FLOATS], n=1, cutoff=0.5)
        known = [n for n in close if n in offered]
        return f"did you mean '{known[0]}'?" if known else "there is no scheme of that name"
    same = [n for n in offered if bits(n) == width]
    if not same:
        nearest = min(offered, key=lambda n: (abs((bits(n) or 32) - width), offered.index(n)))
        return f"no kernel there takes weights of {width} bits; nearest is {nearest}"
    return f"no kernel there takes such weights; with {width} bits it offers {', '.join(same)}"


def borders(scheme: str, values: Iterable[ir.Value]) -> dict[str, str]:
    """The types of real inputs and outputs on a device that takes integers alone, by name."""
    act = STATIC[scheme].act
    assert act is not None
    return {v.name or "": act.name.lower() for v in values if v.dtype == D.FLOAT}


def levels(dtype: ir.DataType) -> tuple[int, int]:
    """The lowest and the highest code of an integer type: (-128, 127) for INT8."""
    bits = dtype.bitwidth
    if dtype.name.startswith("U"):
        return 0, (1 << bits) - 1
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1
