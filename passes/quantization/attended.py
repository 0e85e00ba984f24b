"""Which positions of a sequence count: those that attention reads. What pads a text says nothing about it, and is most
of many texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.calibration.collect import observe
from tapeout.compiler.ir import graph as g

Array = np.ndarray[Any, Any]

# Attention below this reads nothing; one in so many positions that nothing reads is kept.
LEAST, KEPT = 1e-6, 16


def attended(source: ir.Model, feeds: Sequence[Mapping[str, Array]]) -> list[Array]:
    """For each sample which positions [N, S] the first attention reads, and some of the others; empty where the
    model has no attention over positions."""
    name = next((n.outputs[0].name for n in source.graph if _over_positions(n)), None)
    found: list[Array] = []
    if name is None:
        return found

    def visit(_: int, values: dict[str, Array]) -> None:
        read = values[name].max(axis=(1, 2)) > LEAST
        flat = read.reshape(-1)
        flat[np.flatnonzero(~flat)[::KEPT]] = True
        found.append(flat.reshape(read.shape))

    observe(source, feeds, [name], visit)
    return found


def counting(x: Array, read: Array | None) -> Array:
    """The rows of `x` [N, S, C] at the positions `read` [N, S]; all of `x` where its shape is another."""
    return x if read is None or x.ndim != 3 or x.shape[:2] != read.shape else x[read]


def _over_positions(node: ir.Node) -> bool:
    """Whether `node` is the Softmax [N, H, S, S] of an attention."""
    shape = g.dims(node.outputs[0])
    plain = node.op_type == "Softmax" and node.domain == ""
    return plain and shape is not None and len(shape) == 4 and shape[2] == shape[3]
