"""Plans for tests: drawn by hypothesis, and one by hand."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tapeout.targets.nvidia.plan import expressions as e
from tapeout.targets.nvidia.plan.edit import weight
from tapeout.targets.nvidia.plan.parts import (
    DTYPES,
    Argument,
    ArgumentKind,
    Kernel,
    Kind,
    Launch,
    Plan,
    Profile,
    Tactic,
    Tensor,
    padded,
)
from tapeout.targets.nvidia.plan.write import write

N = (e.SYMBOL,)  # the first symbol
Arrays = dict[str, np.ndarray[Any, Any]]


def small() -> tuple[Plan, Arrays]:
    """y = relu(x @ w + b) for x of [N, 8], through one inner tensor."""
    rng = np.random.default_rng(0)
    arrays = {
        "w": rng.standard_normal((8, 4)).astype(np.float32),
        "b": rng.standard_normal(4).astype(np.float32),
    }
    eight, four, one = e.number(8), e.number(4), e.number(1)
    tensors = (
        Tensor("x", "float32", Kind.INPUT, (N, eight), 0),
        Tensor("w", "float32", Kind.WEIGHT, (eight, four), 1, 0),
        Tensor("b", "float32", Kind.WEIGHT, (four,), 2, 1),
        Tensor("h~1", "float32", Kind.INNER, (N, four), 3),
        Tensor("y", "float32", Kind.OUTPUT, (N, four), 4),
    )
    grid = (e.join(e.CEIL, N, e.number(16)), one, one)
    pointers = tuple(Argument(ArgumentKind.TENSOR, tensor=i) for i in (0, 1, 2, 3))
    launches = (
        Launch(
            "gemm", {"epilogue": ("bias",), "tile": (16, 16), "scale": 0.5, "name": "tuned"}, (0, 1, 2), (3,),
            ("fc/matmul", "fc/bias"), 0, grid, (*pointers, Argument(ArgumentKind.INT32, code=N)), 0,
        ),
        Launch("map", {"program": "relu"}, (3,), (4,), ("fc/relu",)),
    )  # fmt: skip
    kernels = tuple(
        Kernel(0, arch, "gemm_16", bytes([arch]) * 100, 1024, 4, 40, 0, ((0, 8), (8, 8))) for arch in (80, 90)
    )
    profile = Profile(((1, 8, 32),), padded(32 * 16), (-1, -1, -1, 0, -1))
    weights = (weight("w", arrays["w"], 0), weight("b", arrays["b"], 256))
    tactics = (Tactic("gemm 16x16", 2.5, "model"),)
    return Plan(
        ("N",), (profile,), weights, tensors, launches, kernels, tactics, {"source": "m.onnx"}
    ), arrays


def content(plan: Plan, arrays: Arrays, *, stripped: bool = False) -> bytes:
    sink = io.BytesIO()
    write(
        plan,
        sink,
        None if stripped else lambda w: np.ascontiguousarray(arrays[w.name]).reshape(-1).view(np.uint8),
    )
    return sink.getvalue()


@st.composite
def codes(draw: Any, symbols: int, depth: int = 2) -> e.Code:
    """A code whose value is never negative and stays small."""
    if depth == 0 or draw(st.booleans()):
        if symbols and draw(st.booleans()):
            return (draw(st.integers(0, symbols - 1)) << 8 | e.SYMBOL,)
        return e.number(draw(st.integers(0, 9)))
    operation = draw(st.sampled_from((e.ADD, e.MUL, e.FLOOR, e.CEIL, e.MIN, e.MAX)))
    left = draw(codes(symbols, depth - 1))
    divides = operation in (e.FLOOR, e.CEIL)
    right = e.number(draw(st.integers(1, 5))) if divides else draw(codes(symbols, depth - 1))
    return (*left, *right, operation)


NAMES = st.text(st.characters(codec="utf-8"), max_size=6)
VALUES = st.one_of(
    st.integers(-(1 << 40), 1 << 40), st.floats(allow_nan=False), NAMES,
    st.lists(st.integers(-5, 5), max_size=3).map(tuple), st.lists(NAMES, min_size=1, max_size=3).map(tuple),
    st.lists(st.floats(allow_nan=False), min_size=1, max_size=3).map(tuple),
)  # fmt: skip


@st.composite
def plans(draw: Any) -> tuple[Plan, Arrays]:
    """A sound plan: symbols, profiles, weights, tensors, launches, kernels, and the arrays of its weights."""
    symbols = tuple(draw(st.lists(NAMES, max_size=2, unique=True)))
    ranges = [tuple(sorted(draw(st.tuples(*[st.integers(0, 5)] * 3)))) for _ in symbols]
    arrays: Arrays = {}
    weights, tensors, offset = [], [], 0
    for index in range(draw(st.integers(0, 2))):
        shape = tuple(draw(st.lists(st.integers(0, 3), max_size=2)))
        dtype = draw(st.sampled_from(("float32", "int8", "float16")))
        array = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
        name = f"w{index}"
        arrays[name] = array
        weights.append(weight(name, array, offset))
        offset += padded(array.nbytes)
        shape_codes = tuple(e.number(d) for d in shape)
        tensors.append(Tensor(name, dtype, Kind.WEIGHT, shape_codes, index, index))
    offsets, arena = [-1] * len(tensors), 0
    for index in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from((Kind.INPUT, Kind.OUTPUT, Kind.INNER)))
        shape = tuple(draw(st.lists(codes(len(symbols)), max_size=3)))
        dtype = draw(st.sampled_from(sorted(DTYPES)))
        tensors.append(Tensor(f"t{index}", dtype, kind, shape, len(tensors)))
        size = math.prod(e.bounds(c, [(a, c) for a, _, c in ranges])[1] for c in shape) * DTYPES[dtype][1]
        offsets.append(arena if kind == Kind.INNER else -1)
        arena += padded(size) if kind == Kind.INNER else 0
    writable = [i for i, t in enumerate(tensors) if t.kind in (Kind.OUTPUT, Kind.INNER)]
    anything = st.lists(st.integers(0, len(tensors) - 1), max_size=3).map(tuple)
    kernels = tuple(
        Kernel(0, arch, draw(NAMES), draw(st.binary(max_size=50)), 64, 4, 32, 8, ((0, 8),))
        for arch in draw(st.lists(st.sampled_from((80, 87, 89, 90)), unique=True))
    )
    launches = []
    for _ in range(draw(st.integers(0, 3))):
        reads = draw(anything)
        handed = tuple(Argument(ArgumentKind.TENSOR, tensor=i) for i in reads)
        grid = (draw(codes(len(symbols))), e.number(1), e.number(1))
        wrote = tuple(draw(st.lists(st.sampled_from(writable), max_size=2))) if writable else ()
        numbers = (Argument(ArgumentKind.INT64, code=grid[0]), Argument(ArgumentKind.FLOAT32, number=0.25))
        attributes = draw(st.dictionaries(NAMES, VALUES, max_size=3))
        sources = tuple(draw(st.lists(NAMES, max_size=2)))
        kernel = 0 if kernels else -1
        launches.append(
            Launch(draw(NAMES), attributes, reads, wrote, sources, kernel, grid, (*handed, *numbers))
        )
    profile = Profile(tuple(ranges), arena, tuple(offsets))
    meta = draw(st.dictionaries(NAMES, NAMES, max_size=2))
    made = Plan(symbols, (profile,), tuple(weights), tuple(tensors), tuple(launches), kernels, (), meta)
    return made, arrays
