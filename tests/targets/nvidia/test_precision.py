"""What computes in half precision, and what stays wide."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tapeout.compiler import pipeline
from tapeout.compiler.ir.load import from_text
from tapeout.compiler.reference import Reference
from tapeout.compiler.target import Request
from tapeout.targets.nvidia.tensorrt import TARGET

HEADER = '<ir_version: 10, opset_import: ["" : 25]>\n'


def legalized(text: str, scheme: str = "float16", **options: str) -> ir.Model:
    model = from_text(HEADER + text)
    pipeline.run(model, TARGET.passes(Request(scheme=scheme, device="gpu", options=options)))
    assert [str(r) for r in TARGET.declaration("gpu").accept(model).refused] == []
    return model


def types(model: ir.Model) -> dict[str, str]:
    """The type in which each operator computes."""
    return {n.op_type: n.inputs[0].dtype.name for n in model.graph if n.inputs[0] and n.inputs[0].dtype}


@pytest.mark.parametrize("scheme, half", [("float16", "FLOAT16"), ("bfloat16", "BFLOAT16")])
def test_products_are_narrow_and_sums_of_squares_wide(scheme: str, half: str) -> None:
    model = legalized(
        """agraph (float[N, 64] x) => (float[N, 64] y)
        <float[64, 64] w = {{{}}}, float[64] s = {{{}}}> {{
            p = MatMul(x, w)
            n = LayerNormalization<axis = -1>(p, s)
            q = MatMul(n, w)
            m = Softmax(q)
            y = Relu(m)
        }}""".format(", ".join(["0.125"] * 4096), ", ".join(["1"] * 64)),
        scheme,
    )  # fmt: skip
    found = types(model)
    assert found["MatMul"] == half
    assert found["LayerNormalization"] == found["Softmax"] == "FLOAT"
    assert [v.dtype for v in (*model.graph.inputs, *model.graph.outputs)] == [ir.DataType.FLOAT] * 2
    weights = [v for v in model.graph.initializers.values() if v.shape is not None and v.shape.rank() == 2]
    assert [v.dtype.name for v in weights if v.dtype] == [half], "one narrow copy, the wide one gone"


def test_squares_beyond_float16_do_not_overflow() -> None:
    """RMSNormalization of values of 3e3: the sum of 256 squares is 2.3e9, float16 ends at 6.6e4."""
    text = """agraph (float[2, 256] x) => (float[2, 256] y)
        <float[256] s = {{{}}}> {{
            a = Add(x, x)
            n = RMSNormalization<axis = -1>(a, s)
            y = Mul(n, n)
        }}""".format(", ".join(["1"] * 256))  # fmt: skip
    model = legalized(text)
    x = np.random.default_rng(0).normal(0, 1500, (2, 256)).astype(np.float32)
    found = run(model, x)
    a = 2 * x.astype(np.float64)
    right = (a / np.sqrt((a**2).mean(-1, keepdims=True) + 1e-5)) ** 2
    # Three roundings to float16 (2^-11 each), the last two of a square.
    np.testing.assert_allclose(found, right, rtol=5 * 2**-11, atol=1e-4)


def test_a_half_model_of_another_tool_sums_in_single_precision() -> None:
    text = """agraph (float16[2, 256] x) => (float16[2, 256] y)
        <float16[256] s = {{{}}}> {{ y = LayerNormalization<axis = -1>(x, s) }}""".format(
        ", ".join(["1"] * 256)
    )
    model = legalized(text, "float32")
    assert types(model)["LayerNormalization"] == "FLOAT"
    x = np.random.default_rng(1).normal(0, 5000, (2, 256)).astype(np.float16)
    found = run(model, x)
    assert found.dtype == np.float16 and np.isfinite(found).all()


def test_a_mask_beyond_the_half_type_stays_wide() -> None:
    model = legalized(
        """agraph (float[2, 4] x, bool[2, 4] hidden) => (float[2, 4] y)
        <float far = {-3.4e38}, float zero = {0}> {
            mask = Where(hidden, far, zero)
            scores = Add(x, mask)
            y = Softmax(scores)
        }"""
    )
    assert {n.op_type: n.outputs[0].dtype.name for n in model.graph if n.outputs[0].dtype}["Where"] == "FLOAT"
    hidden = np.array([[0, 1, 0, 1], [1, 1, 1, 1]], bool)
    found = run(model, np.ones((2, 4), np.float32), hidden)
    np.testing.assert_array_equal(found, [[0.5, 0, 0.5, 0], [0.25] * 4])


def test_sizes_are_computed_exactly() -> None:
    """4099 is no float16: a size that went through one would be 4100."""
    model = legalized(
        """agraph (float[1, N] x) => (float[1, M] y)
        <float half = {0.5}, int64[1] row = {1}, int64[1] one = {1}> {
            shape = Shape<start = 1>(x)
            real = Cast<to = 1>(shape)
            some = Mul(real, half)
            whole = Cast<to = 7>(some)
            target = Concat<axis = 0>(row, whole)
            flat = Slice(x, one, whole, one)
            y = Add(flat, flat)
        }"""
    )
    assert run(model, np.zeros((1, 8198), np.float32)).shape == (1, 4098)


def test_what_the_user_names_stays_wide() -> None:
    text = """agraph (float[2, 4] x) => (float[2, 4] y) { a = Add(x, x)  y = Mul(a, a) }"""
    assert types(legalized(text)) | {"Cast": ""} == {"Cast": "", "Add": "FLOAT16", "Mul": "FLOAT16"}
    assert types(legalized(text, wide="a"))["Add"] == "FLOAT"


def run(model: ir.Model, *inputs: Any) -> Any:
    with Reference(model) as reference:
        feed = dict(zip((v.name or "" for v in model.graph.inputs), inputs, strict=True))
        (found,) = reference.run(feed).values()
    return found
