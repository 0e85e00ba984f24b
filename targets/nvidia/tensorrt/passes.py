"""The road of a model to TensorRT, as one visible tuple."""

from __future__ import annotations

from collections.abc import Mapping

from tapeout.passes.quantization.arriving import ARRIVING
from tapeout.sdk import CANONICALIZE, FUSION, STATIC, WIDE, Decompose, Pass, Request, patterns
from tapeout.targets.nvidia.options import CheckOptions
from tapeout.targets.nvidia.precision import HALF, WIDE_SUMS, ComputeInHalf
from tapeout.targets.nvidia.sizes import OPTION as SIZE

# Options, and what each is for.
KNOWN: Mapping[str, str] = {
    SIZE: "sizes of a free dimension, least, best and most: size.N=1:8:32",
    WIDE: "what float16 and bfloat16 leave in float32: names of source nodes, or patterns",
    "level": "effort of TensorRT's builder, 0 to 5",
    "cache": "name of the timing cache that builds share",
    "refit": "true: the engine's weights can be exchanged",
    "threads": "threads of the runner",
    "refine": "how long a quantized graph is worked on",
}
# Written out only when everything else is settled: their sums must be seen as what they are.
WHOLE = frozenset({"RMSNormalization", "GroupNormalization", "MeanVarianceNormalization"})


def passes(request: Request) -> tuple[Pass, ...]:
    """The passes for `request.scheme`, in order."""
    rows = kernels(request.device)
    return (
        CheckOptions("tensorrt", KNOWN, request.options),
        *CANONICALIZE,
        *FUSION,
        Decompose(rows | WHOLE),
        *CANONICALIZE,
        WIDE_SUMS,
        ARRIVING,
        *measured(request),
        *half(request),
        Decompose(rows),
        *CANONICALIZE,
        *integers(request),
    )


def half(request: Request) -> tuple[Pass, ...]:
    """What computes in half precision, for a scheme that does so."""
    if request.scheme not in HALF:
        return ()
    return (ComputeInHalf(request.scheme, patterns(request.options.get(WIDE, ""))),)


def measured(request: Request) -> tuple[Pass, ...]:
    """The measurement of the float graph, for a scheme with ranges."""
    if request.calibration is None or request.scheme not in STATIC:
        return ()
    from tapeout.sdk import Calibrate

    return (Calibrate(request.calibration),)


def integers(request: Request) -> tuple[Pass, ...]:
    """What quantizes activations and weights, for a static scheme."""
    if request.scheme not in STATIC:
        return ()
    from tapeout.passes.quantization.refined import static_quantization
    from tapeout.targets.nvidia.tensorrt import declaration

    return static_quantization(request, declaration(request.device))


def kernels(device: str) -> frozenset[str]:
    """The standard operators that are not written out in simpler ones: rows take them."""
    from tapeout.targets.nvidia.tensorrt import declaration

    return frozenset(op for op in declaration(device).rows if "::" not in op)
