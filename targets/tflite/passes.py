"""The road of a float model to TFLite, as one visible tuple."""

from __future__ import annotations

from tapeout.compiler.pipeline import Pass
from tapeout.compiler.rewriting import Rewrite, Rule
from tapeout.compiler.target import Request
from tapeout.passes.canonicalize import CANONICALIZE
from tapeout.passes.decompose import activations
from tapeout.passes.decompose.functions import ExpandFunctions
from tapeout.passes.decompose.recurrent import Recurrent
from tapeout.passes.fusion import FUSION
from tapeout.passes.layout import ChannelsLast
from tapeout.targets.tflite.legalize.fully_connected import FullyConnected
from tapeout.targets.tflite.legalize.padding import Padding
from tapeout.targets.tflite.legalize.plain import PLAIN
from tapeout.targets.tflite.legalize.rearranging import Rearranging
from tapeout.targets.tflite.legalize.resizing import Resizing
from tapeout.targets.tflite.legalize.spatial import OverTwoAxes
from tapeout.targets.tflite.legalize.storage import HalfStorage
from tapeout.targets.tflite.legalize.transposed import Transposed

# Activations without a kernel; Gelu, HardSwish, LeakyRelu and Elu with alpha 1 have one.
ACTIVATIONS: tuple[Rule, ...] = (
    activations.Swish(), activations.Mish(), activations.Softplus(), activations.Softsign(),
    activations.EluOfOne(), activations.Selu(), activations.Celu(), activations.ThresholdedRelu(),
    activations.Shrink(), activations.HardSigmoid(), activations.Hardmax(),
)  # fmt: skip

LEGALIZE: tuple[Pass, ...] = (OverTwoAxes, Transposed, Padding, Resizing, Rearranging, FullyConnected())


def passes(request: Request) -> tuple[Pass, ...]:
    """The passes for `request.scheme`, in order."""
    storage: tuple[Pass, ...] = (HalfStorage(),) if request.scheme == "float16" else ()
    return (
        *CANONICALIZE,
        *FUSION,
        Recurrent(),
        Rewrite("activations without a kernel", ACTIVATIONS),
        ExpandFunctions(kernels(request.device)),
        *CANONICALIZE,
        *PLAIN,
        *LEGALIZE,
        ChannelsLast(),
        *CANONICALIZE,
        *storage,
    )


def kernels(device: str) -> frozenset[str]:
    """The standard operators that rows take, which are therefore not written out by their definition."""
    from tapeout.targets.tflite import declaration

    return frozenset(op for op in declaration(device).rows if "::" not in op)
