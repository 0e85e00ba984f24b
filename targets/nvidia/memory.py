"""Where inner tensors lie in the arena: tensors whose lives overlap get places apart, the largest first."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from tapeout.targets.nvidia.plan.check import most_bytes
from tapeout.targets.nvidia.plan.expressions import Range
from tapeout.targets.nvidia.plan.parts import Kind, Launch, Profile, Tensor, padded


def lives(tensors: Sequence[Tensor], launches: Sequence[Launch]) -> dict[int, tuple[int, int]]:
    """For each tensor with storage in the arena the first launch that writes it or a view of it, and the last that
    reads or writes one."""
    found: dict[int, tuple[int, int]] = {}
    for step, launch in enumerate(launches):
        for index in (*launch.writes, *launch.reads):
            owner = tensors[index].storage
            if tensors[owner].kind == Kind.INNER:
                found[owner] = (found.get(owner, (step, step))[0], step)
    return found


def profile(
    tensors: Sequence[Tensor], launches: Sequence[Launch], sizes: Sequence[tuple[int, int, int]]
) -> Profile:
    """The places of all tensors for these sizes (least, best, most of each symbol)."""
    ranges: list[Range] = [(least, most) for least, _, most in sizes]
    alive = lives(tensors, launches)
    need = {owner: padded(max(1, most_bytes(tensors[owner], ranges))) for owner in alive}
    placed: dict[int, int] = {}
    for owner in sorted(alive, key=lambda o: (-need[o], alive[o])):
        first, last = alive[owner]
        beside = sorted(
            (placed[o], placed[o] + need[o]) for o in placed if alive[o][0] <= last and first <= alive[o][1]
        )
        placed[owner] = _gap(beside, need[owner])
    arena = max((placed[o] + need[o] for o in placed), default=0)
    offsets = tuple(
        placed.get(t.storage, 0) if t.kind == Kind.INNER and tensors[t.storage].kind == Kind.INNER else -1
        for t in tensors
    )
    return Profile(tuple(sizes), arena, offsets)


def _gap(taken: list[tuple[int, int]], size: int) -> int:
    """The lowest place for `size` bytes between what is taken (sorted by where it begins)."""
    place = 0
    for begin, group in itertools.groupby(taken, key=lambda t: t[0]):
        if begin - place >= size:
            return place
        place = max(place, *(end for _, end in group))
    return place
