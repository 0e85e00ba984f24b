"""What a launch is to cost, without a GPU: the longest of what moves, what multiplies and what waits.

A launch runs in waves: as many programs at once as the multiprocessors hold. Its time is that of whole waves at the
rate of arithmetic, of its tensors at the rate of memory, or of the tiles that programs read at the rate of the cache,
whichever is most, and the time of a launch as such. Rates are those of data sheets, reduced to what kernels like these
reach; they order candidates and promise nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from tapeout.targets.nvidia.fuse import numbers
from tapeout.targets.nvidia.kernels.source import HALF, Source
from tapeout.targets.nvidia.plan.expressions import value
from tapeout.targets.nvidia.plan.parts import DTYPES, Launch, Tensor

LAUNCH = 2.5  # microseconds of a launch as such
REACHED = 0.7  # of the rates below
CACHE = 3.0  # times the rate of memory
WHOLE = 64  # rows and columns of a tile from which on loads do not slow arithmetic down


class Machine(NamedTuple):
    """Multiprocessors, GB/s of memory, TFLOP/s of tensor cores on 16-bit operands, and of plain float32."""

    multiprocessors: int
    memory: float
    half: float
    single: float


# A100, Orin AGX, L40S, H100.
MACHINES = {
    80: Machine(108, 1555.0, 312.0, 19.5),
    87: Machine(16, 204.0, 42.0, 5.3),
    89: Machine(142, 864.0, 362.0, 91.0),
    90: Machine(132, 3350.0, 990.0, 67.0),
}
ORIGIN = "model"


def microseconds(
    launch: Launch, made: Source, tensors: Sequence[Tensor], sizes: Sequence[int], arch: int
) -> float:
    """What the launch is to take at these sizes of the symbols on `arch`."""
    machine = MACHINES[arch]
    counted = [math.prod(value(c, sizes) for c in tensors[i].shape) for i in (*launch.reads, *launch.writes)]
    moved = sum(
        n * DTYPES[tensors[i].dtype][1] for n, i in zip(counted, (*launch.reads, *launch.writes), strict=True)
    )
    programs = math.prod(value(code, sizes) for code in made.grid)
    waves = math.ceil(programs / (machine.multiprocessors * resident(made)))
    full = waves * machine.multiprocessors * resident(made) / max(programs, 1)  # idle in the last wave
    first = tensors[(*launch.reads, *launch.writes)[0]].dtype
    rate = machine.half if first in HALF else machine.half / 8
    arithmetic = flops(launch, made, sizes) / (rate * 1e6 * REACHED) * full
    memory = moved / (machine.memory * 1e3 * REACHED)
    size = DTYPES[first][1]
    cache = tile_elements(launch, made, sizes) * size * programs / (machine.memory * CACHE * 1e3 * REACHED)
    return LAUNCH + max(arithmetic, memory, cache)


def resident(made: Source) -> int:
    """Programs that a multiprocessor holds: their tiles of operands and sums share its memory and registers."""
    constants = made.constants
    if "BK" not in constants:
        return 8
    high, wide, deep = constants["BM"], constants["BN"], constants["BK"]
    shared = (high + wide) * deep * 4 * made.stages
    registers = high * wide * 4 * 2
    return max(1, min(8, (160 << 10) // shared, (256 << 10) // registers))


def flops(launch: Launch, made: Source, sizes: Sequence[int]) -> float:
    """Operations of a product, counting what tiles compute beyond its edges, and more for small tiles, which load
    more for each; 0 for what only moves."""
    if launch.operation == "attention":
        batch, heads, _, rows, columns = (value(code, sizes) for code in numbers(launch)[:5])
        depth = launch.attributes["depth"]
        assert isinstance(depth, tuple)
        return 2.0 * batch * heads * rows * columns * sum(map(int, depth))
    found = product(launch, sizes)
    if found is None:
        return 0.0
    batch, m, n, k = found
    high, wide = made.constants["BM"], made.constants["BN"]
    slow = max(1.0, WHOLE / math.sqrt(high * wide))
    return 2.0 * batch * -(-m // high) * high * -(-n // wide) * wide * k * slow


def tile_elements(launch: Launch, made: Source, sizes: Sequence[int]) -> int:
    """Elements of operands that one program of a product reads."""
    found = product(launch, sizes)
    return 0 if found is None else (made.constants["BM"] + made.constants["BN"]) * found[3]


def product(launch: Launch, sizes: Sequence[int]) -> tuple[int, int, int, int] | None:
    """Batch, rows, columns and depth of the product of matrices that a launch is, if it is one."""
    given = [value(code, sizes) for code in numbers(launch)]
    if launch.operation == "gemm":
        return given[0], given[1], given[2], given[3]
    if launch.operation != "conv":
        return None
    images, _, _, c, oh, ow, o = given[:7]
    group, kernel = launch.attributes["group"], launch.attributes["kernel"]
    assert isinstance(group, int) and isinstance(kernel, tuple)
    return group, images * oh * ow, o // group, math.prod(map(int, kernel)) * c // group
