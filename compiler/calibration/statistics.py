"""What was measured: per tensor its extremes, means, histogram and channels; and the ranges they give."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tapeout.compiler.calibration import ranges
from tapeout.compiler.calibration.histogram import Histogram
from tapeout.compiler.errors import UsageError

LAYOUT = "tapeout.layout"


@dataclass(frozen=True)
class Channels:
    """Statistics along one axis, float32 arrays of its size: over all samples and all other axes."""

    min: NDArray[np.float32]
    max: NDArray[np.float32]
    mean: NDArray[np.float32]

    @property
    def absmax(self) -> NDArray[np.float32]:
        return np.maximum(np.abs(self.min), np.abs(self.max))


@dataclass(frozen=True)
class TensorStats:
    """One tensor over all samples.

    `count` is the number of elements; `min`, `max` are exact, -inf or inf where the tensor holds them (then
    `mean` and `histogram` are of the finite elements). `moving_min`, `moving_max` are the moving averages of the
    samples' extremes in their order. `channels[axis]` has axis 1 and the last axis where they make sense.
    """

    count: int
    min: float
    max: float
    mean: float
    moving_min: float
    moving_max: float
    histogram: Histogram | None
    rank: int = 0
    channels: Mapping[int, Channels] = field(default_factory=dict)
    _found: dict[tuple[object, ...], tuple[float, float]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def absmax(self) -> float:
        return max(abs(self.min), abs(self.max))

    @property
    def finite(self) -> bool:
        """Whether every element was finite."""
        return math.isfinite(self.min) and math.isfinite(self.max)

    @property
    def constant(self) -> bool:
        """Whether every element of every sample was the same number."""
        return self.min == self.max

    def channel(self, axis: int) -> Channels | None:
        """Statistics along `axis`, negative from the end; None where they were not kept."""
        return self.channels.get(axis + self.rank if axis < 0 else axis)

    def range(
        self,
        method: str = "minmax",
        bits: int = 8,
        symmetric: bool = False,
        percent: float = ranges.PERCENTILE,
        name: str = "",
    ) -> tuple[float, float]:
        """(lo, hi) by `method`: "minmax", "percentile", "mse", "entropy" or "moving"; lo <= 0 <= hi, lo < hi.

        A tensor that was always 0 has the range [0, 1] (symmetric: [-1, 1]). Raises UsageError where the range
        is empty or infinite, and for an unknown method.
        """
        if method not in ranges.METHODS:
            raise UsageError(
                f"no calibration method '{method}'", hint=f"choose one of {', '.join(ranges.METHODS)}"
            )
        if not self.count:
            raise UsageError(
                f"the tensor '{name}' has no element in any calibration sample: its range is empty",
                hint="calibrate with samples that reach it, or keep its layer in float by a recipe rule",
            )
        if not self.finite:
            raise UsageError(
                f"the tensor '{name}' reaches from {self.min:g} to {self.max:g} on the calibration data: "
                "no scale covers that",
                hint="keep its layer in float by a recipe rule, or change the mask that brings infinity in",
            )
        if self.constant or self.histogram is None or method == "minmax":
            return ranges.with_zero(self.min, self.max, symmetric)
        if method == "moving":
            return ranges.with_zero(self.moving_min, self.moving_max, symmetric)
        if method == "percentile":
            return ranges.with_zero(
                *ranges.percentile(self.histogram, self.min, self.max, percent), symmetric
            )
        key = (method, bits, symmetric)
        if key not in self._found:
            search = ranges.mse if method == "mse" else ranges.entropy
            self._found[key] = search(self.histogram, self.min, self.max, bits, symmetric)
        return self._found[key]


@dataclass
class Statistics:
    """Statistics of a graph's tensors by name.

    A source tensor is found by its name; a made one (its name has `~`) by its name in the graph that was
    measured, or in the graph that a statistics file was bound to (`keys`: name -> key in `tensors`). A value
    that only a Relu or a Clip reads is not measured: saturation does their work, and `stand_in` names the value
    whose range it takes.
    """

    tensors: dict[str, TensorStats]
    keys: dict[str, str] = field(default_factory=dict)
    stand_in: dict[str, str] = field(default_factory=dict)
    samples: int = 0
    data: str = ""  # digest of the data
    notes: tuple[str, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> TensorStats | None:
        return self.tensors.get(self.keys.get(name, name))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self[name] is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys or self.tensors)

    def for_range(self, name: str) -> TensorStats | None:
        """What says the range of `name`: its own statistics, else those of what stands in for it."""
        seen = {name}
        while (found := self[name]) is None and (other := self.stand_in.get(name)) and other not in seen:
            seen.add(name := other)
        return found

    def range(
        self,
        name: str,
        method: str = "minmax",
        bits: int = 8,
        symmetric: bool = False,
        percent: float = ranges.PERCENTILE,
    ) -> tuple[float, float]:
        """(lo, hi) of a tensor, see `TensorStats.range`. Raises UsageError where nothing is known of it."""
        found = self.for_range(name)
        if found is None:
            raise UsageError(
                f"the calibration statistics have nothing for the tensor '{name}'",
                hint="make them again for this model and target with 'tapeout calibrate'",
            )
        return found.range(method, bits, symmetric, percent, name)

    # --- by value: in whatever axis order the graph has it now ------------------------------------------------

    def source(self, value: ir.Value) -> tuple[str, tuple[int, ...] | None]:
        """The measured name behind `value`, and its axes' order there: axis i of `value` is axis perm[i]; None
        where the order is the same."""
        text = value.metadata_props.get(LAYOUT, "")
        name, _, perm = text.rpartition(":")
        if not name or (value.name or "") in self:
            return value.name or "", None
        return name, tuple(int(p) for p in perm.split(",")) if perm else ()

    def of(self, value: ir.Value) -> TensorStats | None:
        """Statistics of `value`, measured in the source's axis order: for channels use `channels`."""
        return self[self.source(value)[0]]

    def range_of(
        self,
        value: ir.Value,
        method: str = "minmax",
        bits: int = 8,
        symmetric: bool = False,
        percent: float = ranges.PERCENTILE,
    ) -> tuple[float, float]:
        """(lo, hi) of `value`, see `range`."""
        return self.range(self.source(value)[0], method, bits, symmetric, percent)

    def channels(self, value: ir.Value, axis: int) -> Channels | None:
        """Statistics along an axis of `value` as it lies in the graph now; None where they were not kept."""
        name, perm = self.source(value)
        found = self[name]
        if found is None:
            return None
        axis = axis + found.rank if axis < 0 else axis
        return found.channel(axis if perm is None else perm[axis])
