"""Evaluation of nodes: the NumPy kernels against ONNX Runtime on random data, and the budget."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapeout.compiler.errors import ResourceError
from tapeout.compiler.ir import evaluate as module
from tapeout.compiler.ir.evaluate import Declined, evaluate
from tapeout.compiler.ir.kernels import KERNELS

INTS = (np.int64, np.int32)
FLOATS = (np.float32, np.float64)
Arrays = list[Any]


def node(op_type: str, inputs: Arrays, outputs: int = 1, **attributes: Any) -> ir.Node:
    values = [
        None if x is None else ir.Value(name=f"x{i}", type=ir.TensorType(ir.DataType.from_numpy(x.dtype)))
        for i, x in enumerate(inputs)
    ]
    made = ir.node(op_type, values, attributes, num_outputs=outputs, name="n")
    made.metadata_props["tapeout.origin"] = "source/n"
    return made


def both(op_type: str, inputs: Arrays, outputs: int = 1, **attributes: Any) -> None:
    """The kernel declines, or gives what the runtime gives."""
    each = node(op_type, inputs, outputs, **attributes)
    kernel = KERNELS[op_type]
    try:
        got = kernel(*inputs, **attributes)
    except (Declined, ValueError, TypeError, IndexError):
        return
    got = got if isinstance(got, list) else [got]
    try:
        expected = module._in_runtime(each, inputs, 1 << 28)
    except Declined:
        return
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype, (op_type, a.dtype, b.dtype)
        assert a.shape == b.shape, (op_type, a.shape, b.shape)
        np.testing.assert_array_equal(a, b)


def arrays(draw: Any, dtype: Any, shape: tuple[int, ...], low: int = -20, high: int = 20) -> Any:
    count = int(np.prod(shape))
    if np.dtype(dtype) == np.bool_:
        elements: st.SearchStrategy[Any] = st.booleans()
    elif np.dtype(dtype).kind == "f":
        elements = st.one_of(
            st.integers(low * 4, high * 4).map(lambda n: n / 4),
            st.sampled_from([-0.0, np.inf, -np.inf, np.nan]),
        )
    else:
        elements = st.integers(low, high)
    return np.array(draw(st.lists(elements, min_size=count, max_size=count)), dtype=dtype).reshape(shape)


shapes = st.lists(st.integers(1, 4), min_size=0, max_size=3).map(tuple)
few = settings(max_examples=40, deadline=None)


@pytest.mark.parametrize(
    "op", ["Add", "Sub", "Mul", "Div", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"]
)
@few
@given(data=st.data(), dtype=st.sampled_from(INTS + FLOATS), shape=shapes)
def test_arithmetic(op: str, data: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    other = tuple(d if data.draw(st.booleans()) else 1 for d in shape)
    both(op, [arrays(data.draw, dtype, shape), arrays(data.draw, dtype, other)])


@few
@given(data=st.data(), dtype=st.sampled_from(INTS + FLOATS), shape=shapes, fmod=st.integers(0, 1))
def test_mod(data: Any, dtype: Any, shape: tuple[int, ...], fmod: int) -> None:
    both("Mod", [arrays(data.draw, dtype, shape), arrays(data.draw, dtype, shape)], fmod=fmod)


@pytest.mark.parametrize("op", ["And", "Or", "Xor"])
@few
@given(data=st.data(), shape=shapes)
def test_logic(op: str, data: Any, shape: tuple[int, ...]) -> None:
    both(op, [arrays(data.draw, np.bool_, shape), arrays(data.draw, np.bool_, shape)])


@pytest.mark.parametrize(
    "op", ["Neg", "Abs", "Floor", "Ceil", "Round", "Sqrt", "Sign", "Identity", "Shape", "Size"]
)
@few
@given(data=st.data(), dtype=st.sampled_from(INTS + FLOATS), shape=shapes)
def test_unary(op: str, data: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    if op in ("Floor", "Ceil", "Round", "Sqrt") and dtype in INTS:
        dtype = np.float32
    both(op, [arrays(data.draw, dtype, shape)])


@pytest.mark.parametrize("op", ["Min", "Max"])
@few
@given(data=st.data(), dtype=st.sampled_from(INTS + FLOATS), shape=shapes)
def test_extremes(op: str, data: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    both(op, [arrays(data.draw, dtype, shape) for _ in range(3)])


@pytest.mark.parametrize("op", ["ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin"])
@few
@given(data=st.data(), dtype=st.sampled_from(INTS + FLOATS), shape=shapes, keepdims=st.integers(0, 1))
def test_reductions(op: str, data: Any, dtype: Any, shape: tuple[int, ...], keepdims: int) -> None:
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), unique=True)) if shape else []
    both(op, [arrays(data.draw, dtype, shape, -3, 3), np.array(axes, dtype=np.int64)], keepdims=keepdims)


TYPES = ("FLOAT", "DOUBLE", "FLOAT16", "INT64", "INT32", "INT8", "UINT8", "INT16", "BOOL")


@few
@given(data=st.data(), source=st.sampled_from(TYPES), to=st.sampled_from(TYPES), shape=shapes)
def test_cast(data: Any, source: str, to: str, shape: tuple[int, ...]) -> None:
    dtype = ir.DataType[source].numpy()
    low = 0 if source == "UINT8" else -20
    both("Cast", [arrays(data.draw, dtype, shape, low, 100)], to=int(ir.DataType[to]))


@few
@given(data=st.data(), shape=shapes)
def test_gathering(data: Any, shape: tuple[int, ...]) -> None:
    if not shape:
        return
    x = arrays(data.draw, np.float32, shape)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    size = shape[axis]
    indices = arrays(data.draw, np.int64, data.draw(shapes), -size, size - 1)
    both("Gather", [x, indices], axis=axis)
    both("GatherElements", [x, arrays(data.draw, np.int64, shape, -size, size - 1)], axis=axis)
    depth = data.draw(st.integers(1, len(shape)))
    where = np.stack([arrays(data.draw, np.int64, (3,), 0, n - 1) for n in shape[:depth]], -1)
    both("GatherND", [x, where])
    unique = np.unique(where, axis=0)
    both("ScatterND", [x, unique, arrays(data.draw, np.float32, (len(unique), *shape[depth:]))])


@few
@given(data=st.data(), shape=shapes)
def test_slicing(data: Any, shape: tuple[int, ...]) -> None:
    if not shape:
        return
    x = arrays(data.draw, np.int64, shape)
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True))
    bounds = st.one_of(st.integers(-6, 6), st.sampled_from([2**63 - 1, -(2**63) + 1]))
    starts, ends = (np.array([data.draw(bounds) for _ in axes]) for _ in range(2))
    steps = np.array([data.draw(st.sampled_from([1, 2, 3, -1, -2])) for _ in axes])
    both("Slice", [x, starts, ends, np.array(axes), steps])
    axis = axes[0]
    both("Split", [x], min(2, shape[axis]), axis=axis, num_outputs=min(2, shape[axis]))


@few
@given(data=st.data(), shape=shapes)
def test_reshaping(data: Any, shape: tuple[int, ...]) -> None:
    x = arrays(data.draw, np.float32, shape)
    both("Reshape", [x, np.array([-1, *shape[1:]][: max(1, len(shape))], dtype=np.int64)])
    both("Reshape", [x, np.array([*([0] * len(shape)), 1], dtype=np.int64)])
    both(
        "Transpose", [x], perm=tuple(data.draw(st.permutations(range(len(shape))))) if shape else None
    ) if shape else None
    both("Unsqueeze", [x, np.array([0, -1], dtype=np.int64)])
    both("Flatten", [x], axis=data.draw(st.integers(-len(shape), len(shape))))
    wide = x[None, ..., None]
    both("Squeeze", [wide, np.array([0, -1], dtype=np.int64)])
    both("Squeeze", [wide])
    both("Expand", [x, np.array([2, 1, 1, 1], dtype=np.int64)])
    both(
        "Tile", [x, np.array([data.draw(st.integers(0, 3)) for _ in shape], dtype=np.int64)]
    ) if shape else None
    if len(shape) >= 2:
        both("Trilu", [x, np.array(data.draw(st.integers(-3, 3)))], upper=data.draw(st.integers(0, 1)))
    if shape:
        axis = data.draw(st.integers(-len(shape), len(shape) - 1))
        both("Concat", [x, x, x], axis=axis)
    both("Where", [arrays(data.draw, np.bool_, shape), x, np.float32(3).reshape(())])


@few
@given(
    st.integers(-9, 9),
    st.integers(-9, 9),
    st.sampled_from([-3, -2, -1, 1, 2, 5]),
    st.sampled_from(INTS + FLOATS),
)
def test_range(start: int, limit: int, delta: int, dtype: Any) -> None:
    scale = 1 if np.dtype(dtype).kind == "i" else 0.5
    both("Range", [np.array(v * scale, dtype=dtype) for v in (start, limit, delta)])


@few
@given(st.lists(st.integers(0, 4), max_size=4), st.sampled_from(INTS + FLOATS))
def test_constant_of_shape(shape: list[int], dtype: Any) -> None:
    both("ConstantOfShape", [np.array(shape, dtype=np.int64)], value=ir.tensor(np.array([7], dtype=dtype)))


def test_the_runtime_does_the_rest() -> None:
    rng = np.random.default_rng(0)
    x, w = (
        rng.standard_normal((2, 3, 8, 8)).astype(np.float32),
        rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
    )
    (y,) = evaluate(node("Conv", [x, w], pads=[1, 1, 1, 1]), [x, w])
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    np.testing.assert_allclose(
        y, np.einsum("nchwij,ocij->nohw", windows, w.astype(np.float64)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        ("ConstantOfShape", [np.array([1 << 35])], {}),
        ("Expand", [np.ones(1, np.float32), np.array([1 << 35])], {}),
        ("Tile", [np.ones(4, np.float32), np.array([1 << 33])], {}),
        ("Range", [np.array(0), np.array(1 << 36), np.array(1)], {}),
        ("Gather", [np.ones((1, 1 << 20), np.int8), np.zeros(1 << 12, np.int64)], {}),
        ("Add", [np.ones((1 << 18, 1), np.float32), np.ones((1, 1 << 18), np.float32)], {}),
        ("Pad", [np.ones(2, np.float32), np.array([0, 1 << 35])], {}),
        ("OneHot", [np.zeros(1 << 10, np.int64), np.array(1 << 28), np.array([0, 1], np.float32)], {}),
        ("MatMul", [np.ones((1 << 18, 1), np.float32), np.ones((1, 1 << 18), np.float32)], {}),
        ("EyeLike", [np.ones((4, 4), np.float32)], {"dtype": 1}),
    ],
)
def test_the_budget_is_checked_before_memory_is_taken(op: str, inputs: Arrays, attributes: Any) -> None:
    small = op == "EyeLike"
    tracemalloc.start()
    try:
        if small:
            with pytest.raises(ResourceError):
                evaluate(node(op, inputs, **attributes), inputs, limit=32)
        else:
            with pytest.raises(ResourceError, match="bytes, at most") as caught:
                evaluate(node(op, inputs, **attributes), inputs)
            assert caught.value.nodes == ("source/n",)
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("op", ["RandomUniformLike", "RandomNormalLike", "Bernoulli", "NoSuchOperator"])
def test_declined(op: str) -> None:
    x = np.ones(3, np.float32)
    with pytest.raises(Declined):
        evaluate(node(op, [x]), [x])


@pytest.mark.parametrize(
    ("op", "inputs"),
    [
        ("Div", [np.array([4]), np.array([0])]),
        ("Div", [np.array([-(2**63)]), np.array([-1])]),
        ("Gather", [np.arange(3), np.array([3])]),
        ("Reshape", [np.arange(3), np.array([2, 2])]),
        ("Concat", [np.ones((2, 2)), np.ones((3, 3))]),
    ],
)
def test_what_has_no_answer_is_declined(op: str, inputs: Arrays) -> None:
    with pytest.raises(Declined):
        evaluate(node(op, inputs, **({"axis": 0} if op == "Concat" else {})), inputs)
