"""Runs a plan on the CPU: the same launches over the same arena, in NumPy.

Memory that holds nothing is poisoned, before the first launch and again after each tensor's last one: what reads a
tensor too early, too late or beyond its end computes with NaN and huge integers, and shows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from tapeout.sdk import InternalError, UsageError
from tapeout.targets.nvidia.memory import lives
from tapeout.targets.nvidia.plan.expressions import text, value
from tapeout.targets.nvidia.plan.parts import DTYPES, ArgumentKind, Kind, Launch, Plan, Profile, Tensor
from tapeout.targets.nvidia.plan.read import PlanFile
from tapeout.targets.nvidia.reference import KERNELS

Arrays = dict[str, np.ndarray[Any, Any]]
POISON = 0xFF  # in all bytes: NaN in every type of real numbers


class Executor:
    """A plan opened on the CPU. Weights are held against their sha256 when it is opened.

    Raises InvalidModelError where the plan is stripped or damaged.
    """

    def __init__(self, file: PlanFile) -> None:
        self.plan = file.plan
        self._weights = [
            np.frombuffer(file.weight(w), numpy_type(w.dtype)).reshape(w.shape) for w in file.plan.weights
        ]
        last: dict[int, list[int]] = {}
        for owner, (_, step) in lives(self.plan.tensors, self.plan.launches).items():
            last.setdefault(step, []).append(owner)
        self._last = last

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]], shown: Collection[str] = ()) -> Arrays:
        """The outputs for `inputs`, and the inner tensors named in `shown`, by their names.

        Raises UsageError where an input is missing, has another type or rank, or a size outside of all profiles.
        """
        sizes = sizes_for(self.plan, inputs)
        chosen = choose(self.plan, sizes)
        arena = np.full(chosen.arena, POISON, np.uint8)
        memory: dict[int, np.ndarray[Any, Any]] = {}
        for index, tensor in enumerate(self.plan.tensors):
            if tensor.kind == Kind.INPUT:
                memory[index] = bytes_of(np.ascontiguousarray(inputs[tensor.name]))
            elif tensor.kind == Kind.OUTPUT:
                memory[index] = np.full(_size(tensor, sizes), POISON, np.uint8)
            elif tensor.kind == Kind.WEIGHT:
                memory[index] = bytes_of(self._weights[tensor.weight])
        place = _Memory(self.plan, chosen, sizes, arena, memory)
        found: Arrays = {}
        for step, launch in enumerate(self.plan.launches):
            self._step(launch, place)
            found |= {
                n: place.array(i).copy() for i in launch.writes if (n := self.plan.tensors[i].name) in shown
            }
            for owner in self._last.get(step, ()):
                place.bytes(owner)[:] = POISON
        outputs = {t.name: place.array(i) for i, t in enumerate(self.plan.tensors) if t.kind == Kind.OUTPUT}
        return found | outputs

    def _step(self, launch: Launch, place: _Memory) -> None:
        kernel = KERNELS.get(launch.operation)
        if kernel is None:
            raise InternalError(
                f"the CPU executor knows no operation '{launch.operation}'", nodes=launch.sources
            )
        numbers = [
            value(a.code, place.sizes)
            for a in launch.arguments
            if a.kind in (ArgumentKind.INT32, ArgumentKind.INT64)
        ]
        reads = [place.array(i) for i in launch.reads]
        writes = [place.array(i) for i in launch.writes]
        with np.errstate(all="ignore"):
            kernel(reads, writes, numbers, launch.attributes)


class _Memory:
    """The memory of one run: the arena, and what the caller and the plan own."""

    def __init__(
        self,
        plan: Plan,
        profile: Profile,
        sizes: Sequence[int],
        arena: np.ndarray[Any, Any],
        owned: Mapping[int, np.ndarray[Any, Any]],
    ) -> None:
        self.plan, self.profile, self.sizes, self.arena, self.owned = plan, profile, sizes, arena, owned

    def bytes(self, index: int) -> np.ndarray[Any, Any]:
        """The bytes of a tensor, without a copy."""
        tensor = self.plan.tensors[index]
        size = _size(tensor, self.sizes)
        if tensor.storage in self.owned:
            return self.owned[tensor.storage][:size]
        offset = self.profile.offsets[index]
        return self.arena[offset : offset + size]

    def array(self, index: int) -> np.ndarray[Any, Any]:
        """A tensor, without a copy."""
        tensor = self.plan.tensors[index]
        shape = [value(code, self.sizes) for code in tensor.shape]
        return self.bytes(index).view(numpy_type(tensor.dtype)).reshape(shape)


def sizes_for(plan: Plan, inputs: Mapping[str, np.ndarray[Any, Any]]) -> list[int]:
    """The sizes of the symbols that these inputs have. Raises UsageError."""
    known: dict[int, int] = {}
    for tensor in plan.named(Kind.INPUT).values():
        if tensor.name not in inputs:
            raise UsageError(f"input '{tensor.name}' is missing; given: {', '.join(inputs) or 'none'}")
        array = inputs[tensor.name]
        if array.dtype.name != tensor.dtype or array.ndim != len(tensor.shape):
            shown = ", ".join(text(code, plan.symbols) for code in tensor.shape)
            raise UsageError(
                f"input '{tensor.name}' is {array.dtype.name} {list(array.shape)}, expected {tensor.dtype} [{shown}]"
            )
        for code, size in zip(tensor.shape, array.shape, strict=True):
            if len(code) == 1 and code[0] & 0xFF == 1:
                known.setdefault(code[0] >> 8, size)
    missing = [name for i, name in enumerate(plan.symbols) if i not in known]
    if missing:
        raise UsageError(f"no input says the size '{missing[0]}' by itself")
    sizes = [known[i] for i in range(len(plan.symbols))]
    for tensor in plan.named(Kind.INPUT).values():
        expected = [value(code, sizes) for code in tensor.shape]
        if list(inputs[tensor.name].shape) != expected:
            raise UsageError(
                f"input '{tensor.name}' has shape {list(inputs[tensor.name].shape)}, expected {expected}"
            )
    return sizes


def choose(plan: Plan, sizes: Sequence[int]) -> Profile:
    """The first profile that holds these sizes. Raises UsageError."""
    for profile in plan.profiles:
        if all(least <= n <= most for n, (least, _, most) in zip(sizes, profile.sizes, strict=True)):
            return profile
    found = ", ".join(f"{name}={n}" for name, n in zip(plan.symbols, sizes, strict=True))
    known = "; ".join(
        ", ".join(f"{name}={s[0]}..{s[2]}" for name, s in zip(plan.symbols, p.sizes, strict=True))
        for p in plan.profiles
    )
    raise UsageError(
        f"the plan has no profile for {found}; it has {known}",
        hint="export it with --option size.NAME=LEAST:BEST:MOST",
    )


def numpy_type(dtype: str) -> np.dtype[Any]:
    """The NumPy type of a plan's type."""
    return np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def bytes_of(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The bytes of a contiguous array, without a copy."""
    return array.reshape(-1).view(np.uint8)


def _size(tensor: Tensor, sizes: Sequence[int]) -> int:
    count = 1
    for code in tensor.shape:
        count *= value(code, sizes)
    return count * DTYPES[tensor.dtype][1]
