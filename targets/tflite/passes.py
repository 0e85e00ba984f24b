"""The road of a float model to TFLite, as one visible tuple."""

from __future__ import annotations

from tapeout.compiler.pipeline import Pass
from tapeout.compiler.target import Request
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

LEGALIZE: tuple[Pass, ...] = (OverTwoAxes, Transposed, Padding, Resizing, Rearranging, FullyConnected())


def passes(request: Request) -> tuple[Pass, ...]:
    """The passes for `request.scheme`, in order."""
    storage: tuple[Pass, ...] = (HalfStorage(),) if request.scheme == "float16" else ()
    return (*FUSION, *PLAIN, *LEGALIZE, ChannelsLast(), *storage)
