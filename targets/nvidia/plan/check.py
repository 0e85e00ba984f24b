"""Whether a plan is sound: every number leads somewhere, every tensor lies within what it lies in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tapeout.sdk import InvalidModelError
from tapeout.targets.nvidia.plan.expressions import LARGEST, Range, bounds, value
from tapeout.targets.nvidia.plan.parts import (
    ALIGNMENT,
    DTYPES,
    ArgumentKind,
    Kind,
    Launch,
    Plan,
    Profile,
    Tensor,
    padded,
)


def check(plan: Plan, name: str) -> None:
    """Raise InvalidModelError where `plan`, of the file `name`, is not sound."""

    def hold(right: bool, what: str) -> None:
        if not right:
            raise InvalidModelError(
                f"'{name}': {what}", hint="the plan is damaged or forged: export the model again"
            )

    hold(bool(plan.profiles), "it has no profile")
    for kind in (Kind.INPUT, Kind.OUTPUT):
        names = [t.name for t in plan.tensors if t.kind == kind]
        hold(len(set(names)) == len(names), f"two {kind.name.lower()}s have the same name")
    place = 0
    for weight in plan.weights:
        size = math.prod(weight.shape) * DTYPES[weight.dtype][1]
        right = weight.size == size and min(weight.shape, default=0) >= 0 and place < LARGEST
        hold(
            right, f"weight '{weight.name}' of {list(weight.shape)} has {weight.size} bytes, expected {size}"
        )
        hold(weight.offset == place, f"weight '{weight.name}' lies at {weight.offset}, expected at {place}")
        place += padded(size)
    for index, tensor in enumerate(plan.tensors):
        _tensor(plan, index, tensor, hold)
    for profile in plan.profiles:
        _profile(plan, profile, hold)
    groups = {k.group for k in plan.kernels}
    pairs = [(k.group, k.arch) for k in plan.kernels]
    hold(len(set(pairs)) == len(pairs), "two kernels are the same group's for the same architecture")
    for index, launch in enumerate(plan.launches):
        _launch(plan, index, launch, groups, hold)


Hold = Callable[[bool, str], None]


def _tensor(plan: Plan, index: int, tensor: Tensor, hold: Hold) -> None:
    where = f"tensor {index} '{tensor.name}'"
    hold(tensor.storage < len(plan.tensors), f"{where} shares the storage of a tensor that is not there")
    owner = plan.tensors[tensor.storage]
    hold(owner.storage == tensor.storage, f"{where} shares the storage of a tensor without its own")
    hold(
        (tensor.kind == Kind.WEIGHT) == (tensor.weight >= 0),
        f"{where} is a weight and has none, or the other way",
    )
    if tensor.kind == Kind.WEIGHT:
        hold(tensor.weight < len(plan.weights), f"{where} is a weight that is not there")
        found = plan.weights[tensor.weight]
        shape = tuple(value(code, ()) for code in tensor.shape)
        right = (found.shape, found.dtype) == (shape, tensor.dtype) and tensor.storage == index
        hold(right, f"{where} is not what its weight is")


def _profile(plan: Plan, profile: Profile, hold: Hold) -> None:
    for symbol, (least, best, most) in zip(plan.symbols, profile.sizes, strict=True):
        hold(0 <= least <= best <= most < 1 << 31, f"size '{symbol}' is {least}:{best}:{most}")
    sizes = ranges(profile)
    for tensor, offset in zip(plan.tensors, profile.offsets, strict=True):
        size = most_bytes(tensor, sizes)
        owner = plan.tensors[tensor.storage]
        hold(0 <= size < LARGEST, f"tensor '{tensor.name}' has {size} bytes")
        if tensor.kind == Kind.INNER and owner.kind == Kind.INNER:
            right = offset >= 0 and offset + size <= profile.arena and offset % ALIGNMENT == 0
            shared = profile.offsets[tensor.storage]
            hold(right, f"tensor '{tensor.name}' of {size} bytes lies at {offset} of {profile.arena}")
            hold(offset == shared, f"tensor '{tensor.name}' lies at {offset}, its storage at {shared}")
        else:
            hold(offset < 0, f"tensor '{tensor.name}' lies in the arena and is none of it")
            capacity = most_bytes(owner, sizes)
            hold(size <= capacity, f"tensor '{tensor.name}' is larger than what it lies in")


def _launch(plan: Plan, index: int, launch: Launch, groups: set[int], hold: Hold) -> None:
    where = f"launch {index} ({launch.operation} of {', '.join(launch.sources) or 'nothing'})"
    numbers = [a.tensor for a in launch.arguments if a.kind == ArgumentKind.TENSOR]
    hold(
        all(0 <= i < len(plan.tensors) for i in (*launch.reads, *launch.writes, *numbers)),
        f"{where} names a tensor that is not there",
    )
    for i in launch.writes:
        owner = plan.tensors[plan.tensors[i].storage]
        hold(
            owner.kind in (Kind.OUTPUT, Kind.INNER), f"{where} writes '{owner.name}', which nothing may write"
        )
    hold(set(numbers) <= {*launch.reads, *launch.writes}, f"{where} is handed a tensor that it does not name")
    hold(launch.kernel < 0 or launch.kernel in groups, f"{where} has a kernel that is not there")
    hold(launch.tactic < len(plan.tactics), f"{where} has a tactic that is not there")
    codes = [*launch.grid, *(a.code for a in launch.arguments if a.code)]
    for profile in plan.profiles:
        for code in codes:
            bounds(code, ranges(profile))


def ranges(profile: Profile) -> list[Range]:
    """Least and most of each symbol."""
    return [(least, most) for least, _, most in profile.sizes]


def most_bytes(tensor: Tensor, sizes: Sequence[Range]) -> int:
    """The most bytes that a tensor may take while the symbols stay in these ranges."""
    shape = [bounds(code, sizes) for code in tensor.shape]
    if any(least < 0 for least, _ in shape):
        raise InvalidModelError(f"tensor '{tensor.name}' may have a negative size")
    return math.prod(most for _, most in shape) * DTYPES[tensor.dtype][1]
