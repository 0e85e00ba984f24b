"""The road of a model to a plan, as one visible tuple."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from tapeout.passes.decompose.attention import Attention
from tapeout.passes.decompose.indexing import Hardmax, IntegerOneHot, Trilu
from tapeout.passes.decompose.precision import Widen
from tapeout.passes.decompose.quantized import QUANTIZED
from tapeout.passes.decompose.recurrent import Steps
from tapeout.passes.decompose.resizing import ResizeByMatMul
from tapeout.sdk import (
    CANONICALIZE,
    FUSION,
    WIDE,
    ChannelsLast,
    Declaration,
    Decompose,
    Pass,
    Refusal,
    Request,
    Rewrite,
    Rule,
    patterns,
)
from tapeout.targets.nvidia.legalize import OVER_TWO_AXES
from tapeout.targets.nvidia.options import CheckOptions
from tapeout.targets.nvidia.precision import HALF, HALF_OPS, WIDE_OPS, ComputeInHalf
from tapeout.targets.nvidia.sizes import OPTION as SIZE

ALSO, CACHE = "also", "cache"
# Options, and what each is for.
KNOWN: Mapping[str, str] = {
    SIZE: "sizes of a free dimension, least, best and most: size.N=1:8:32",
    WIDE: "what float16 and bfloat16 leave in float32: names of source nodes, or patterns",
    ALSO: "further architectures that the plan has kernels for: also=sm_80,sm_89",
    CACHE: "a folder that keeps compiled kernels",
    "threads": "threads of the runner",
}
# What the channels-last layout makes calls of functions that rows take.
LAYOUT = frozenset({"Conv", "MaxPool", "AveragePool", "DepthToSpace", "SpaceToDepth"})
UNROLLED = 64  # steps of a recurrent operator that are written one by one
# Kernels here accumulate in float32 whatever they read and write.
ACCUMULATING = ("Attention", "LayerNormalization", "RMSNormalization", "Softmax", "LogSoftmax", "ReduceMean")
TO_SINGLE = {ir.DataType.FLOAT16: ir.DataType.FLOAT, ir.DataType.BFLOAT16: ir.DataType.FLOAT}


@dataclass(frozen=True)
class _Refused(Rule):
    """`rule` on the attention that no row takes."""

    rule: Rule
    rows: Declaration
    ops: Sequence[str] = ("Attention",)

    @property
    def name(self) -> str:
        return self.rule.name

    def apply(self, node: ir.Node) -> ir.Node | str | None:
        return self.rule.apply(node) if isinstance(self.rows.match(node), Refusal) else None


WIDE_SUMS = Rewrite("wide-sums", (Widen(tuple(op for op in WIDE_OPS if op not in ACCUMULATING), TO_SINGLE),))
WRITTEN_OUT = Rewrite("write-out", (ResizeByMatMul(), Steps(UNROLLED), Trilu(), IntegerOneHot(), Hardmax()))


def passes(request: Request) -> tuple[Pass, ...]:
    """The passes for `request.scheme`, in order."""
    kept = kernels(request.device) | LAYOUT
    return (
        CheckOptions("nvidia", KNOWN, request.options),
        *CANONICALIZE,
        *FUSION,
        *attention(request),
        WRITTEN_OUT,
        Decompose(kept),
        OVER_TWO_AXES,
        *CANONICALIZE,
        Rewrite("quantization as arithmetic", tuple(QUANTIZED)),
        WIDE_SUMS,
        *half(request),
        *CANONICALIZE,
        ChannelsLast(),
        *CANONICALIZE,
    )


def attention(request: Request) -> tuple[Pass, ...]:
    """What writes attention out that the kernel does not take: past keys, windows, capped scores."""
    from tapeout.targets.nvidia import declaration

    rows = declaration(request.device)
    wide = _Refused(Widen(("Attention",), TO_SINGLE), rows)
    return (Rewrite("wide-attention", (wide,)), Rewrite("attention", (_Refused(Attention(), rows),)))


def half(request: Request) -> tuple[Pass, ...]:
    """What computes in half precision, for a scheme that does so."""
    if request.scheme not in HALF:
        return ()
    wide = patterns(request.options.get(WIDE, ""))
    return (ComputeInHalf(request.scheme, wide, (*HALF_OPS, *ACCUMULATING)),)


def kernels(device: str) -> frozenset[str]:
    """The standard operators that are not written out in simpler ones: rows take them."""
    from tapeout.targets.nvidia import declaration

    return frozenset(op for op in declaration(device).rows if "::" not in op)
