"""How much of each layer goes, so that a ratio holds over all weights at the least cost to the model's outputs.

What a layer loses is measured with the weights that stay fitted anew, at several ratios on some of its outputs; what
of that reaches the model's outputs, by running the model with that layer alone pruned. What single weights cost says
little where many go, and what random noise does to the outputs says little of errors that a layer makes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from tapeout.passes.quantization.walk import Walk
from tapeout.passes.sparsity.layers import Layer
from tapeout.passes.sparsity.rows import Rows, moments_of
from tapeout.passes.sparsity.solve import refit, saliency
from tapeout.passes.sparsity.trial import Trial

Array = np.ndarray[Any, Any]
Points = list[tuple[float, float]]

# Ratios at which layers are measured, on so many outputs of each; a layer loses at most the last, unless all are to.
MEASURED = (0.1, 0.3, 0.5, 0.7, 0.9)
OUTPUTS = 32
# Rounds of fitting, and ratios between those measured, where costs are interpolated by their logarithms.
FITTING, STEPS = 6, 8


def shared(
    model: ir.Model, chosen: Sequence[Layer], feeds: Sequence[Mapping[str, Array]], ratio: float
) -> dict[str, float]:
    """By name the ratio of each of `chosen`, so that `ratio` of all their weights go."""
    trial = Trial(model, [v for f in chosen for v in (f.stored, f.bias) if v is not None], feeds)
    walk, rows = Walk(model, feeds), Rows(model, feeds)
    measured = sorted({*MEASURED, max(MEASURED[-1], ratio)})
    fine = np.linspace(measured[0], measured[-1], STEPS * len(measured))
    curves = {}
    for found in chosen:
        walk.until(found.node)
        read = rows.inputs(found, walk)
        groups = [group(w, read[:, k]) for k, w in enumerate(found.weight())]
        step = max(1, found.outputs // OUTPUTS)
        lost = np.log([max(pruned(groups, r, step)[1], 1e-30) for r in measured])
        reached = trial.lost(found.constants(pruned(groups, ratio)[0], read.mean(0)))
        reached /= np.exp(np.interp(ratio, measured, lost))
        cost = np.exp(np.interp(fine, measured, lost)) * reached
        curves[found.name] = [(0.0, 0.0), *zip(fine * found.size, cost, strict=True)]
    gone = spent(curves, ratio * sum(f.size for f in chosen))
    return {f.name: gone[f.name] / f.size for f in chosen}


class Group(NamedTuple):
    """One group of a layer: `weight` [O, K], second moments [K, K] of its inputs, and what each weight costs alone."""

    weight: Array
    moments: Array
    cost: Array


def group(weight: Array, rows: Array) -> Group:
    moments = moments_of(rows - rows.mean(0))
    return Group(weight, moments, saliency(weight, moments))


def pruned(groups: Sequence[Group], ratio: float, step: int = 1) -> tuple[Array, float]:
    """Every `step`th output of a layer [G, O/step, K] with `ratio` of its weights gone and the others fitted, and the
    share of those outputs' variance that is lost."""
    found, lost, whole = [], 0.0, 0.0
    for weight, moments, cost in groups:
        weight, cost = weight[::step], cost[::step]
        sparse = np.where(cost > np.quantile(cost, ratio), weight, 0.0)
        found.append(refit(weight, moments, sparse, FITTING))
        change = found[-1] - weight
        lost += float(np.sum((change @ moments) * change))
        whole += float(np.sum((weight @ moments) * weight))
    return np.stack(found), lost / max(whole, 1e-30)


def spent(curves: Mapping[str, Points], wanted: float) -> dict[str, float]:
    """How far to go on each curve of (amount, cost), from (0, 0) on, so that the amounts sum to `wanted` at the
    least cost: piece by piece of their lower convex hulls, the flattest first."""
    pieces = [
        ((y1 - y0) / (x1 - x0), name, x1 - x0)
        for name, points in curves.items()
        for (x0, y0), (x1, y1) in zip(hull(points), hull(points)[1:], strict=False)
    ]
    gone = dict.fromkeys(curves, 0.0)
    for _, name, amount in sorted(pieces):
        part = min(amount, wanted - sum(gone.values()))
        gone[name] += max(part, 0.0)
    return gone


def hull(points: Points) -> Points:
    """The lower convex hull of points sorted by x."""
    found: Points = []
    for x, y in points:
        while len(found) > 1:
            (x0, y0), (x1, y1) = found[-2:]
            if (y1 - y0) * (x - x1) < (y - y1) * (x1 - x0):
                break
            found.pop()
        found.append((x, y))
    return found
