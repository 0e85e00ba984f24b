"""The road of a float model to TFLite, as one visible tuple."""

from __future__ import annotations

from tapeout.passes.decompose import ELU_OF_ONE
from tapeout.passes.decompose.recurrent import Recurrent
from tapeout.passes.decompose.unrolling import Unroll
from tapeout.passes.layout.fully_connected import FullyConnected
from tapeout.passes.quantization.arriving import ARRIVING
from tapeout.passes.quantization.half_storage import HalfStorage
from tapeout.sdk import (
    CANONICALIZE,
    FLOAT16,
    FUSION,
    STATE,
    STATIC,
    WEIGHTS,
    WIDE,
    ChannelsLast,
    CheckStates,
    Decompose,
    Pass,
    Recipe,
    Request,
    Scheme,
    UsageError,
    patterns,
)
from tapeout.targets.tflite import sparse
from tapeout.targets.tflite.legalize.depth import OverDepth
from tapeout.targets.tflite.legalize.fusible import FusibleActivations
from tapeout.targets.tflite.legalize.padding import Padding
from tapeout.targets.tflite.legalize.plain import PLAIN, WRITTEN, with_integers
from tapeout.targets.tflite.legalize.rearranging import Rearranging
from tapeout.targets.tflite.legalize.resizing import Resizing
from tapeout.targets.tflite.legalize.spatial import OverTwoAxes
from tapeout.targets.tflite.legalize.transposed import Transposed

# What the passes here, or the layout, turn into what rows take.
WINDOWS = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LRN")
LEGALIZED = frozenset({*WINDOWS, "Gemm", "Resize", "DepthToSpace", "SpaceToDepth"})
LEGALIZE: tuple[Pass, ...] = (OverTwoAxes, Transposed, Padding, Resizing, Rearranging, FullyConnected())
# Schemes that compute in real numbers: quantization that a model brings is arithmetic there.
FLOAT = ("float32", "float16")


def passes(request: Request) -> tuple[Pass, ...]:
    """The passes for `request.scheme`, in order."""
    integers = (ARRIVING, with_integers(request.device), *PLAIN[1:])
    plain = PLAIN if request.scheme in FLOAT else integers
    wide = patterns(request.options.get(WIDE, ""))
    rules, half = request.recipe or Recipe(), request.scheme == FLOAT16
    storage: tuple[Pass, ...] = ()
    if half or rules.states((FLOAT16,)):
        storage = (HalfStorage(wide=wide, recipe=rules, otherwise=half),)
    sparse.asked(request)
    measured = calibration(request)
    kept = (CheckStates(request.options),) if STATE in request.options else ()
    if kept and request.scheme not in FLOAT:
        raise UsageError(
            f"option {STATE} is offered for {' and '.join(FLOAT)}, not for {request.scheme}",
            hint="leave the state an input and an output",
        )
    return (
        *kept,
        *CANONICALIZE,
        Unroll(),
        *FUSION,
        Recurrent(),
        Decompose(kernels(request.device)),
        ELU_OF_ONE,
        *CANONICALIZE,
        *plain,
        *((OverDepth,) if static(request) else ()),
        *LEGALIZE,
        *measured,
        ChannelsLast(),
        FusibleActivations,
        *CANONICALIZE,
        *storage,
        *quantization(request),
    )


def static(request: Request) -> Scheme | None:
    """The scheme that puts activations into integers: the request's, or that of a rule beside stored weights."""
    if request.scheme in WEIGHTS and request.recipe is not None:
        return next((STATIC[r.scheme] for r in reversed(request.recipe.rules) if r.scheme in STATIC), None)
    return STATIC.get(request.scheme)


def calibration(request: Request) -> tuple[Pass, ...]:
    """The measurement of the float graph, where there is data."""
    if request.calibration is None or static(request) is None:
        return ()
    from tapeout.sdk import Calibrate

    return (Calibrate(request.calibration),)


def quantization(request: Request) -> tuple[Pass, ...]:
    """What makes integers of the float graph, by a static scheme, and stores weights as codes of what it leaves."""
    return (*integers(request), *weights(request))


def integers(request: Request) -> tuple[Pass, ...]:
    """What quantizes activations: those that rules say alone, where the scheme is one for weights."""
    scheme = static(request)
    if scheme is None:
        return ()
    from tapeout.passes.quantization.refined import static_quantization
    from tapeout.targets.tflite import declaration

    npu = request.device not in ("cpu", "gpu", "micro")
    return static_quantization(request, declaration(request.device), scheme, integers_only=npu)


def weights(request: Request) -> tuple[Pass, ...]:
    """What stores weights as codes, for a scheme or rules that do so: by GPTQ where there is data."""
    from tapeout.passes.quantization.weights import StoreWeights
    from tapeout.targets.tflite import declaration

    recipe, rows = request.recipe or Recipe(), declaration(request.device)
    if request.scheme in WEIGHTS:
        store = StoreWeights(WEIGHTS[request.scheme], rows, recipe)
    elif request.scheme in STATIC and recipe.states(WEIGHTS):
        store = StoreWeights(STATIC[request.scheme], rows, recipe, only_rules=True)
    else:
        return ()
    if request.calibration is None or not request.calibration.has_samples:
        return (store,)
    from tapeout.passes.quantization.weight_gptq import FitWeights

    return (FitWeights(store, request.calibration),)


def kernels(device: str) -> frozenset[str]:
    """The standard operators that are not written out in simpler ones: rows take them, or passes here do."""
    from tapeout.targets.tflite import declaration

    return LEGALIZED | WRITTEN | {op for op in declaration(device).rows if "::" not in op}
