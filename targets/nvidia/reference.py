"""What every operation of a plan computes, in NumPy. Real numbers are accumulated in float32 and rounded once.

A kernel gets the tensors that a launch reads and writes (these it fills), its numbers and its attributes;
docs/nvidia-plan.md lists what they are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tapeout.targets.nvidia.programs import evaluate, widened

Array = np.ndarray[Any, Any]
Arrays = Sequence[Array]
Numbers = Sequence[int]
Facts = Mapping[str, Any]


def strided(array: Array, dims: Sequence[int], strides: Sequence[int], offset: int = 0) -> Array:
    """Elements offset + i . strides for i in dims. Raises IndexError where one lies outside of the array."""
    flat = array.reshape(-1)
    ends = [(d - 1) * s for d, s in zip(dims, strides, strict=True)]
    low, high = offset + sum(min(e, 0) for e in ends), offset + sum(max(e, 0) for e in ends)
    if math.prod(dims) and not 0 <= low <= high < flat.size:
        raise IndexError(f"elements {low} to {high} of a tensor of {flat.size}")
    if not math.prod(dims):
        return np.empty(dims, array.dtype)
    return np.lib.stride_tricks.as_strided(
        flat[offset:], tuple(dims), tuple(s * array.itemsize for s in strides)
    )


def copy(reads: Arrays, writes: Arrays, numbers: Numbers, facts: Facts) -> None:
    rank = facts["rank"]
    dims, source, target = (numbers[i * rank : (i + 1) * rank] for i in range(3))
    offset, place = numbers[3 * rank :]
    strided(writes[0], dims, target, place)[...] = strided(reads[0], dims, source, offset)


def fill(reads: Arrays, writes: Arrays, numbers: Numbers, facts: Facts) -> None:
    writes[0].reshape(-1)[: numbers[0]] = facts["value"]


def sizes(reads: Arrays, writes: Arrays, numbers: Numbers, facts: Facts) -> None:
    writes[0].reshape(-1)[:] = numbers


def map_(reads: Arrays, writes: Arrays, numbers: Numbers, facts: Facts) -> None:
    rank = facts["rank"]
    dims = numbers[:rank]
    values = [strided(x, dims, numbers[(i + 1) * rank : (i + 2) * rank]) for i, x in enumerate(reads)]
    writes[0].reshape(dims)[...] = evaluate(facts["program"], values)


def gather(reads: Arrays, writes: Arrays, numbers: Numbers, facts: Facts) -> None:
    outer, size, inner, count = numbers
    indices = reads[1].reshape(count).astype(np.int64)
    indices = np.where(indices < 0, indices + size, indices)
    inside: Array = np.logical_and(indices >= 0, indices < size)
    data = reads[0].reshape(outer, size, inner)
    taken = data[:, np.where(inside, indices, 0)] if size else np.zeros((outer, count, inner), data.dtype)
    writes[0].reshape(outer, count, inner)[...] = np.where(inside[:, None], taken, np.zeros((), data.dtype))


def gather_elements(reads: Arrays, writes: Arrays, numbers: Numbers, facts: Facts) -> None:
    rank, axis = facts["rank"], facts["axis"]
    dims, steps, size = numbers[:rank], numbers[rank : 2 * rank], numbers[-1]
    indices = reads[1].reshape(dims).astype(np.int64)
    indices = np.where(indices < 0, indices + size, indices)
    inside: Array = np.logical_and(indices >= 0, indices < size)
    places = np.where(inside, indices, 0) * steps[axis]
    for other in range(rank):
        if other != axis:
            along = np.arange(dims[other]) * steps[other]
            places = places + along.reshape([-1 if i == other else 1 for i in range(rank)])
    data = reads[0].reshape(-1)
    taken = data[places] if data.size else np.zeros(dims, data.dtype)
    writes[0].reshape(dims)[...] = np.where(inside, taken, np.zeros((), data.dtype))


def gather_nd(reads: Arrays, writes: Arrays, numbers: Numbers, facts: Facts) -> None:
    depth = facts["depth"]
    dims, (inner, count) = numbers[:depth], numbers[depth:]
    indices = reads[1].reshape(count, depth).astype(np.int64)
    indices = np.where(indices < 0, indices + np.array(dims), indices)
    inside: Array = np.all(np.logical_and(indices >= 0, indices < np.array(dims)), axis=1)
    places = np.where(inside[:, None], indices, 0)
    taken = reads[0].reshape(*dims, inner)[tuple(places.T)]
    writes[0].reshape(count, inner)[...] = np.where(inside[:, None], taken, np.zeros((), taken.dtype))


REDUCE: dict[str, Callable[[Array], Array]] = {
    "sum": lambda x: x.sum(1, dtype=x.dtype),
    "mean": lambda x: x.mean(1, dtype=x.dtype),
    "max": lambda x: x.max(1),
    "min": lambda x: x.min(1),
    "prod": lambda x: x.prod(1, dtype=x.dtype),
    "l1": lambda x: np.abs(x).sum(1, dtype=x.dtype),
    "l2": lambda x: np.sqrt(np.square(x).sum(1, dtype=x.dtype)),
    "squares": lambda x: np.square(x).sum(1, dtype=x.dtype),
    "logsum": lambda x: np.log(x.sum(1, dtype=x.dtype)),
}


def reduce(reads: Arrays, writes: Arrays, numbers: Numbers, facts: Facts) -> None:
    outer, count, inner = numbers
    x, kind = widened(reads[0]).reshape(outer, count, inner), facts["kind"]
    if kind.startswith("arg"):
        find = np.argmax if kind == "argmax" else np.argmin
        found = count - 1 - find(x[:, ::-1], 1) if facts["last"] else find(x, 1)
    elif kind == "logsumexp":
        most = x.max(1, keepdims=True)
        most = np.where(np.isfinite(most), most, 0)
        found = np.log(np.exp(x - most).sum(1)) + most[:, 0]
    else:
        found = REDUCE[kind](x)
    writes[0].reshape(outer, inner)[...] = found


def softmax(reads: Arrays, writes: Arrays, numbers: Numbers, facts: Facts) -> None:
    x = widened(reads[0]).reshape(numbers)
    shifted = x - x.max(1, keepdims=True, initial=-np.inf)
    powers = np.exp(shifted)
    total = powers.sum(1, keepdims=True)
    writes[0].reshape(numbers)[...] = shifted - np.log(total) if facts["log"] else powers / total


def normalize(reads: Arrays, writes: Arrays, numbers: Numbers, facts: Facts) -> None:
    x = widened(reads[0]).reshape(numbers)
    centred = x if facts["rms"] else x - x.mean(1, keepdims=True)
    made = centred / np.sqrt(np.square(centred).mean(1, keepdims=True) + np.float32(facts["epsilon"]))
    made = made * widened(reads[1]).reshape(-1) if len(reads) > 1 else made
    made = made + widened(reads[2]).reshape(-1) if len(reads) > 2 else made
    writes[0].reshape(numbers)[...] = made


def gemm(reads: Arrays, writes: Arrays, numbers: Numbers, facts: Facts) -> None:
    batch, m, n, k = numbers[:4]
    a = strided(widened(reads[0]), (batch, m, k), numbers[4:7])
    b = strided(widened(reads[1]), (batch, k, n), numbers[7:10])
    extras = [strided(x, (batch, m, n), numbers[10 + 3 * i : 13 + 3 * i]) for i, x in enumerate(reads[2:])]
    product = np.matmul(a, b) if k else np.zeros((batch, m, n), a.dtype)
    writes[0].reshape(batch, m, n)[...] = evaluate(facts["program"], [product, *extras])


def attention(reads: Arrays, writes: Arrays, numbers: Numbers, facts: Facts) -> None:
    batch, heads, groups, rows, columns = numbers[:5]
    depth, wide = facts["depth"]
    steps = [(*numbers[5 + 3 * i : 8 + 3 * i], 1) for i in range(4)]
    shapes = ((heads, rows, depth), (groups, columns, depth), (groups, columns, wide))
    q, k, v = (
        strided(widened(x), (batch, *s), t) for x, s, t in zip(reads[:3], shapes, steps[:3], strict=True)
    )
    k, v = (np.repeat(x, heads // groups, 1) for x in (k, v))
    scores = np.matmul(q, k.transpose(0, 1, 3, 2)) * np.float32(facts["scale"])
    if len(reads) > 3:
        mask = strided(reads[3], scores.shape, numbers[17:21])
        scores = np.where(mask, scores, -np.inf) if mask.dtype == np.bool_ else scores + widened(mask)
    if facts["causal"]:
        scores = np.where(np.tri(rows, columns, dtype=np.bool_), scores, -np.inf)
    most = scores.max(-1, keepdims=True, initial=-np.inf)
    powers = np.exp(scores - np.where(np.isneginf(most), 0, most))
    total = powers.sum(-1, keepdims=True)
    made = np.matmul(powers / np.where(total == 0, 1, total), v)
    strided(writes[0], (batch, heads, rows, wide), steps[3])[...] = made


def conv(reads: Arrays, writes: Arrays, numbers: Numbers, facts: Facts) -> None:
    n, h, w, c, oh, ow, o = numbers[:7]
    x, kernel, group = widened(reads[0]), widened(reads[1]), facts["group"]
    padded = _padded(x.reshape(n, h, w, c), facts, oh, ow, 0.0)
    columns = _windows(padded, facts, oh, ow)  # [N, OH, OW, KH, KW, C]
    per = c // group
    columns = columns.reshape(n * oh * ow, math.prod(facts["kernel"]), group, per)
    weights = kernel.reshape(group, o // group, -1, per)
    if per == 1:
        product = np.einsum("pkg,gok->pgo", columns[..., 0], weights[..., 0])
    else:
        flat = columns.transpose(2, 0, 1, 3).reshape(group, n * oh * ow, -1)
        product = np.matmul(flat, weights.reshape(group, o // group, -1).transpose(0, 2, 1)).transpose(
            1, 0, 2
        )
    result = product.reshape(n * oh * ow, o)
    extras = [strided(e, result.shape, numbers[7 + 2 * i : 9 + 2 * i]) for i, e in enumerate(reads[2:])]
    writes[0].reshape(result.shape)[...] = evaluate(facts["program"], [result, *extras])


def pool(reads: Arrays, writes: Arrays, numbers: Numbers, facts: Facts) -> None:
    n, h, w, c, oh, ow = numbers
    x = widened(reads[0]).reshape(n, h, w, c)
    if facts["kind"] == "max":
        least: Any = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
        found = _windows(_padded(x, facts, oh, ow, least), facts, oh, ow).max((3, 4))
    else:
        total = _windows(_padded(x, facts, oh, ow, 0.0), facts, oh, ow).sum((3, 4))
        inside = np.ones((1, h, w, 1), np.float32)
        if facts["padding"]:  # pads count, but what lies beyond them does not
            top, left, bottom, right = facts["pads"]
            inside = np.pad(inside, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=1.0)
            bare = {**facts, "pads": (0, 0, 0, 0)}
            counts = _windows(_padded(inside, bare, oh, ow, 0.0), bare, oh, ow).sum((3, 4))
        else:
            counts = _windows(_padded(inside, facts, oh, ow, 0.0), facts, oh, ow).sum((3, 4))
        found = total / counts
    writes[0].reshape(n, oh, ow, c)[...] = found


def _padded(x: Array, facts: Facts, oh: int, ow: int, value: float) -> Array:
    """`x` with its pads, and as much more behind as the last windows reach."""
    top, left, bottom, right = facts["pads"]
    need = [
        (out - 1) * stride + (size - 1) * dilation + 1
        for out, stride, size, dilation in zip(
            (oh, ow), facts["strides"], facts["kernel"], facts["dilations"], strict=True
        )
    ]
    bottom = max(bottom, need[0] - x.shape[1] - top)
    right = max(right, need[1] - x.shape[2] - left)
    return np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=value)


def _windows(x: Array, facts: Facts, oh: int, ow: int) -> Array:
    """[N, OH, OW, KH, KW, C] of what the windows see."""
    (kh, kw), (sh, sw), (dh, dw) = facts["kernel"], facts["strides"], facts["dilations"]
    n, _, _, c = x.shape
    made = np.empty((n, oh, ow, kh, kw, c), x.dtype)
    for i, j in itertools.product(range(kh), range(kw)):
        seen = x[:, i * dh : i * dh + (oh - 1) * sh + 1 : sh, j * dw : j * dw + (ow - 1) * sw + 1 : sw]
        made[:, :, :, i, j] = seen
    return made


KERNELS: dict[str, Callable[[Arrays, Arrays, Numbers, Facts], None]] = {
    "copy": copy, "fill": fill, "sizes": sizes, "map": map_, "gather": gather,
    "gather_elements": gather_elements, "gather_nd": gather_nd, "reduce": reduce,
    "softmax": softmax, "normalize": normalize, "gemm": gemm, "conv": conv, "depthwise": conv, "pool": pool,
    "attention": attention,
}  # fmt: skip
