"""The road of a model to OpenVINO, as one visible tuple."""

from __future__ import annotations

from tapeout.sdk import CANONICALIZE, FUSION, WEIGHTS, Decompose, Pass, Recipe, Request
from tapeout.targets.openvino.legalize import MASKED_ROWS, WRAPPING, WriteOut
from tapeout.targets.openvino.options import checks

# Written as MatMul where its weight is to be stored as codes.
PRODUCTS = frozenset({"Gemm"})


def passes(request: Request) -> tuple[Pass, ...]:
    """The passes for `request.scheme`, in order."""
    from tapeout.targets.openvino import declaration

    return (
        *checks(request),
        *CANONICALIZE,
        *FUSION,
        Decompose(kernels(request.device) - (PRODUCTS if request.scheme in WEIGHTS else frozenset())),
        WriteOut(declaration(request.device)),
        MASKED_ROWS,
        WRAPPING,
        *CANONICALIZE,
        *weights(request),
    )


def weights(request: Request) -> tuple[Pass, ...]:
    """What stores weights as codes, for a scheme that does so: by GPTQ where there is data."""
    if request.scheme not in WEIGHTS:
        return ()
    from tapeout.passes.quantization.weights import StoreWeights
    from tapeout.targets.openvino import declaration

    store = StoreWeights(
        WEIGHTS[request.scheme], declaration(request.device), request.recipe or Recipe(), packed=True
    )
    if request.calibration is None:
        return (store,)
    from tapeout.passes.quantization.weight_gptq import FitWeights

    return (FitWeights(store, request.calibration),)


def kernels(device: str) -> frozenset[str]:
    """The standard operators that are not written out in simpler ones: rows take them."""
    from tapeout.targets.openvino import declaration

    return frozenset(op for op in declaration(device).rows if "::" not in op)
