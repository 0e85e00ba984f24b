"""Quantized graphs hold their numbers, keep to the rows, and say what they did."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapeout.compiler import pipeline
from tapeout.compiler.declaration import Refusal
from tapeout.compiler.errors import UnsupportedError, UsageError
from tapeout.compiler.ir import graph as g
from tapeout.compiler.schemes import STATIC, levels
from tapeout.passes.quantization import Quantize, quantization_report
from tapeout.passes.quantization.groups import parameters
from tapeout.passes.quantization.interface import border
from tests import passtext
from tests.passes.quantization.graphs import DECLARATION, measure, operators, quantized, samples, sqnr

NETWORK = """
agraph (float[1,3,8,8] x) => (float[1,10] y)
<float[8,3,3,3] w1, float[8] b1, float[8,8,3,3] w2, float[8] b2, int64[2] shape = {1, 128}, float[128,10] w3>
{
   c1 = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
   r1 = Relu (c1)
   c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2, b2)
   a = Add (c2, r1)
   ra = Relu (a)
   p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (ra)
   f = Reshape (p, shape)
   y = MatMul (f, w3)
}
"""
CONVOLUTIONS = """
agraph (float[1,4,9,9] x) => (float[1,4,5,5] y)
<float[8,4,3,3] w1, float[8] b1, float[4,8,3,3] w2, float[4] b2>
{
   c1 = Conv (x, w1, b1)
   r1 = Relu (c1)
   y = Conv (r1, w2, b2)
}
"""


@pytest.mark.parametrize(
    ("text", "scheme", "least"),
    [(NETWORK, "int8", 26.0), (CONVOLUTIONS, "int8", 26.0), (CONVOLUTIONS, "int16x8", 40.0)],
)
def test_numbers(text: str, scheme: str, least: float) -> None:
    proto, model, history = quantized(text, scheme)
    assert sqnr(proto, model) > least
    assert history.steps[0].declined == ()


@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
def test_every_cluster_keeps_to_its_row(scheme: str) -> None:
    _, model, _ = quantized(CONVOLUTIONS, scheme)
    for node in model.graph:
        if node.op_type == "Conv":
            row = DECLARATION.match(node)
            assert not isinstance(row, Refusal), str(row)
            assert row.ports["X"].dtypes == ("int8" if scheme == "int8" else "int16",)


def test_outliers_are_measured() -> None:
    """Inputs ten times as large as calibration has seen saturate: ranges come from the data."""
    proto, model, _ = quantized(CONVOLUTIONS)
    assert (
        sqnr(proto, model, scale=10.0) < 15 < 26 < sqnr(*quantized(CONVOLUTIONS, scale=10.0)[:2], scale=10.0)
    )


def test_the_tensor_keeps_its_name_behind_dequantize() -> None:
    _, model, _ = quantized(CONVOLUTIONS)
    makers = {v.name: n.op_type for n in model.graph for v in n.outputs}
    assert makers["r1"] == makers["y"] == "DequantizeLinear"
    assert makers["c1"] == "Conv"


def test_channels_that_are_all_but_dead_keep_their_bias() -> None:
    proto = passtext.parse(CONVOLUTIONS)
    for tensor in proto.graph.initializer:
        if tensor.name == "w1":
            weights = onnx.numpy_helper.to_array(tensor).copy()
            weights[3], weights[4] = 0.0, 1e-20
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights, "w1"))
    model = passtext.imported(proto)
    statistics = measure(model, samples(proto))
    pipeline.run(model, (Quantize(STATIC["int8"], DECLARATION, statistics),))
    assert sqnr(proto, model) > 26
    for node in model.graph:
        if node.op_type == "DequantizeLinear" and node.inputs[0].dtype == ir.DataType.INT32:  # type: ignore[union-attr]
            codes = g.constant(node.inputs[0])
            assert codes is not None and np.abs(codes.astype(np.int64)).max() < 2**30


def test_float16_weights_behind_cast_are_quantized() -> None:
    proto, model, _ = quantized("""
agraph (float[2,16] x) => (float[2,8] y)
<float16[16,8] w>
{
   c = Cast <to = 1> (w)
   y = MatMul (x, c)
}
""")
    assert "Cast" not in operators(model)
    assert sqnr(proto, model) > 26


def test_a_weight_that_two_nodes_read_is_stored_once() -> None:
    _, model, _ = quantized("""
agraph (float[1,4,4,4] x) => (float[1,4,4,4] y)
<float[4,4,1,1] w>
{
   a = Conv (x, w)
   y = Conv (a, w)
}
""")
    stored = [v for v in model.graph.initializers.values() if v.dtype == ir.DataType.INT8 and g.rank(v) == 4]
    assert len(stored) == 1


def test_nothing_to_quantize_is_an_error() -> None:
    with pytest.raises(
        UnsupportedError, match="quantizes nothing in this model: eight has no kernel for Tanh"
    ):
        quantized("agraph (float[1,4] x) => (float[1,4] y) { y = Tanh (x) }")


def test_a_recipe_keeps_what_it_names() -> None:
    _, model, history = quantized(NETWORK, recipe='[[rule]]\nop = "MatMul"\nscheme = "float32"')
    reasons = {d.node: d.reason for d in history.steps[0].declined}
    assert "the recipe keeps it in floating-point" in reasons.values()
    # And with it what only moves numbers to it.
    assert quantization_report(model)["float"] == {"MatMul": 1, "Reshape": 1}


def test_a_recipe_mixes_widths() -> None:
    proto, model, _ = quantized(CONVOLUTIONS, recipe='[[rule]]\nnode = "*2*"\nscheme = "int16x8"')
    report = quantization_report(model)
    assert report["macs"]["int16"] and report["macs"]["int8"]
    assert report["boundaries"]["requantize"] == 1
    assert sqnr(proto, model) > 26


def test_overrides_win_over_the_recipe() -> None:
    names = [n.name or "" for n in passtext.imported(passtext.parse(NETWORK)).graph]
    _, model, _ = quantized(
        NETWORK, recipe='[[rule]]\nop = "Conv"\nscheme = "int8"', overrides={names[0]: "float32"}
    )
    assert quantization_report(model)["float"]["Conv"] == 1


def test_stated_ranges() -> None:
    _, model, _ = quantized(CONVOLUTIONS, recipe='[[rule]]\ntensor = "r1"\nrange = [0, 51]')
    node = next(n for n in model.graph if n.outputs[0].name == "r1")
    assert g.scalar(node.inputs[1]) == pytest.approx(0.2)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
def test_integer_inputs_and_outputs(dtype: str) -> None:
    proto, model, _ = quantized(CONVOLUTIONS, dtypes={"x": dtype, "y": dtype})
    _, plain, _ = quantized(CONVOLUTIONS)
    said = border(model)
    after, before = ir.to_proto(model), ir.to_proto(plain)
    for feed in samples(proto, 3, 5):
        into, out = said["x"], said["y"]
        low, high = levels(into.dtype)
        codes = np.clip(np.rint(feed["x"] / np.float32(into.scale)) + into.zero, low, high)
        got = passtext.run(after, {"x": codes.astype(dtype)})["y"]
        assert got.dtype == np.dtype(dtype)
        real = (got.astype(np.float64) - out.zero) * out.scale
        expected = passtext.run(before, feed)["y"]
        step = 1.001 * max(out.scale, border_step(plain))
        assert np.abs(real - expected).max() <= (1e-5 if dtype != "int16" else step)
    if dtype == "int8":
        assert quantization_report(model)["boundaries"] == {"quantize": 0, "dequantize": 0, "requantize": 0}


def border_step(model: ir.Model) -> float:
    node = model.graph.outputs[0].producer()
    assert node is not None
    return float(g.scalar(node.inputs[1]) or 0.0)


@pytest.mark.parametrize(
    ("dtypes", "message"), [({"z": "int8"}, "no input or output 'z'"), ({"x": "int64"}, "'x' is float32")]
)
def test_types_that_cannot_be(dtypes: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        quantized(CONVOLUTIONS, dtypes=dtypes)


def test_report() -> None:
    _, model, _ = quantized(NETWORK)
    report = quantization_report(model)
    assert report["clusters"] == {"Conv": 2, "Add": 1, "MatMul": 1, "MaxPool": 1, "Reshape": 1}
    assert report["float"] == {} and report["left"] == []
    assert report["boundaries"] == {"quantize": 1, "dequantize": 1, "requantize": 0}
    macs = 64 * 8 * 27 + 64 * 8 * 72 + 128 * 10
    assert report["macs"] == {"int8": macs, "total": macs, "wider_than_8_bits": 0.0}
    assert report["weights"]["int8"]["bytes"] == 216 + 576 + 1280
    assert report["wide_activation_bytes"] == 4 * 3 * 64
    assert report["bits"]["r1"] == 8 and report["bits"]["x"] == 32 and report["bits"]["b1"] == 32


@settings(deadline=None)
@given(
    st.floats(-(2.0**66), 2.0**66, width=32), st.floats(-(2.0**66), 2.0**66, width=32),
    st.sampled_from([ir.DataType.INT8, ir.DataType.INT16, ir.DataType.UINT8]), st.booleans(),
)  # fmt: skip
def test_parameters_cover_the_range(a: float, b: float, dtype: ir.DataType, symmetric: bool) -> None:
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    found = parameters((a, b) if a <= b else (b, a), dtype, symmetric and dtype != ir.DataType.UINT8)
    lowest, highest = levels(dtype)
    assert lowest <= found.zero <= highest and found.scale > 0
    step = found.scale * (1 + 1e-5)
    assert (lowest - found.zero) * found.scale <= low + step
    assert (highest - found.zero) * found.scale >= high - step
