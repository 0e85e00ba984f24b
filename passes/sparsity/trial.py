"""What a model's outputs lose when some of its weights are others, measured on a few samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.errors import InvalidModelError
from tapeout.compiler.ir.save import to_bytes
from tapeout.compiler.operations import operations
from tapeout.compiler.reference import open_session
from tapeout.passes.quantization.layers import spread
from tapeout.passes.sparsity.layers import layers

Array = np.ndarray[Any, Any]

# Samples that are tried: the least and the most, in between as many as so many multiply-accumulates allow.
FEWEST, MOST, WORK = 8, 32, 10**9


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
        self._feeds = tried(model, feeds)
        self._clean = [session.run(self._outputs, feed) for feed in self._feeds]

    def lost(self, values: Mapping[str, Array]) -> float:
        """Share of the variance of each float output that is lost with `values` by name, summed over outputs."""
        found = [self._session.run(self._outputs, {**feed, **values}) for feed in self._feeds]
        return loss(found, self._clean)


def tried(model: ir.Model, feeds: Sequence[Mapping[str, Array]]) -> Sequence[Mapping[str, Array]]:
    """Those of `feeds` that a model is tried on."""
    each = sum(operations(f.node, assume=1) or 0 for f in layers(model.graph))
    return spread(feeds, min(max(FEWEST, WORK // max(each, 1)), MOST))


def loss(found: Sequence[Sequence[Array]], clean: Sequence[Sequence[Array]]) -> float:
    """Share of the variance of each output that is lost, summed over outputs; samples of outputs, both."""
    total = 0.0
    for ours, wanted in zip(zip(*found, strict=True), zip(*clean, strict=True), strict=True):
        a, b = (np.concatenate([s.ravel() for s in samples]).astype(np.float64) for samples in (ours, wanted))
        total += float(np.mean((a - b) ** 2) / max(float(np.var(b)), 1e-30))
    return total
