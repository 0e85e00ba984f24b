"""Which weights of a matrix may go: any (by ratio), N of each M in a row, or whole blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapeout.compiler.errors import UsageError

Array = np.ndarray[Any, Any]

FORMS = "a ratio such as 0.5, N:M such as 2:4, or blocks such as 1x4:0.5"


@dataclass(frozen=True)
class Pattern:
    """`ratio` is the share of weights that go. With `of` = M, `keep` = N in each run of M inputs stay; with
    `block` = (rows, columns), blocks of so many outputs and inputs go as a whole."""

    ratio: float
    keep: int = 0
    of: int = 0
    block: tuple[int, int] = (1, 1)

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """What a user writes: "0.5", "2:4" (two of four stay), "1x4:0.5". Raises UsageError."""
        if found := re.fullmatch(r"(\d+):(\d+)", text):
            keep, of = int(found[1]), int(found[2])
            if not 0 < keep < of:
                raise UsageError(
                    f"the pattern '{text}' keeps {keep} of each {of} weights", hint="as in 2:4 or 1:4"
                )
            return cls(1 - keep / of, keep, of)
        block = (1, 1)
        number = text
        if found := re.fullmatch(r"(\d+)x(\d+):(.+)", text):
            block, number = (int(found[1]), int(found[2])), found[3]
        try:
            ratio = float(number)
        except ValueError:
            raise UsageError(f"'{text}' is no pattern of zeros", hint=f"expected {FORMS}") from None
        if not 0 < ratio < 1 or min(block) < 1:
            raise UsageError(
                f"the ratio {number} lies outside (0, 1)", hint="it is the share of weights that become zero"
            )
        return cls(ratio, block=block)

    def __str__(self) -> str:
        if self.of:
            return f"{self.keep}:{self.of}"
        return (
            f"{self.ratio:g}" if self.block == (1, 1) else f"{self.block[0]}x{self.block[1]}:{self.ratio:g}"
        )

    @property
    def free(self) -> bool:
        """Whether each layer may have a ratio of its own."""
        return not self.of

    @property
    def width(self) -> int:
        """Inputs that are decided on together."""
        return self.of or self.block[1]

    def misfit(self, outputs: int, inputs: int) -> str | None:
        """Why the pattern does not divide a matrix [outputs, inputs]; None where it does."""
        if inputs % self.width:
            return f"{inputs} inputs are no multiple of {self.width}"
        if outputs % self.block[0]:
            return f"{outputs} outputs are no multiple of {self.block[0]}"
        return None

    def mask(self, score: Array, ratio: float | None = None, by_row: bool = False) -> Array:
        """Which weights stay, by the `score` [O, K] of each; `ratio` replaces the pattern's own, and `by_row`
        takes that share of each row (of blocks)."""
        outputs, inputs = score.shape
        if self.of:
            grouped = score.reshape(outputs, -1, self.of)
            order = np.argsort(np.argsort(-grouped, axis=-1, kind="stable"), axis=-1, kind="stable")
            return (order < self.keep).reshape(score.shape)
        rows, columns = self.block
        blocks = score.reshape(outputs // rows, rows, inputs // columns, columns).sum((1, 3))
        share = self.ratio if ratio is None else ratio
        stay = np.ones(blocks.shape, bool)
        if by_row:
            order = np.argsort(blocks, axis=1, kind="stable")[:, : round(share * blocks.shape[1])]
            np.put_along_axis(stay, order, False, axis=1)
        else:
            stay.reshape(-1)[smallest(blocks.reshape(-1), round(share * blocks.size))] = False
        return np.repeat(np.repeat(stay, rows, 0), columns, 1)


def smallest(score: Array, count: int) -> Array:
    """Where the `count` smallest of `score` [N] are; of equal ones the first."""
    if not 0 < count < score.size:
        return np.arange(score.size if count else 0)
    bound = np.partition(score, count - 1)[count - 1]
    below = np.flatnonzero(score < bound)
    return np.concatenate([below, np.flatnonzero(score == bound)[: count - len(below)]])
