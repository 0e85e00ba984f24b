"""What a model's outputs lose when some of its weights are others, measured on a few samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.errors import InvalidModelError
from tapeout.compiler.ir.save import to_bytes
from tapeout.compiler.reference import open_session
from tapeout.passes.quantization.layers import spread

Array = np.ndarray[Any, Any]

# Samples that are tried.
SAMPLES = 8


class Trial:
    """Runs `model` on some of `feeds` with other values for any of `constants` (initializers of its graph)."""

    def __init__(
        self, model: ir.Model, constants: Iterable[ir.Value], feeds: Sequence[Mapping[str, Array]]
    ) -> None:
        probe = model.clone()
        names = dict.fromkeys(v.name or "" for v in constants)
        probe.graph.inputs.extend(probe.graph.initializers[n] for n in names)
        session = open_session(to_bytes(probe), None, 2)
        if session is None:
            raise InvalidModelError("the model does not run in ONNX Runtime")
        self._session = session
        self._outputs = [v.name or "" for v in model.graph.outputs if v.dtype == ir.DataType.FLOAT]
        self._feeds = spread(feeds, SAMPLES)
        self._clean = [session.run(self._outputs, feed) for feed in self._feeds]

    def lost(self, values: Mapping[str, Array]) -> float:
        """Share of the variance of each float output that is lost with `values` by name, summed over outputs."""
        found = [self._session.run(self._outputs, {**feed, **values}) for feed in self._feeds]
        return loss(found, self._clean)


def loss(found: Sequence[Sequence[Array]], clean: Sequence[Sequence[Array]]) -> float:
    """Share of the variance of each output that is lost, summed over outputs; samples of outputs, both."""
    total = 0.0
    for ours, wanted in zip(zip(*found, strict=True), zip(*clean, strict=True), strict=True):
        a, b = (np.concatenate([s.ravel() for s in samples]).astype(np.float64) for samples in (ours, wanted))
        total += float(np.mean((a - b) ** 2) / max(float(np.var(b)), 1e-30))
    return total
