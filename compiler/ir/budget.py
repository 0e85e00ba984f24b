"""How much a model may ask for, checked before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tapeout.compiler.errors import InvalidModelError, ResourceError

GIB = 1 << 30


@dataclass(frozen=True)
class Budget:
    """Limits on one model. The defaults are far above real models and far below what harms a machine.

    bytes: of all tensors together, as stored. elements: of one tensor. nodes: after functions are inlined.
    depth: of subgraphs and functions within each other. shell_bytes: of the model file without large tensors.
    dense_bytes: of a sparse tensor made dense. fold_bytes: of one result of constant folding.
    name_length: characters of one name. rank: dimensions of one tensor.
    """

    bytes: int = 32 * GIB
    elements: int = 1 << 34
    nodes: int = 1_000_000
    depth: int = 32
    shell_bytes: int = GIB // 4
    dense_bytes: int = GIB
    fold_bytes: int = GIB // 4
    name_length: int = 4096
    rank: int = 64

    def count(self, dims: Sequence[int], what: str) -> int:
        """The number of elements of a tensor with `dims`.

        Raises InvalidModelError for a negative dimension, ResourceError past `elements` or `rank`.
        """
        if len(dims) > self.rank:
            raise ResourceError(f"{what} has {len(dims)} dimensions, at most {self.rank} are allowed")
        if any(d < 0 for d in dims):
            raise InvalidModelError(f"{what} has the shape {list(dims)}: a dimension is negative")
        if any(d == 0 for d in dims):
            return 0
        count = math.prod(dims)
        if count > self.elements:
            raise ResourceError(
                f"{what} has the shape {list(dims)}, more than {self.elements} elements",
                hint="if the model is meant to be that large, raise Budget.elements",
            )
        return count
