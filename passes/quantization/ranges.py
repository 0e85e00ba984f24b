"""The range that each tensor is quantized over: what the recipe says, what calibration has measured, what
follows from the tensor's producer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.recipe import Recipe

LAYOUT = "tapeout.layout"

Interval = tuple[float, float]

# Why a tensor has no range, where a sum has run over.
NOT_FINITE = "it is not finite on the calibration data"

# Operators whose first output holds nothing but elements of their first input, or numbers between them.
WITHIN = frozenset(
    {
        "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Tile", "Slice",
        "Gather", "GatherND", "DepthToSpace", "SpaceToDepth", "ReduceMax", "ReduceMin", "ReduceMean",
        "MaxPool", "GlobalMaxPool", "GlobalAveragePool", "AveragePool", "MaxPoolNHWC", "AveragePoolNHWC",
        "DepthToSpaceNHWC", "SpaceToDepthNHWC", "MaxPoolNDHWC", "AveragePoolNDHWC",
    }
)  # fmt: skip


class Measured(Protocol):
    """What calibration has measured: `compiler/calibration` has it."""

    def for_range(self, name: str, /) -> object | None: ...

    def range(
        self, name: str, /, method: str = "minmax", bits: int = 8, symmetric: bool = False
    ) -> Interval: ...


def source_names(value: ir.Value) -> tuple[str, ...]:
    """The names that statistics and rules may know `value` by: the source tensor that it holds in another axis
    order, and its own."""
    text = value.metadata_props.get(LAYOUT, "")
    name, _, _ = text.rpartition(":")
    return tuple(n for n in (name, value.name or "") if n)


class Ranges:
    """Ranges of the values of one graph, by a recipe and measured statistics."""

    def __init__(
        self, measured: Measured | None, recipe: Recipe, chosen: Mapping[str, Interval] = MappingProxyType({})
    ) -> None:
        """`chosen` are ranges of 8-bit tensors, by value name, that algorithms have found better than the
        recipe's default method; what a rule says wins over them."""
        self.measured, self.recipe, self.chosen = measured, recipe, chosen
        self._found: dict[tuple[ir.Value, int, bool], Interval | str] = {}

    def of(self, value: ir.Value, bits: int, symmetric: bool) -> Interval | str:
        """The range of `value`, 0 not yet in it where it is a constant; the reason where none is known."""
        key = (value, bits, symmetric)
        if key not in self._found:
            self._found[key] = "it depends on itself"
            self._found[key] = self._range(value, bits, symmetric)
        return self._found[key]

    def empty(self, value: ir.Value) -> bool:
        """Whether all that was measured of `value` is 0, and no rule states its range."""
        if self.measured is None or not isinstance(
            self.recipe.range_of(source_names(value), value.producer()), str
        ):
            return False
        known = next((k for n in source_names(value) if (k := self.measured.for_range(n)) is not None), None)
        ends = getattr(known, "min", None), getattr(known, "max", None)
        return ends == (0.0, 0.0) and getattr(known, "count", 0) > 0

    def _range(self, value: ir.Value, bits: int, symmetric: bool) -> Interval | str:
        array = g.constant(value)
        if array is not None:
            if not array.size:
                return "it has no elements"
            low, high = float(array.min()), float(array.max())
            return (low, high) if math.isfinite(low) and math.isfinite(high) else "it is not finite"
        names = source_names(value)
        wanted = self.recipe.range_of(names, value.producer())
        if not isinstance(wanted, str):
            return wanted
        if bits <= 8 and not symmetric and wanted == "minmax" and (value.name or "") in self.chosen:
            return self.chosen[value.name or ""]
        for name in names:
            if self.measured is not None and (known := self.measured.for_range(name)) is not None:
                if getattr(known, "count", 1) == 0:
                    return "calibration met no element of it"
                if not getattr(known, "finite", True):
                    return NOT_FINITE
                # With 16 bits there are levels enough for the outermost values.
                method = wanted if bits <= 8 else "minmax"
                return self.measured.range(name, method=method, bits=bits, symmetric=symmetric)
        return self._derived(value, bits, symmetric)

    def _derived(self, value: ir.Value, bits: int, symmetric: bool) -> Interval | str:
        node = value.producer()
        unknown = f"nothing was measured of '{names[0] if (names := source_names(value)) else value.name}'"
        if node is None or not node.inputs or node.inputs[0] is None:
            return unknown
        first = self.of(node.inputs[0], bits, symmetric) if node.op_type in (*WITHIN, "Relu", "Clip") else ""
        if node.op_type in WITHIN:
            return first or unknown
        if node.op_type == "Relu" and not isinstance(first, str):
            return 0.0, max(first[1], 0.0)
        if node.op_type == "Clip" and not isinstance(first, str):
            low, high = (g.scalar(v) for v in [*node.inputs[1:3], None, None][:2])
            ends = np.clip(first, -math.inf if low is None else low, math.inf if high is None else high)
            return float(ends[0]), float(ends[1])
        if node.op_type == "Concat":
            parts = [self.of(v, bits, symmetric) for v in node.inputs if v is not None]
            known = [p for p in parts if not isinstance(p, str)]
            if known and len(known) == len(parts):
                return min(p[0] for p in known), max(p[1] for p in known)
        return unknown
