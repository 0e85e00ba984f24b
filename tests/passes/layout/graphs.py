"""Random small graphs whose N, C, H and W are all 4, so that no pass can tell them apart by size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from hypothesis import strategies as st

from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.load import from_proto
from tapeout.compiler.ir.save import to_bytes

SIDE = 4
Draw = Callable[[Any], Any]


class Maker:
    """Adds operators that turn tensors of [4, 4, 4, 4] into tensors of [4, 4, 4, 4]."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []

    def constant(self, array: np.ndarray[Any, Any]) -> ir.Value:
        name = f"c{len(self.initializers)}"
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        self.initializers.append(value)
        return value

    def floats(self, *shape: int) -> ir.Value:
        return self.constant((self.rng.normal(size=shape) * 0.5).astype(np.float32))

    def ints(self, *numbers: int) -> ir.Value:
        return self.constant(np.asarray(numbers, np.int64))

    def op(self, op_type: str, *inputs: ir.Value | None, outputs: int = 1, **attributes: Any) -> Any:
        name = f"{op_type}_{len(self.nodes)}"
        node = ir.node(op_type, list(inputs), attributes, num_outputs=outputs, name=name)
        for i, value in enumerate(node.outputs):
            value.name = f"v{len(self.nodes)}_{i}"
        self.nodes.append(node)
        return node.outputs[0] if outputs == 1 else node.outputs


def _conv(m: Maker, draw: Draw, x: ir.Value, _: ir.Value) -> ir.Value:
    group = draw(st.sampled_from((1, 4)))
    bias = m.floats(SIDE) if draw(st.booleans()) else None
    return m.op("Conv", x, m.floats(SIDE, SIDE // group, 3, 3), bias, pads=[1, 1, 1, 1], group=group)


def _conv_of(m: Maker, draw: Draw, x: ir.Value, y: ir.Value) -> ir.Value:
    """The weights are computed, too."""
    return m.op("Conv", x, m.op("Tanh", y), pads=[2, 2, 1, 1])


def _pool(m: Maker, draw: Draw, x: ir.Value, _: ir.Value) -> ir.Value:
    op = draw(st.sampled_from(("MaxPool", "AveragePool")))
    return m.op(op, x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])


def _shuffle_depth(m: Maker, draw: Draw, x: ir.Value, _: ir.Value) -> ir.Value:
    y = m.op("DepthToSpace", x, blocksize=2, mode=draw(st.sampled_from(("DCR", "CRD"))))
    if draw(st.booleans()):
        return m.op("SpaceToDepth", y, blocksize=2)
    return m.op("Conv", y, m.floats(SIDE, 1, 2, 2), strides=[2, 2])


def _resize(m: Maker, draw: Draw, x: ir.Value, _: ir.Value) -> ir.Value:
    first = draw(st.sampled_from((1, 2)))
    scales = [1.0, 1.0, 1.0, 1.0]
    scales[first] = scales[first + 1] = 2.0
    mode = draw(st.sampled_from(("nearest", "linear")))
    scale = m.constant(np.asarray(scales, np.float32))
    y = m.op("Resize", x, None, scale, mode=mode, coordinate_transformation_mode="half_pixel")
    return m.op("Slice", y, m.ints(2, 1), m.ints(6, 5), m.ints(first, first + 1 - 4))


def _transposed(m: Maker, draw: Draw, x: ir.Value, _: ir.Value) -> ir.Value:
    group = draw(st.sampled_from((1, 2)))
    y = m.op("ConvTranspose", x, m.floats(SIDE, SIDE // group, 2, 2), strides=[2, 2], group=group)
    return m.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])


def _unary(m: Maker, draw: Draw, x: ir.Value, _: ir.Value) -> ir.Value:
    return m.op(draw(st.sampled_from(("Relu", "Tanh", "Neg", "HardSwish"))), x)


def _binary(m: Maker, draw: Draw, x: ir.Value, y: ir.Value) -> ir.Value:
    return m.op(draw(st.sampled_from(("Add", "Sub", "Max"))), x, y)


def _by_constant(m: Maker, draw: Draw, x: ir.Value, _: ir.Value) -> ir.Value:
    shape = draw(st.sampled_from(((4,), (4, 1, 1), (1, 4, 1, 1), (4, 4), (1,), (4, 4, 4, 4), (1, 1, 1, 4))))
    pair = (x, m.floats(*shape))
    return m.op(draw(st.sampled_from(("Mul", "Add"))), *(pair if draw(st.booleans()) else pair[::-1]))


def _transpose(m: Maker, draw: Draw, x: ir.Value, _: ir.Value) -> ir.Value:
    perms = (*(((0, 2, 3, 1), (0, 3, 1, 2)) * 3), (0, 2, 1, 3), (1, 0, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1))
    return m.op("Transpose", x, perm=draw(st.sampled_from(perms)))


def _axis(draw: Draw) -> int:
    return int(draw(st.integers(-4, 3)))


def _along(m: Maker, draw: Draw, x: ir.Value, _: ir.Value) -> ir.Value:
    op = draw(st.sampled_from(("Softmax", "CumSum", "Gather", "GatherOne", "Concat", "LpNormalization")))
    axis = _axis(draw)
    if op == "CumSum":
        return m.op(op, m.op("Tanh", x), m.constant(np.asarray(axis, np.int64)))
    if op == "Gather":
        return m.op(op, x, m.ints(3, 1, 0, -2), axis=axis)
    if op == "GatherOne":
        one = m.op("Gather", x, m.constant(np.asarray(2, np.int64)), axis=axis)
        return m.op("Add", x, one if draw(st.booleans()) else m.op("Unsqueeze", one, m.ints(axis)))
    if op == "Concat":
        a, b = m.op("Split", x, m.ints(3, 1), outputs=2, axis=axis)
        return m.op(op, b, a, axis=axis)
    return m.op(op, x, axis=axis)


def _concat(m: Maker, draw: Draw, x: ir.Value, y: ir.Value) -> ir.Value:
    axis = _axis(draw)
    z = m.op("Concat", x, y, m.floats(4, 4, 4, 4), axis=axis)
    return m.op("Slice", z, m.ints(1), m.ints(12), m.ints(axis), m.ints(3))


def _cut_and_pad(m: Maker, draw: Draw, x: ir.Value, _: ir.Value) -> ir.Value:
    axis = _axis(draw) % 4
    y = m.op("Slice", x, m.ints(1), m.ints(4), m.ints(axis))
    if draw(st.booleans()):
        return m.op("Pad", y, m.ints(1, 0), None, m.ints(axis))
    pads = [0] * 8
    pads[axis + 4] = 1
    return m.op("Pad", y, m.ints(*pads), m.constant(np.asarray(0.5, np.float32)))


def _reduce(m: Maker, draw: Draw, x: ir.Value, y: ir.Value) -> ir.Value:
    axes = draw(st.sampled_from(((2, 3), (1,), (-1,), (0, 2), (1, 2, 3))))
    op = draw(st.sampled_from(("ReduceMean", "ReduceMax", "ReduceL2")))
    keep = draw(st.booleans())
    z = m.op(op, x, m.ints(*axes), keepdims=int(keep))
    if not keep and axes == (2, 3):
        z = m.op("Reshape", z, m.ints(0, -1, 1, 1))
    return m.op("Add", y, z)


def _attend(m: Maker, draw: Draw, x: ir.Value, _: ir.Value) -> ir.Value:
    """Squeeze and excite, through a convolution or a matrix."""
    z = m.op("GlobalAveragePool", x)
    if draw(st.booleans()):
        z = m.op("Conv", z, m.floats(4, 4, 1, 1))
    else:
        z = m.op("Reshape", m.op("MatMul", m.op("Flatten", z), m.floats(4, 4)), m.ints(0, -1, 1, 1))
    return m.op("Mul", x, m.op("Sigmoid", z))


def _reshape(m: Maker, draw: Draw, x: ir.Value, _: ir.Value) -> ir.Value:
    shape = draw(st.sampled_from(((4, 2, 2, 4, 4), (4, 4, 16), (4, 16, 4), (16, 4, 4), (4, 64), (8, 8, 4))))
    y = m.op("Reshape", x, m.ints(-1, *shape[1:]))
    if draw(st.booleans()):
        y = m.op("Relu", y)
    if len(shape) > 2 and draw(st.booleans()):
        y = m.op("Transpose", y, perm=draw(st.permutations(range(len(shape)))))
    return m.op("Reshape", y, m.ints(-1, 4, 4, 4))


def _matrix(m: Maker, draw: Draw, x: ir.Value, y: ir.Value) -> ir.Value:
    kind = draw(st.sampled_from(("last", "flat", "both", "gemm", "norm")))
    if kind == "last":
        return m.op("MatMul", x, m.floats(4, 4))
    if kind == "both":
        return m.op("MatMul", x, y)
    if kind == "norm":
        return m.op("LayerNormalization", x, m.floats(4), m.floats(4))
    flat = m.op("Flatten", x)
    if kind == "gemm":
        z = m.op("Gemm", flat, m.floats(16, 64), m.floats(16), transB=1)
    else:
        z = m.op("MatMul", flat, m.floats(64, 16))
    return m.op("Add", y, m.op("Reshape", z, m.ints(-1, 4, 4, 1)))


def _sized(m: Maker, draw: Draw, x: ir.Value, y: ir.Value) -> ir.Value:
    """A shape that is computed, in whole or in part."""
    start = draw(st.integers(0, 3))
    shape = m.op("Shape", y, start=start)
    return m.op("Reshape", x, m.op("Concat", m.ints(*[0] * start), shape, axis=0) if start else shape)


PLAIN = (_conv, _conv, _pool, _unary, _binary, _by_constant, _reduce, _attend, _cut_and_pad)
ALL = (
    *PLAIN, _transpose, _transpose, _along, _concat, _reshape, _reshape, _matrix, _resize, _transposed,
    _shuffle_depth, _conv_of, _sized,
)  # fmt: skip


@st.composite
def models(
    draw: Draw, least: int = 1, most: int = 8, kinds: tuple[Any, ...] = ALL, free: bool = True
) -> ir.Model:
    """A model with one to three outputs; N is a symbol in some where `free`."""
    maker = Maker(draw(st.integers(0, 2**31)))
    batch: int | str = "N" if free and draw(st.booleans()) else 4
    inputs = [
        ir.Value(name=f"x{i}", shape=ir.Shape([batch, 4, 4, 4]), type=ir.TensorType(ir.DataType.FLOAT))
        for i in range(2)
    ]
    values = list(inputs)
    for _ in range(draw(st.integers(least, most))):
        x, y = (values[-1 - min(len(values) - 1, draw(st.integers(0, 3)))] for _ in range(2))
        values.append(draw(st.sampled_from(kinds))(maker, draw, x, y))
    outputs = [maker.op("Identity", values[-1])] if values[-1] in inputs else [values[-1]]
    more = draw(st.lists(st.sampled_from(values[2:]), max_size=2, unique_by=id))
    outputs += [v for v in more if v is not outputs[0]]
    graph = ir.Graph(
        inputs,
        outputs,
        nodes=maker.nodes,
        initializers=maker.initializers,
        opset_imports={"": 25},
        name="random",
    )
    for value in maker.initializers:
        assert value.const_value is not None
        value.shape, value.type = value.const_value.shape, ir.TensorType(value.const_value.dtype)
    for value in outputs:
        value.type = ir.TensorType(ir.DataType.FLOAT)
    model = ir.Model(graph, ir_version=10)
    return from_proto(ir.to_proto(model))


def feeds(model: ir.Model, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Random data for the inputs; free dimensions are 4."""
    rng = np.random.default_rng(seed)
    found = {}
    for value in model.graph.inputs:
        shape = [d if isinstance(d, int) else SIDE for d in g.dims(value) or ()]
        found[value.name or ""] = rng.normal(size=shape).astype(np.float32)
    return found


def run(model: ir.Model, inputs: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """The outputs by ONNX Runtime without optimizations."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])
    names = [v.name for v in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))
