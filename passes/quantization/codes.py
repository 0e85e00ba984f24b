"""Weights as integer codes with scales, chunk by chunk: nothing larger than a chunk is held beside the result.

    q = clip(round(w / s), lowest, highest);   w ~ q s

`s` is for an output channel, or for a block of the inputs of one. The scale of plain rounding lets the largest
magnitude just fit; `searched` ones have the least squared error among `SHRINKS` of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

Array = np.ndarray[Any, Any]

# Elements that are worked on together: they stay in the cache.
CHUNK = 1 << 17
# No scale is smaller: its square is still a normal number.
LEAST = 2.0**-60
# Shares of the plain scale that a search tries.
SHRINKS = (1.0, 0.94, 0.88, 0.82, 0.76, 0.7)
COARSE = (*SHRINKS, 0.64, 0.58, 0.52, 0.46, 0.4, 0.34)


class Grid(NamedTuple):
    """Codes of `dtype` with `bits` bits (0: all that it has); `block` inputs share a scale, 0: all of a channel."""

    dtype: ir.DataType
    bits: int = 0
    block: int = 0

    @property
    def width(self) -> int:
        return self.bits or self.dtype.bitwidth

    @property
    def highest(self) -> int:
        return (1 << (self.width - 1)) - 1

    @property
    def lowest(self) -> int:
        """8-bit weights leave out the lowest code, which kernels do not expect; fewer bits need every level."""
        return -self.highest if self.width >= 8 else -self.highest - 1


def matrix(array: Array, axis: int) -> Array:
    """`array` as [O, K] float32, outputs along `axis`."""
    moved = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    return moved.astype(np.float32, copy=False)


def scales(weight: Array, grid: Grid, search: bool = False) -> Array:
    """The scales [O] or, in blocks, [O, K / block] of a matrix [O, K]; those of blocks are representable in
    float16 and bfloat16 both, as kernels store them in the one and compute with the other."""
    rows, size = weight.shape
    parts = size // grid.block if grid.block else 1
    found = np.empty((rows, parts), np.float32)
    for part, piece in _pieces(weight, grid.block or size):
        largest = _largest(piece)
        scale = largest / np.float32(grid.highest)
        if search:
            scale = _searched(piece, scale, grid)
        found.reshape(-1)[part] = scale
    found = np.maximum(found, np.float32(LEAST))
    return storable(found) if grid.block else found[:, 0]


def storable(scale: Array) -> Array:
    """The nearest numbers that bfloat16 and float16 both represent (above 2**-14; below, as float16 does)."""
    bits = np.ascontiguousarray(scale, np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    least = np.float32(2.0**-24)
    made: Array = np.clip(rounded, least, 65280).astype(np.float16).astype(np.float32)
    return np.maximum(made, least)


def codes(weight: Array, scale: Array, grid: Grid) -> Array:
    """The nearest codes of a matrix [O, K], int8 [O, K]."""
    rows, size = weight.shape
    width = grid.block or size
    made = np.empty((rows, size), np.int8)
    flat, inverse = made.reshape(-1, width), (np.float32(1) / scale.astype(np.float32)).reshape(-1)
    for part, piece in _pieces(weight, width):
        real = piece * inverse[part, None]
        np.rint(real, out=real)
        np.clip(real, grid.lowest, grid.highest, out=real)
        flat[part] = real
    return made


def packed(array: Array, dtype: ir.DataType) -> ir.TensorProtocol:
    """Codes (int8) as a tensor of `dtype`: two or four to a byte, the first in the lowest bits."""
    per = 8 // dtype.bitwidth
    if per == 1:
        return ir.Tensor(np.ascontiguousarray(array, dtype.numpy()), dtype=dtype)
    flat = array.reshape(-1).view(np.uint8)
    if flat.size % per:
        flat = np.concatenate([flat, np.zeros(-flat.size % per, np.uint8)])
    if per == 2:
        pairs = np.ascontiguousarray(flat).view(np.dtype("<u2"))
        both = (pairs & np.uint16(0xF)) | ((pairs >> np.uint16(4)) & np.uint16(0xF0))
        return ir.PackedTensor(both.astype(np.uint8), dtype, shape=array.shape)
    mask, shift = np.uint8((1 << dtype.bitwidth) - 1), dtype.bitwidth
    made = flat[0::per] & mask
    for i in range(1, per):
        made |= (flat[i::per] & mask) << np.uint8(i * shift)
    return ir.PackedTensor(made, dtype, shape=array.shape)


def unpacked(tensor: ir.TensorProtocol) -> Array:
    """Codes as int8, whatever they are packed in."""
    array = tensor.numpy()
    return array if array.dtype == np.int8 else array.astype(np.int8)


def real(array: Array, scale: Array, block: int) -> Array:
    """What codes [O, K] with `scale` [O] or [O, K / block] stand for, float32."""
    if not block:
        return array.astype(np.float32) * scale.reshape(-1, 1).astype(np.float32)
    rows = array.astype(np.float32).reshape(len(array), -1, block)
    made: Array = (rows * scale.reshape(len(array), -1, 1).astype(np.float32)).reshape(array.shape)
    return made


def _pieces(weight: Array, width: int) -> Iterator[tuple[slice, Array]]:
    """Chunks of the groups [G, width] of a matrix, with their place among all groups."""
    flat = weight.reshape(-1, width)
    step = max(1, CHUNK // width)
    for start in range(0, len(flat), step):
        yield slice(start, min(start + step, len(flat))), flat[start : start + step]


def _largest(piece: Array) -> Array:
    """The largest magnitude of each row, by halves where rows are short (numpy is slow on those)."""
    rest = np.abs(piece)
    while rest.shape[1] > 1 and rest.shape[1] <= 256 and rest.shape[1] % 2 == 0:
        half = rest.shape[1] // 2
        rest = np.maximum(rest[:, :half], rest[:, half:])
    made: Array = rest.max(axis=1) if rest.shape[1] > 1 else rest[:, 0]
    return made


def _searched(piece: Array, scale: Array, grid: Grid) -> Array:
    """The best of some shares of `scale` for each row."""
    scale = np.maximum(scale, np.float32(LEAST))
    best, least = scale, np.full(len(piece), np.inf, np.float32)
    for shrink in SHRINKS if grid.width >= 4 else COARSE:
        tried = scale * np.float32(shrink)
        if grid.block:
            tried = storable(tried)
        real = piece * (np.float32(1) / tried)[:, None]
        whole = np.clip(np.rint(real), grid.lowest, grid.highest)
        whole -= real
        error = np.einsum("ij,ij->i", whole, whole) * tried * tried
        better = error < least
        best, least = np.where(better, tried, best), np.where(better, error, least)
    return best
