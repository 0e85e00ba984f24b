"""How a node lies in hardware: the geometry of its sliding window, and the words of its memories."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

from tapeout.targets.fpga.dialect import (
    Array,
    AveragePool,
    Conv,
    Dense,
    Depthwise,
    Folded,
    MaxPool,
    Node,
    Requantize,
    Tensor,
    Window,
)

# Cycles from the last read of a row to the first read of the row that takes its place in a ring.
TURNAROUND = 4


@dataclass(frozen=True)
class Geometry:
    """A sliding window over an image of `height` rows of `width` pixels of `groups` beats. `rows` of them lie in the
    ring, the window of each output pixel is read `repeat` times; `groupwise`: all of a group before the next."""

    height: int
    width: int
    groups: int
    out: tuple[int, int]
    window: Window
    rows: int
    repeat: int = 1
    groupwise: bool = False

    @property
    def beats(self) -> int:
        """Beats that the ring holds."""
        return self.rows * self.width * self.groups

    @property
    def taps(self) -> int:
        return prod(self.window.kernel)


def geometry(node: Node, x: Tensor) -> Geometry | None:
    """The sliding window before `node`, whose input is `x`; None for nodes without one.

    Where a window is one pixel, every pixel is a row of its own: the ring is a double buffer of pixels.
    """
    lanes, out = node.inputs[0].lanes, node.output.shape[:2]
    if isinstance(node, Dense):
        return _pixelwise(1, x.elements // lanes, folds(node))
    if isinstance(node, Conv) and node.window == Window((1, 1), fill=node.window.fill):
        return _pixelwise(x.pixels, x.channels // lanes, folds(node))
    if not isinstance(node, Conv | Depthwise | MaxPool | AveragePool):
        return None
    window, groupwise = node.window, not isinstance(node, Conv)
    rows = (window.kernel[0] - 1) * window.dilations[0] + 1 + window.strides[0]
    repeat = 1 if groupwise else folds(node)
    return Geometry(*x.shape[:2], x.channels // lanes, out, window, rows, repeat, groupwise)


def _pixelwise(pixels: int, groups: int, repeat: int) -> Geometry:
    idle = max(0, TURNAROUND - (repeat - 1) * groups)  # cycles that two pixels cannot bridge
    return Geometry(pixels, 1, groups, (pixels, 1), Window((1, 1)), 2 + -(-idle // groups), repeat)


def folds(node: Node) -> int:
    """How many groups of outputs a folded node computes one after another."""
    return node.output.channels // node.pe if isinstance(node, Folded) else 1


def weight_words(node: Conv | Dense | Depthwise) -> Array:
    """The words of a weight memory: int8 [groups x beats, pe x simd], the lowest bits first."""
    flat = node.weights.reshape(len(node.weights), -1)
    outs, taken = flat.shape
    turned = flat.reshape(outs // node.pe, node.pe, taken // node.simd, node.simd).transpose(0, 2, 1, 3)
    return turned.reshape(-1, node.pe * node.simd)


def signed_bits(values: Iterable[int]) -> int:
    """The bits of the smallest signed number that holds all `values`."""
    return max((v if v >= 0 else ~v).bit_length() for v in map(int, values)) + 1


@dataclass(frozen=True, eq=False)
class Codes:
    """A memory of codes: int8 [depth, codes of a word], the first code lowest."""

    words: Array

    def hex_lines(self) -> bytes:
        """The words in hexadecimal, one a line."""
        turned = np.ascontiguousarray(self.words.astype(np.int8)[:, ::-1])
        return "".join(row.tobytes().hex() + "\n" for row in turned).encode()


@dataclass(frozen=True, eq=False)
class Scaling:
    """The memory of `lanes` requantizers: by channel bias, multiplier (or its exponent), offset, number of table."""

    bias: Array
    form: Requantize
    accumulator: int
    lanes: int = 1

    @cached_property
    def multipliers(self) -> list[int]:
        """The multipliers; for power-of-two forms their exponents."""
        whole = [int(m) for m in self.form.multiplier]
        return [m.bit_length() - 1 for m in whole] if self.form.ties_to_even else whole

    @cached_property
    def fields(self) -> list[tuple[int, int, int, int]]:
        """Of each channel: bias, multiplier, offset, the number of its table plus one, or 0."""
        numbers = {channel: i + 1 for i, channel in enumerate(sorted(self.form.tables))}
        return [
            (int(b), m, int(o), numbers.get(c, 0))
            for c, (b, m, o) in enumerate(zip(self.bias, self.multipliers, self.form.offset, strict=True))
        ]

    @cached_property
    def widths(self) -> tuple[int, int, int, int]:
        """Bits of the fields."""
        return (
            signed_bits(self.bias),
            max(1, *(m.bit_length() for m in self.multipliers)),
            signed_bits(self.form.offset),
            len(self.form.tables).bit_length(),
        )

    @cached_property
    def total_bits(self) -> int:
        """Signed bits that hold accumulator * multiplier + offset (+ 1) of every channel."""
        largest = int(max(self.form.multiplier)) << (self.accumulator - 1)
        return signed_bits([largest + max(abs(int(o)) for o in self.form.offset) + 1])

    def hex_lines(self) -> bytes:
        """The words in hexadecimal, each of the fields of `lanes` channels."""
        words = [join(zip(f, self.widths, strict=True)) for f in self.fields]
        bits, firsts = sum(self.widths), range(0, len(words), self.lanes)
        made = (join((w, bits) for w in words[i : i + self.lanes]) for i in firsts)
        return "".join(f"{word:x}\n" for word in made).encode()


@dataclass(frozen=True, eq=False)
class Tables:
    """The memory of a requantizer's tables: 256 words for each, of which the last may be unused."""

    form: Requantize
    accumulator: int

    @cached_property
    def entries(self) -> list[int]:
        return [int(t) for _, table in sorted(self.form.tables.items()) for t in np.resize(table, 256)]

    def hex_lines(self) -> bytes:
        """The words in hexadecimal, one table after another."""
        return "".join(f"{join([(e, self.accumulator)]):x}\n" for e in self.entries).encode()


def join(fields: Iterable[tuple[int, int]]) -> int:
    """One word of fields (value, bits), the first in the lowest bits."""
    word = place = 0
    for value, bits in fields:
        word |= (value & ((1 << bits) - 1)) << place
        place += bits
    return word
