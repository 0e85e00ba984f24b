"""Fourier transforms as products with constant matrices, for lengths that are numbers.

DFT(x)               -> MatMul(x over [n, re/im], F),  F[t, k] = exp(-+2 pi i t k / L), padded or cut to L
STFT(x, step, w)     -> Conv(x, w F, stride=step), F of one frame
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.rewriting import Builder, NodeRule

# Matrices of more elements cost more than a transform would.
LIMIT = 1 << 24


def matrix(samples: int, length: int, components: int, onesided: bool, inverse: bool) -> np.ndarray[Any, Any]:
    """F in float64, [samples, components, bins, 2]: what part c of sample t adds to part d of bin k."""
    bins = length // 2 + 1 if onesided else length
    angle = 2 * np.pi * ((np.arange(samples)[:, None] * np.arange(bins)[None, :]) % length) / length
    cos, sin = np.cos(angle), np.sin(angle) * (1.0 if inverse else -1.0)
    full = np.empty((samples, components, bins, 2))
    full[:, 0, :, 0], full[:, 0, :, 1] = cos, sin
    if components == 2:
        full[:, 1, :, 0], full[:, 1, :, 1] = -sin, cos
    return full / length if inverse else full


def onesided_inverse(samples: int, length: int) -> np.ndarray[Any, Any]:
    """[samples, 2, length, 1]: the real signal of `length` from the first half of its spectrum."""
    angle = 2 * np.pi * ((np.arange(samples)[:, None] * np.arange(length)[None, :]) % length) / length
    weight = np.full((samples, 1), 2.0)
    weight[0] = 1.0
    if length % 2 == 0 and samples > length // 2:
        weight[length // 2] = 1.0
    return np.stack([np.cos(angle) * weight, -np.sin(angle) * weight], axis=1)[..., None] / length


class DFT(NodeRule):
    """DFT(x) -> MatMul(x over [n, re/im], F)"""

    ops = ("DFT",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        x, shape = node.inputs[0], g.dims(node.inputs[0])
        given, where = (*node.inputs, None, None)[1:3]
        if x is None or x.dtype is None or shape is None:
            return "the shape is not known"
        axis = -2 if where is None else g.scalar(where)
        length = None if given is None else g.scalar(given)
        if axis is None or (given is not None and length is None):
            return "axis or length are computed"
        rank, components = len(shape), shape[-1]
        axis = int(axis) % rank
        size = shape[axis]
        if not isinstance(size, int) or components not in (1, 2):
            return "the size of the axis is not a number"
        inverse, onesided = g.attribute(node, "inverse", 0), g.attribute(node, "onesided", 0)
        if inverse and onesided:
            length = int(length or 2 * (size - 1))
            samples = min(size, length // 2 + 1)
            if components != 2:
                return "a one-sided inverse of real numbers"
            full = onesided_inverse(samples, length)
        else:
            length = int(length or size)
            samples = min(size, length)
            full = matrix(samples, length, int(components), bool(onesided), bool(inverse))
        if full.size > LIMIT:
            return f"a matrix of {full.size} elements"
        perm = [i for i in range(rank) if i not in (axis, rank - 1)] + [axis, rank - 1]
        y: Any = x if perm == list(range(rank)) else op.Transpose(x, perm=perm)
        lead = [0] * (rank - 2)
        if samples < size:
            bounds = [np.array([n], np.int64) for n in (0, samples, rank - 2)]
            y = op.Slice(y, *bounds)
        y = op.Reshape(y, np.array([*lead, samples * int(components)], np.int64))
        flat = full.reshape(full.shape[0] * full.shape[1], -1)
        y = op.MatMul(y, op.constant(flat, x.dtype, hint="fourier"))
        y = op.Reshape(y, np.array([*lead, full.shape[2], full.shape[3]], np.int64))
        if perm != list(range(rank)):
            y = op.Transpose(y, perm=[perm.index(i) for i in range(rank)])
        return y


class STFT(NodeRule):
    """STFT(x, step, w) -> Conv(x, w F, stride=step)"""

    ops = ("STFT",)

    def rewrite(self, op: Builder, node: ir.Node) -> Any:
        x, step, window, given = (*node.inputs, None, None)[:4]
        shape, hop = g.dims(x), g.scalar(step)
        taps = None if window is None else g.constant(window, LIMIT)
        length = g.scalar(given) if given is not None else None if taps is None else len(taps)
        if x is None or x.dtype is None or shape is None or len(shape) != 3 or shape[2] not in (1, 2):
            return "the shape is not known"
        if hop is None or length is None or (window is not None and taps is None):
            return "step, window or frame length are computed"
        count, components = int(length), int(shape[2])
        full = matrix(count, count, components, bool(g.attribute(node, "onesided", 1)), inverse=False)
        if taps is not None:
            if len(taps) != count:
                return "the window has another length than the frame"
            full = full * taps.astype(np.float64)[:, None, None, None]
        bins = full.shape[2]
        kernel = full.transpose(2, 3, 1, 0).reshape(2 * bins, components, count)
        signal = op.Transpose(x, perm=[0, 2, 1])
        weight = op.constant(kernel, x.dtype, hint="fourier")
        frames = op.Conv(signal, weight, strides=[int(hop)], kernel_shape=[count])
        return op.Reshape(op.Transpose(frames, perm=[0, 2, 1]), np.array([0, 0, bins, 2], np.int64))


FOURIER = (DFT(), STFT())
