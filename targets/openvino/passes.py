"""The road of a model to OpenVINO, as one visible tuple."""

from __future__ import annotations

from tapeout.sdk import (
    CANONICALIZE,
    FLOAT16,
    FUSION,
    STATIC,
    WEIGHTS,
    Decompose,
    Pass,
    Recipe,
    Request,
    patterns,
)
from tapeout.sdk import WIDE as OPTION
from tapeout.targets.openvino.legalize import MASKED_ROWS, WRAPPING, WriteOut
from tapeout.targets.openvino.options import checks

# The error of the outputs from which more products stay real, for sums, activations and pools beside them are real in
# any case: 20 dB, where a detector's boxes lose more than a point.
BROKEN = 0.01


def passes(request: Request) -> tuple[Pass, ...]:
    """The passes for `request.scheme`, in order."""
    from tapeout.targets.openvino import declaration

    return (
        *checks(request),
        *CANONICALIZE,
        *FUSION,
        Decompose(kernels(request.device)),
        WriteOut(declaration(request.device)),
        MASKED_ROWS,
        WRAPPING,
        *products(request),
        *CANONICALIZE,
        *calibration(request),
        *storage(request),
        *integers(request),
        *weights(request),
    )


def calibration(request: Request) -> tuple[Pass, ...]:
    """The measurement of the float graph, for a scheme with ranges."""
    if request.calibration is None or request.scheme not in STATIC:
        return ()
    from tapeout.sdk import Calibrate

    return (Calibrate(request.calibration),)


def integers(request: Request) -> tuple[Pass, ...]:
    """What quantizes activations, for a static scheme."""
    if request.scheme not in STATIC:
        return ()
    from tapeout.passes.quantization.islands import Islands
    from tapeout.passes.quantization.refined import static_quantization
    from tapeout.targets.openvino import declaration

    return static_quantization(request, declaration(request.device), islands=Islands(broken=BROKEN))


def storage(request: Request) -> tuple[Pass, ...]:
    """What stores weights in half precision, for the scheme that does so and for rules that say so."""
    rules, half = request.recipe or Recipe(), request.scheme == FLOAT16
    if not half and not rules.states((FLOAT16,)):
        return ()
    from tapeout.passes.quantization.half_storage import HalfStorage

    wide = patterns(request.options.get(OPTION, ""))
    return (HalfStorage(wide=wide, recipe=rules, otherwise=half),)


def products(request: Request) -> tuple[Pass, ...]:
    """What gives weights that will be codes the order in which kernels read them, and algorithms work on them."""
    if request.scheme not in WEIGHTS and request.scheme not in STATIC:
        return ()
    from tapeout.passes.layout.fully_connected import FullyConnected

    return (FullyConnected(),)


def weights(request: Request) -> tuple[Pass, ...]:
    """What stores weights as codes, for a scheme that does so: by GPTQ where there is data."""
    if request.scheme not in WEIGHTS:
        return ()
    from tapeout.passes.quantization.weights import StoreWeights
    from tapeout.targets.openvino import declaration

    scheme, rows, recipe = WEIGHTS[request.scheme], declaration(request.device), request.recipe or Recipe()
    if scheme.table is not None:
        from tapeout.targets.openvino.float_codes import FloatCodes

        return (FloatCodes(scheme, rows, recipe),)
    store = StoreWeights(scheme, rows, recipe, packed=True)
    if request.calibration is None:
        return (store,)
    from tapeout.passes.quantization.weight_gptq import FitWeights

    return (FitWeights(store, request.calibration),)


def kernels(device: str) -> frozenset[str]:
    """The standard operators that are not written out in simpler ones: rows take them."""
    from tapeout.targets.openvino import declaration

    return frozenset(op for op in declaration(device).rows if "::" not in op)
