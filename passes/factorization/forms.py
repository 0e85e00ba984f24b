"""The ways to write a layer as thinner ones: which ranks there are, what each costs and loses, and what it becomes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from tapeout.compiler.ir import graph as g
from tapeout.passes.factorization.lowrank import cp, factors, refit, rows, spectrum, tucker
from tapeout.passes.sparsity.layers import Layer

Array = np.ndarray[Any, Any]
Ranks = tuple[int, ...]

# Ranks that are looked at, as shares of the full one: of a matrix, whose losses one decomposition tells, and of a
# kernel, which is decomposed for each.
STEPS = 32
SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)


class Stage(NamedTuple):
    """One convolution: its weight [O, I/G, k..] and the attributes that say more than that; for a product, the
    weight [O, K]."""

    weight: Array
    attributes: Mapping[str, Any] = {}


class Form(Protocol):
    """One way to write layers."""

    def takes(self, found: Layer) -> bool:
        """Whether the layer can be written so."""

    def ranks(self, found: Layer) -> list[Ranks]:
        """Ranks to choose from, not yet in multiples."""

    def most(self, found: Layer) -> Ranks:
        """The full ranks."""

    def share(self, found: Layer, ranks: Ranks) -> float:
        """Operations at `ranks`, as a share of the layer's own."""

    def lost(self, found: Layer, moments: Array, ranks: list[Ranks]) -> list[float]:
        """Share of what the layer puts out that is lost at each of `ranks`."""

    def parts(self, found: Layer, weight: Array, moments: Array, ranks: Ranks) -> tuple[Array, list[Stage]]:
        """What `weight` [O, K] becomes at `ranks`, as one matrix and as stages in the order that they run in."""


@dataclass(frozen=True)
class Svd:
    """A product after a product (or after the convolution that makes its inputs)."""

    whitened: bool = True

    def takes(self, found: Layer) -> bool:
        return True

    def most(self, found: Layer) -> Ranks:
        return (min(_sizes(found)),)

    def ranks(self, found: Layer) -> list[Ranks]:
        (full,) = self.most(found)
        return [(full * k // STEPS,) for k in range(1, STEPS)]

    def share(self, found: Layer, ranks: Ranks) -> float:
        outputs, inputs = _sizes(found)
        return ranks[0] * (outputs + inputs) / (outputs * inputs)

    def lost(self, found: Layer, moments: Array, ranks: list[Ranks]) -> list[float]:
        lost = spectrum(found.weight()[0], moments if self.whitened else None)
        return [float(lost[r]) for (r,) in ranks]

    def parts(self, found: Layer, weight: Array, moments: Array, ranks: Ranks) -> tuple[Array, list[Stage]]:
        a, b = factors(weight, moments if self.whitened else None, ranks[0])
        if found.node.op_type != "Conv":
            return a @ b, [Stage(b), Stage(a)]
        return a @ b, [Stage(b.reshape(-1, *found.shape[1:]), _window(found)), Stage(_point(found, a))]


class _Kernel(ABC):
    """What kernels with a window have in common."""

    def takes(self, found: Layer) -> bool:
        return found.node.op_type == "Conv" and math.prod(found.shape[2:]) > 1

    def lost(self, found: Layer, moments: Array, ranks: list[Ranks]) -> list[float]:
        weight = found.weight()[0]
        power = max(float(np.sum((weight @ moments) * weight)), 1e-300)
        changes = [self.parts(found, weight, moments, r)[0] - weight for r in ranks]
        return [float(np.sum((change @ moments) * change)) / power for change in changes]

    @abstractmethod
    def parts(self, found: Layer, weight: Array, moments: Array, ranks: Ranks) -> tuple[Array, list[Stage]]:
        """The weight that the stages stand for, and the stages."""


class Tucker(_Kernel):
    """A smaller kernel between products over inputs and outputs."""

    def most(self, found: Layer) -> Ranks:
        return found.shape[0], found.shape[1]

    def ranks(self, found: Layer) -> list[Ranks]:
        return [(round(found.shape[0] * x), round(found.shape[1] * x)) for x in SHARES]

    def share(self, found: Layer, ranks: Ranks) -> float:
        (outputs, inputs, *_), (r, s) = found.shape, ranks
        taps = math.prod(found.shape[2:])
        # The product over inputs runs at the input's positions, at least as many as the output's.
        work = inputs * s * math.prod(_strides(found)) + r * s * taps + r * outputs
        return work / (outputs * inputs * taps)

    def parts(self, found: Layer, weight: Array, moments: Array, ranks: Ranks) -> tuple[Array, list[Stage]]:
        _, core, b = tucker(weight.reshape(*found.shape[:2], -1), *ranks)
        inner = np.einsum("rsp,si->rip", core, b).reshape(len(core), -1)
        a = refit(weight, moments, inner)
        middle = core.reshape(*core.shape[:2], *found.shape[2:])
        return a @ inner, [Stage(_point(found, b)), Stage(middle, _window(found)), Stage(_point(found, a))]


class Cp(_Kernel):
    """A depthwise kernel between products over inputs and outputs."""

    def most(self, found: Layer) -> Ranks:
        outputs, inputs, taps = *found.shape[:2], math.prod(found.shape[2:])
        return (min(outputs * inputs, outputs * taps, inputs * taps),)

    def ranks(self, found: Layer) -> list[Ranks]:
        (most,) = self.most(found)
        paying = 1 / self.share(found, (1,))
        return [(min(round(paying * x), most),) for x in SHARES]

    def share(self, found: Layer, ranks: Ranks) -> float:
        outputs, inputs, taps = *found.shape[:2], math.prod(found.shape[2:])
        work = ranks[0] * (inputs * math.prod(_strides(found)) + taps + outputs)
        return work / (outputs * inputs * taps)

    def parts(self, found: Layer, weight: Array, moments: Array, ranks: Ranks) -> tuple[Array, list[Stage]]:
        _, c, b = cp(weight.reshape(*found.shape[:2], -1), ranks[0])
        inner = np.einsum("rp,ri->rip", c, b).reshape(ranks[0], -1)
        a = refit(weight, moments, inner)
        middle = c.reshape(-1, 1, *found.shape[2:])
        attributes = {**_window(found), "group": ranks[0]}
        return a @ inner, [Stage(_point(found, b)), Stage(middle, attributes), Stage(_point(found, a))]


class Uv(_Kernel):
    """A kernel of one column, then one of one row."""

    def takes(self, found: Layer) -> bool:
        return found.node.op_type == "Conv" and len(found.shape) == 4 and min(found.shape[2:]) > 1

    def most(self, found: Layer) -> Ranks:
        outputs, inputs, height, width = found.shape
        return (min(inputs * height, outputs * width),)

    def ranks(self, found: Layer) -> list[Ranks]:
        (most,) = self.most(found)
        return [(round(most * x),) for x in SHARES]

    def share(self, found: Layer, ranks: Ranks) -> float:
        outputs, inputs, height, width = found.shape
        # The first strides along one axis only.
        work = ranks[0] * (inputs * height * _strides(found)[1] + outputs * width)
        return work / (outputs * inputs * height * width)

    def parts(self, found: Layer, weight: Array, moments: Array, ranks: Ranks) -> tuple[Array, list[Stage]]:
        outputs, _, _, width = found.shape
        v = rows(weight.reshape(found.shape), ranks[0])
        inner = np.einsum("riy,xz->rxiyz", v, np.eye(width)).reshape(ranks[0] * width, -1)
        u = refit(weight, moments, inner)
        first, second = _window(found, 0), _window(found, 1)
        stages = [Stage(v[..., None], first), Stage(u.reshape(outputs, ranks[0], 1, width), second)]
        return u @ inner, stages


def _sizes(found: Layer) -> tuple[int, int]:
    return found.outputs, found.size // found.outputs


def _strides(found: Layer) -> tuple[int, ...]:
    return tuple(g.attribute(found.node, "strides", ()) or (1,) * (len(found.shape) - 2))


def _point(found: Layer, matrix: Array) -> Array:
    """The kernel of one tap that multiplies by `matrix` [O, I]."""
    return matrix.reshape(*matrix.shape, *(1,) * (len(found.shape) - 2))


def _window(found: Layer, axis: int | None = None) -> dict[str, Any]:
    """The attributes that say where the layer's window goes; with `axis`, those of a window along that axis alone."""
    given = {k: g.attribute(found.node, k) for k in ("strides", "pads", "dilations", "auto_pad")}
    given = {k: v for k, v in given.items() if v is not None}
    if axis is None:
        return given
    rank = len(found.shape) - 2
    for key in ("strides", "dilations"):
        if key in given:
            given[key] = tuple(n if k == axis else 1 for k, n in enumerate(given[key]))
    if "pads" in given:
        given["pads"] = tuple(n if k % rank == axis else 0 for k, n in enumerate(given["pads"]))
    return given


FORMS: dict[str, Form] = {
    "svd": Svd(),
    "plain-svd": Svd(whitened=False),
    "tucker": Tucker(),
    "cp": Cp(),
    "uv": Uv(),
}
