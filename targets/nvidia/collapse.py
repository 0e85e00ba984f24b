"""Axes that stand together become one: an address costs a division for each axis.

copy, map over [.., a, b, ..] -> over [.., a*b, ..]   where every stride of a is b times that of b; axes of 1 go
"""

from __future__ import annotations

import dataclasses

from tapeout.targets.nvidia.fuse import numbers
from tapeout.targets.nvidia.plan import expressions as e
from tapeout.targets.nvidia.plan.expressions import Code
from tapeout.targets.nvidia.plan.parts import Argument, ArgumentKind, Launch

ZERO, ONE = e.number(0), e.number(1)


def collapsed(launch: Launch) -> Launch:
    """`launch` over as few axes as it can be; the same elements in the same order."""
    if launch.operation not in ("map", "copy"):
        return launch
    rank = launch.attributes["rank"]
    assert isinstance(rank, int)
    given = numbers(launch)
    count = len(launch.reads) if launch.operation == "map" else 2
    dims, rest = list(given[:rank]), given[(count + 1) * rank :]
    strides = [list(given[(k + 1) * rank : (k + 2) * rank]) for k in range(count)]
    axis = 0
    while axis < len(dims):
        if dims[axis] == ONE and len(dims) > 1:
            _drop(dims, strides, axis)
        elif axis + 1 < len(dims) and all(_stand_together(s, dims[axis + 1], axis) for s in strides):
            dims[axis + 1] = e.product([dims[axis], dims[axis + 1]])
            _drop(dims, strides, axis)
        else:
            axis += 1
    made = [*dims, *(code for s in strides for code in s), *rest]
    pointers = [a for a in launch.arguments if a.kind == ArgumentKind.TENSOR]
    integers = [Argument(ArgumentKind.INT64, code=code) for code in made]
    return dataclasses.replace(
        launch,
        attributes={**launch.attributes, "rank": len(dims)},
        arguments=(*pointers, *integers),
    )


def _stand_together(strides: list[Code], size: Code, axis: int) -> bool:
    outer, inner = strides[axis], strides[axis + 1]
    return outer == e.product([inner, size]) or outer == e.product([size, inner]) or outer == inner == ZERO


def _drop(dims: list[Code], strides: list[list[Code]], axis: int) -> None:
    del dims[axis]
    for own in strides:
        del own[axis]
