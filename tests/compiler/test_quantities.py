"""Quantities: each against numbers worked out by hand or by ONNX Runtime's own shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tapeout.compiler.ir import graph as g
from tapeout.compiler.operators import Call, onnx_interface
from tapeout.compiler.quantities import PORTS, REGISTRY, Vocabulary
from tests.passtext import imported, parse, run

VOCABULARY = Vocabulary()


def call(text: str) -> Call:
    """The node with the name "it", else the last one."""
    nodes = list(imported(parse(text)).graph)
    node = next((n for n in nodes if n.name == "it"), nodes[-1])
    interface = onnx_interface(node.op_type)
    assert interface is not None
    return Call(node, interface)


def measure(where: Call, name: str) -> Any:
    found = VOCABULARY.resolve(name, where.interface)
    assert found is not None, name
    return found[1](where)


CONV = call(
    "agraph (float[2,6,20,15] x) => (float[a,b,c,d] y) <float[4,3,5,3] k>"
    "{ [it] y = Conv<strides=[3,2], dilations=[1,2], pads=[1,0,2,4], group=2> (x, k) }"
)
POOL = call("agraph (float[1,6,9,9] x) => (float[a,b,c,d] y) { [it] y = MaxPool<kernel_shape=[2,3]> (x) }")
SOFTMAX = call("agraph (float[2,N,5] x) => (float[2,N,5] y) { [it] y = Softmax<axis=1> (x) }")
REDUCE = call(
    "agraph (float[2,3,5] x) => (float[a,b,c] y) <int64[2] axes = {0, -1}> { [it] y = ReduceMean (x, axes) }"
)
CLIP = call("agraph (float[2,3] x) => (float[2,3] y) <float top = {6.0}> { [it] y = Clip (x, , top) }")
CONCAT = call("agraph (float[2,3] x, float[2,4] z) => (float[2,7] y) { [it] y = Concat<axis=-1> (x, z) }")
ADD = call("agraph (float[2,3] x, float[3] z) => (float[2,3] y) { [it] y = Add (x, z) }")
SAME = call("agraph (float[2,N] x, float[2,N] z) => (float[2,N] y) { [it] y = Add (x, z) }")


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        (CONV, "stride.max", 3),
        (CONV, "stride.h", 3),
        (CONV, "stride.w", 2),
        (CONV, "dilation.max", 2),
        (CONV, "dilation.h", 1),
        (CONV, "dilation.w", 2),
        (CONV, "kernel.h", 5),
        (CONV, "kernel.w", 3),
        (CONV, "kernel.max", 5),
        (CONV, "kernel.area", 15),
        (CONV, "kernel.volume", 15),
        (CONV, "pads.max", 4),
        (CONV, "pads.min", 0),
        (CONV, "pads.total", 7),
        (CONV, "group", 2),
        (CONV, "channels.in", 6),
        (CONV, "channels.out", 4),
        (CONV, "spatial.rank", 2),
        (CONV, "depthwise.multiplier", 0),
        (CONV, "padding.kind", "explicit"),
        (CONV, "padding.same_or_valid", False),
        (CONV, "attr.strides", (3, 2)),
        (CONV, "attr.kernel_shape", "absent"),
        (CONV, "attr.auto_pad", "NOTSET"),
        (CONV, "batch", 2),
        (CONV, "input.count", 2),
        (CONV, "B.present", False),
        (CONV, "B.constant", True),
        (CONV, "X.constant", False),
        (CONV, "W.constant", True),
        (CONV, "W.elements", 180),
        (CONV, "W.rank", 4),
        (CONV, "W.dim.0", 4),
        (CONV, "W.dim.-1", 3),
        (CONV, "W.dim.4", None),
        (CONV, "X.dim.max", 20),
        (CONV, "X.dtype", "float32"),
        (CONV, "B.dtype", "absent"),
        (CONV, "X.storage", "float32"),
        (POOL, "stride.max", 1),
        (POOL, "dilation.max", 1),
        (POOL, "kernel.area", 6),
        (POOL, "pads.total", 0),
        (POOL, "padding.kind", "valid"),
        (POOL, "attr.ceil_mode", 0),
        (POOL, "output.count", 1),
        (SOFTMAX, "axis.from_start", 1),
        (SOFTMAX, "axis.from_end", 2),
        (SOFTMAX, "axes.count", 1),
        (SOFTMAX, "dim.static", False),
        (SOFTMAX, "elements", None),
        (SOFTMAX, "input.dim.dynamic", 1),
        (SOFTMAX, "dim.max", None),
        (SOFTMAX, "rank.max", 3),
        (SOFTMAX, "shape.same", True),
        (REDUCE, "axis.from_end", (3, 1)),
        (REDUCE, "axis.from_start", (0, 2)),
        (REDUCE, "axes.count", 2),
        (REDUCE, "axes.value", (0, -1)),
        (REDUCE, "attr.keepdims", 1),
        (CLIP, "max.value", 6.0),
        (CLIP, "min.value", "absent"),
        (CLIP, "min.present", False),
        (CLIP, "input.count", 2),
        (CLIP, "input.value", None),
        (CONCAT, "inputs.count", 2),
        (CONCAT, "axis.from_end", 1),
        (CONCAT, "dim.max", 7),
        (ADD, "broadcast.rank", 2),
        (ADD, "shape.same", False),
        (ADD, "dtype.same", True),
        (ADD, "elements", 6),
        (SAME, "broadcast.rank", 0),
        (SAME, "shape.same", True),
    ],
)
def test_quantity(where: Call, name: str, value: Any) -> None:
    assert measure(where, name) == value


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation"), [(9, 3, 2, 1), (10, 4, 3, 1), (7, 2, 1, 1), (12, 5, 4, 1)]
)
def test_auto_pad_is_worked_out_as_the_runtime_does(
    mode: str, size: int, kernel: int, stride: int, dilation: int
) -> None:
    from tapeout.compiler.quantities.windows import pads

    head = f"agraph (float[1,1,{size},{size}] x) => (float[a,b,c,d] y) <float[1,1,{kernel},{kernel}] k>"
    window = f"strides=[{stride},{stride}], dilations=[{dilation},{dilation}]"
    auto = f'{head} {{ [it] y = Conv<{window}, auto_pad="{mode}"> (x, k) }}'
    found = pads(call(auto))
    assert found is not None
    stated = f"{head} {{ [it] y = Conv<{window}, pads={list(found)}> (x, k) }}"
    data = {"x": np.random.default_rng(1).normal(size=(1, 1, size, size)).astype(np.float32)}
    np.testing.assert_allclose(run(parse(stated), data)["y"], run(parse(auto), data)["y"], rtol=1e-6)
    symmetric = all(a == b for a, b in zip(found[:2], found[2:], strict=True))
    assert measure(call(stated), "padding.kind") == (
        "same" if mode == "SAME_UPPER" or symmetric else "explicit"
    )


def test_same_padding_needs_no_size_where_the_stride_is_one() -> None:
    text = """agraph (float[1,1,H,W] x) => (float[1,1,H,W] y) <float[1,1,3,3] k>
{ [it] y = Conv<pads=[1,1,1,1]S> (x, k) }"""
    assert measure(call(text.replace("S>", ">")), "padding.kind") == "same"
    assert measure(call(text.replace("S>", ", strides=[2,2]>")), "padding.kind") is None


def test_weight_sums_are_per_output_and_less_the_zero_point() -> None:
    text = """agraph (float[1,2,4,4] x) => (float[a,b,c,d] y)
<int8[3,2,1,1] q, float[3] s, int8[3] z = {1, 0, -2}>
{ w = DequantizeLinear<axis=0> (q, s, z)
  [it] y = Conv (x, w) }"""
    where = call(text)
    dequantize = g.producer(where.value("W"), "DequantizeLinear")
    assert dequantize is not None
    codes = g.constant(dequantize.inputs[0])
    assert codes is not None
    wide = codes.reshape(3, -1).astype(int) - np.array([[1], [0], [-2]])
    assert measure(where, "W.abs_sum") == np.abs(wide).sum(axis=1).max()
    assert measure(where, "W.abs_max") == np.abs(codes.astype(int)).max()
    assert measure(where, "W.storage") == "int8" and measure(where, "W.dtype") == "float32"


def test_every_quantity_says_what_it_is() -> None:
    for quantity in (*REGISTRY.values(), *PORTS.values()):
        assert len(quantity.doc) > 10 and quantity.doc.endswith("."), quantity.name
        assert quantity.label, quantity.name


def test_every_quantity_answers_for_every_operator_here() -> None:
    """None where it does not apply; never an exception, whatever the operator."""
    for where in (CONV, POOL, SOFTMAX, REDUCE, CLIP, CONCAT, ADD, SAME):
        for name in VOCABULARY.names(where.interface):
            if name != "attr.*":
                measure(where, name.replace(".*", ".0"))


def test_ranks_may_be_unknown() -> None:
    node = ir.node("Conv", [ir.Value(name="x"), ir.Value(name="w")], name="it")
    interface = onnx_interface("Conv")
    assert interface is not None
    where = Call(node, interface)
    for name in VOCABULARY.names(interface):
        if not name.endswith(".*"):
            measure(where, name)
    assert measure(where, "X.rank") is None and measure(where, "stride.max") is None
