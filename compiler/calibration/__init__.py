"""Calibration: what the tensors of a float graph hold on the user's data, measured once and kept as numbers.

`Calibration` is the data (files, images, a callable, random values by name) or a statistics file; `Statistics`
is what was measured; `Calibrate` is the pass that measures, `observe` streams whole tensors to algorithms that
need them.

The answer never depends on how samples are grouped or on how many threads work: samples run one at a time,
each in one thread at ONNX Runtime's optimization level "off", and are merged in their order.
"""

from __future__ import annotations

from tapeout.compiler.calibration.collect import observe
from tapeout.compiler.calibration.source import Calibration
from tapeout.compiler.calibration.statistics import Channels, Statistics, TensorStats
from tapeout.compiler.calibration.step import Calibrate

__all__ = ["Calibrate", "Calibration", "Channels", "Statistics", "TensorStats", "observe"]
