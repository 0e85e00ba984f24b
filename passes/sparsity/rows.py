"""What the layers of two walks read and make at the same positions: of the dense model and of the one in work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.calibration.collect import observe
from tapeout.compiler.ir import graph as g
from tapeout.passes.quantization.walk import Walk
from tapeout.passes.sparsity.layers import Layer

Array = np.ndarray[Any, Any]

# Rows of all samples together that one layer is fitted on.
ROWS = 8192
# What an attention adds to the scores of positions that it must not read lies below this.
MASKED = -1e3


class Rows:
    """Draws rows of at most ROWS positions in all; positions that pad a text are left out."""

    def __init__(self, model: ir.Model, feeds: Sequence[Mapping[str, Array]]) -> None:
        self.share = max(1, -(-ROWS // len(feeds)))
        self._read = attended(model, feeds)

    def inputs(self, found: Layer, walk: Walk) -> Array:
        """Rows [R, G, K] of what the layer reads at the walk's position, float32."""
        value = found.node.inputs[0]
        assert value is not None
        return np.concatenate(
            [found.rows(self._seen(x, i), self.share, i) for i, x in enumerate(walk.values(value))]
        )

    def skipped(self, found: Layer, other: Layer, wanted: Walk, made: Walk) -> Array | None:
        """Rows [R, G, O/G] of what the second operand of the Add behind the layer lacks: the layer can make it
        good. None where there is no such Add, or where its second operand is not known yet."""
        skip, original = _beside(found), _beside(other)
        if skip is None or original is None or not (made.known(skip) and wanted.known(original)):
            return None
        pairs = zip(wanted.values(original), made.values(skip), strict=True)
        return np.concatenate(
            [found.positions(self._seen(a - b, i), self.share, i) for i, (a, b) in enumerate(pairs)]
        )

    def _seen(self, x: Array, sample: int) -> Array:
        """`x` at the positions that some attention reads, where its first axes are those positions."""
        read = self._read[sample] if self._read else None
        return x if read is None or x.ndim != 3 or x.shape[:2] != read.shape else x[read][None]


def _beside(found: Layer) -> ir.Value | None:
    """The other operand of the Add that alone reads the layer's result."""
    add = g.only_use(found.result)
    if add is None or add.op_type != "Add" or add.domain:
        return None
    other = add.inputs[1 if add.inputs[0] is found.result else 0]
    same = other is not None and g.dims(other) == g.dims(found.result)
    return other if same and other is not found.result else None


def attended(model: ir.Model, feeds: Sequence[Mapping[str, Array]]) -> list[Array]:
    """For each sample which positions [N, S] its first masked Attention may read; empty where there is none."""
    masks = (
        n.inputs[3] for n in model.graph if n.op_type == "Attention" and not n.domain and len(n.inputs) > 3
    )
    mask = next((v for v in masks if v is not None and not g.is_constant(v) and g.rank(v) == 4), None)
    found: list[Array] = []
    if mask is None:
        return found

    def visit(_: int, values: Mapping[str, Array]) -> None:
        bias = values[mask.name or ""]
        found.append(np.any(bias if bias.dtype == bool else bias > MASKED, axis=(1, 2)))

    observe(model, feeds, [mask.name or ""], visit)
    return found


def moments_of(rows: Array) -> Array:
    """X'X [K, K] of `rows` [R, K], float64."""
    return np.asarray(rows.T @ rows, np.float64)
