"""The road of a float model to TFLite, as one visible tuple."""

from __future__ import annotations

from tapeout.compiler.errors import UsageError
from tapeout.compiler.narrowing import OPTION, patterns
from tapeout.compiler.pipeline import Pass
from tapeout.compiler.recipe import Recipe
from tapeout.compiler.schemes import STATIC, WEIGHTS
from tapeout.compiler.states import OPTION as STATE
from tapeout.compiler.states import CheckStates
from tapeout.compiler.target import Request
from tapeout.passes.canonicalize import CANONICALIZE
from tapeout.passes.decompose import ELU_OF_ONE, Decompose
from tapeout.passes.decompose.recurrent import Recurrent
from tapeout.passes.decompose.unrolling import Unroll
from tapeout.passes.fusion import FUSION
from tapeout.passes.layout import ChannelsLast
from tapeout.passes.quantization.arriving import ARRIVING
from tapeout.targets.tflite.legalize.depth import OverDepth
from tapeout.targets.tflite.legalize.fully_connected import FullyConnected
from tapeout.targets.tflite.legalize.fusible import FusibleActivations
from tapeout.targets.tflite.legalize.padding import Padding
from tapeout.targets.tflite.legalize.plain import PLAIN, WRITTEN, with_integers
from tapeout.targets.tflite.legalize.rearranging import Rearranging
from tapeout.targets.tflite.legalize.resizing import Resizing
from tapeout.targets.tflite.legalize.spatial import OverTwoAxes
from tapeout.targets.tflite.legalize.storage import HalfStorage
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
    wide = patterns(request.options.get(OPTION, ""))
    storage: tuple[Pass, ...] = (HalfStorage(wide=wide),) if request.scheme == "float16" else ()
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
        *((OverDepth,) if request.scheme in STATIC else ()),
        *LEGALIZE,
        *measured,
        ChannelsLast(),
        FusibleActivations,
        *CANONICALIZE,
        *storage,
        *quantization(request),
    )


def calibration(request: Request) -> tuple[Pass, ...]:
    """The measurement of the float graph, where there is data."""
    if request.calibration is None or request.scheme in WEIGHTS:
        return ()
    from tapeout.compiler.calibration.step import Calibrate

    return (Calibrate(request.calibration),)


def quantization(request: Request) -> tuple[Pass, ...]:
    """What makes integers of the float graph, for a static scheme, or stores its weights as codes."""
    if request.scheme in WEIGHTS:
        return weights(request)
    if request.scheme not in STATIC:
        return ()
    from tapeout.passes.quantization import Quantize
    from tapeout.passes.quantization.refined import OPTION as REFINE
    from tapeout.passes.quantization.refined import refined
    from tapeout.targets.tflite import declaration

    calibration = request.calibration
    quantize = Quantize(
        STATIC[request.scheme],
        declaration(request.device),
        None if calibration is None else lambda: calibration.collected,
        request.recipe or Recipe(),
        request.dtypes,
    )
    integers = bool(request.dtypes) or request.device not in ("cpu", "gpu", "micro")
    return (refined(quantize, calibration, request.options.get(REFINE, "auto"), integers),)


def weights(request: Request) -> tuple[Pass, ...]:
    """What stores weights as codes, for a scheme that does so: by GPTQ where there is data."""
    from tapeout.passes.quantization.weights import StoreWeights
    from tapeout.targets.tflite import declaration

    rows = declaration(request.device)
    store = StoreWeights(WEIGHTS[request.scheme], rows, request.recipe or Recipe())
    if request.calibration is None:
        return (store,)
    from tapeout.passes.quantization.weight_gptq import FitWeights

    return (FitWeights(store, request.calibration),)


def kernels(device: str) -> frozenset[str]:
    """The standard operators that are not written out in simpler ones: rows take them, or passes here do."""
    from tapeout.targets.tflite import declaration

    return LEGALIZED | WRITTEN | {op for op in declaration(device).rows if "::" not in op}
