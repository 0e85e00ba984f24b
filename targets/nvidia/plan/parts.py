"""What a plan is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from tapeout.targets.nvidia.plan.expressions import Code

VERSION = 1
ALIGNMENT = 256  # of every tensor in the arena and of every weight
NOWHERE = (1 << 64) - 1  # the arena offset of what does not lie there

Value = int | float | str | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]

# Types of elements by their number in the file, with their bytes.
DTYPES = {
    "float32": (1, 4), "float16": (2, 2), "bfloat16": (3, 2), "float64": (4, 8),
    "int8": (5, 1), "uint8": (6, 1), "int16": (7, 2), "uint16": (8, 2),
    "int32": (9, 4), "uint32": (10, 4), "int64": (11, 8), "uint64": (12, 8), "bool": (13, 1),
}  # fmt: skip


class Kind(IntEnum):
    """Where a tensor lies."""

    INPUT = 0  # the caller's
    OUTPUT = 1  # the caller's
    WEIGHT = 2
    INNER = 3  # in the arena


class ArgumentKind(IntEnum):
    """What a kernel is handed."""

    TENSOR = 0  # the address of a tensor
    INT32 = 1
    INT64 = 2
    FLOAT32 = 3


@dataclass(frozen=True)
class Weight:
    """A constant: `size` bytes of it lie at `offset` in the weights, and have this sha256."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int
    sha256: bytes


@dataclass(frozen=True)
class Tensor:
    """A tensor of `shape`, in row-major order. `weight` is its number among the weights where it is one; `storage`
    the tensor whose bytes it shares from the first on, itself where it has its own."""

    name: str
    dtype: str
    kind: Kind
    shape: tuple[Code, ...]
    storage: int
    weight: int = -1


@dataclass(frozen=True)
class Argument:
    """One argument of a kernel: the number of a tensor, a code, or a float."""

    kind: ArgumentKind
    tensor: int = -1
    code: Code = ()
    number: float = 0.0


@dataclass(frozen=True)
class Launch:
    """One step: what it computes (`operation` with `attributes`, which the CPU executor interprets), and how it is
    launched. `kernel` is the number of a group of kernels, one for each architecture; -1 where nothing is launched."""

    operation: str
    attributes: Mapping[str, Value]
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    sources: tuple[str, ...]
    kernel: int = -1
    grid: tuple[Code, Code, Code] = ((0,), (0,), (0,))
    arguments: tuple[Argument, ...] = ()
    tactic: int = -1


@dataclass(frozen=True)
class Kernel:
    """The machine code of one kernel for one architecture (90 is sm_90). `parameters` are offset and bytes of each;
    bytes of dynamic shared memory; `spills` are bytes of registers in memory, for each thread."""

    group: int
    arch: int
    symbol: str
    image: bytes
    shared: int
    warps: int
    registers: int
    spills: int
    parameters: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Tactic:
    """Which of several kernels was chosen, what it is to cost in microseconds, and who says so: "model" or
    "measured on ..."."""

    name: str
    microseconds: float
    origin: str


@dataclass(frozen=True)
class Profile:
    """Least, best and most of each symbol; where tensors lie in an arena of `arena` bytes for all sizes within."""

    sizes: tuple[tuple[int, int, int], ...]
    arena: int
    offsets: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """A whole plan but for the bytes of its weights."""

    symbols: tuple[str, ...]
    profiles: tuple[Profile, ...]
    weights: tuple[Weight, ...]
    tensors: tuple[Tensor, ...]
    launches: tuple[Launch, ...]
    kernels: tuple[Kernel, ...] = ()
    tactics: tuple[Tactic, ...] = ()
    meta: Mapping[str, str] = field(default_factory=dict)

    @property
    def architectures(self) -> tuple[int, ...]:
        """The architectures that it has kernels for, in order."""
        return tuple(sorted({k.arch for k in self.kernels}))

    def named(self, kind: Kind) -> dict[str, Tensor]:
        """The tensors of a kind by name, in order."""
        return {t.name: t for t in self.tensors if t.kind == kind}

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights, padding included."""
        return max((w.offset + padded(w.size) for w in self.weights), default=0)


def padded(size: int, to: int = ALIGNMENT) -> int:
    """`size` rounded up to a multiple of `to`."""
    return -(-size // to) * to
