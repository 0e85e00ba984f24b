"""The pass that measures the float graph where it stands in the tuple, and changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from tapeout.compiler.calibration.source import Calibration
from tapeout.compiler.rewriting import Changes


@dataclass(frozen=True)
class Calibrate:
    """Statistics of the graph as it is here; later passes find them in `calibration.collected`."""

    calibration: Calibration
    name: str = "calibrate"

    def __call__(self, model: ir.Model) -> Changes:
        self.calibration.collect(model)
        return Changes(0)
