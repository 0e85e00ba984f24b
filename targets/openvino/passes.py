"""The road of a model to OpenVINO, as one visible tuple."""

from __future__ import annotations

from tapeout.compiler.narrowing import OPTION, patterns
from tapeout.compiler.schemes import FLOAT16
from tapeout.sdk import CANONICALIZE, FUSION, STATIC, WEIGHTS, Decompose, Pass, Recipe, Request
from tapeout.targets.openvino.legalize import MASKED_ROWS, WRAPPING, WriteOut
from tapeout.targets.openvino.options import checks


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
        *storage(request),
        *weights(request),
    )


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
