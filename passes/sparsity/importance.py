"""What a channel is worth to the layers that read it, by the measure of choice.

- reconstruction: what the readers' outputs lose at least when it goes, with their other inputs making good what they
  can (Optimal Brain Surgeon by blocks: sum of W_c inverse(inverse(H)_cc) W_c'), by how much of that reaches the
  model's outputs;
- magnitude: its share of the readers' squared weights;
- activation: its share of the variance of what they read: a channel that hardly moves is worth little;
- sensitivity: what the model's outputs lose without it, measured channel by channel;
- taylor: the same to first order, by finite differences: what a small step toward its removal does to the outputs,
  squared, for a whole one.

The last two run the model once for each channel and sample.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from tapeout.passes.sparsity.layers import Layer
from tapeout.passes.sparsity.solve import damped
from tapeout.passes.sparsity.trial import Trial

Array = np.ndarray[Any, Any]
Worth = dict[int, float]

# The step toward removal that stands for an infinitesimal one: errors of its second order are of this share, and the
# outputs of a float32 model move far enough to be seen.
STEP = 0.05


class Reader(NamedTuple):
    """A layer that reads channels: which one each of its input channels is, second moments [K, K] and means [K] of
    its rows, the power of its output, and the share of what it loses that reaches the model's outputs."""

    layer: Layer
    channels: Array
    moments: Array
    means: Array
    power: float
    reach: float

    @property
    def columns(self) -> Array:
        """The channel of each weight column [K]."""
        return np.repeat(self.channels, self.means.size // len(self.channels))


def reconstruction(readers: Sequence[Reader], free: Collection[int], removed: Collection[int]) -> Worth:
    """What each of `free` is worth once `removed` are gone."""
    result = dict.fromkeys(free, 0.0)
    for reader in readers:
        weight = reader.layer.weight()[0]
        columns = reader.columns
        kept = ~np.isin(columns, list(removed))
        columns = columns[kept]
        held = damped(reader.moments)
        inner = held[np.ix_(kept, kept)]
        # The weight that is left, fitted to what the whole one put out.
        fitted = np.linalg.solve(inner, held[kept] @ weight.T).T
        inverse = np.linalg.inv(inner)
        for root, index in places(columns):
            if root in result:
                block = fitted[:, index]
                lost = np.sum((block @ np.linalg.inv(inverse[np.ix_(index, index)])) * block)
                result[root] += float(lost) * reader.reach / max(reader.power, 1e-30)
    return result


def places(columns: Array) -> list[tuple[int, Array]]:
    """Each channel with the columns that hold it."""
    order = np.argsort(columns, kind="stable")
    roots, starts = np.unique(columns[order], return_index=True)
    return list(zip(roots.tolist(), np.split(order, starts[1:]), strict=True))


def _by_column(readers: Sequence[Reader], free: Collection[int], size: Callable[[Reader], Array]) -> Worth:
    """What the columns that hold each of `free` make of a reader's `size` [K], as a share, over all readers."""
    result = dict.fromkeys(free, 0.0)
    for reader in readers:
        sizes = size(reader)
        for root, index in places(reader.columns):
            if root in result:
                result[root] += float(sizes[index].sum() / max(float(sizes.sum()), 1e-30))
    return result


def magnitude(
    model: ir.Model, readers: Sequence[Reader], free: Collection[int], feeds: Sequence[Mapping[str, Array]]
) -> Worth:
    return _by_column(readers, free, lambda r: np.sum(r.layer.weight()[0] ** 2, 0))


def activation(
    model: ir.Model, readers: Sequence[Reader], free: Collection[int], feeds: Sequence[Mapping[str, Array]]
) -> Worth:
    return _by_column(readers, free, lambda r: np.diag(r.moments))


def sensitivity(
    model: ir.Model, readers: Sequence[Reader], free: Collection[int], feeds: Sequence[Mapping[str, Array]]
) -> Worth:
    return _tried(model, readers, free, feeds, 1.0)


def taylor(
    model: ir.Model, readers: Sequence[Reader], free: Collection[int], feeds: Sequence[Mapping[str, Array]]
) -> Worth:
    return {root: lost / STEP**2 for root, lost in _tried(model, readers, free, feeds, STEP).items()}


def _tried(
    model: ir.Model,
    readers: Sequence[Reader],
    free: Collection[int],
    feeds: Sequence[Mapping[str, Array]],
    step: float,
) -> Worth:
    """What the outputs lose when one channel after the other goes by `step` of the whole way, its mean kept."""
    trial = Trial(model, (v for r in readers for v in (r.layer.stored, r.layer.bias) if v is not None), feeds)
    holding: dict[int, list[tuple[Reader, Array]]] = {}
    for reader in readers:
        for root, index in places(reader.columns):
            holding.setdefault(root, []).append((reader, index))
    result = {}
    for root in free:
        values: dict[str, Array] = {}
        for reader, index in holding.get(root, ()):
            weight = reader.layer.weight()
            weight[0][:, index] *= 1 - step
            values |= reader.layer.constants(weight, reader.means[None])
        result[root] = trial.lost(values) if values else 0.0
    return result


RECONSTRUCTION = "reconstruction"
# The measures that are taken once, before any channel goes.
MEASURES = {"magnitude": magnitude, "activation": activation, "sensitivity": sensitivity, "taylor": taylor}
