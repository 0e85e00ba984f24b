"""Products whose biases kernels add in real numbers: they are fitted like others, and their biases moved."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.passes.quantization.layers import Fit, shift_bias
from tapeout.passes.quantization.products import product
from tests.passtext import imported, parse

TEXT = """agraph (float[1,4,5,5] x) => (float[1,6,5,5] y)
<int8[6,4,1,1] w, float[6] s = {1, 2, 3, 4, 5, 6}, float[6] b = {1, 1, 1, 1, 1, 1}> {
    real = DequantizeLinear<axis=0> (w, s)
    y = Conv (x, real, b)
    z = Add (y, y)
}"""


def convolution(model: ir.Model) -> ir.Node:
    return next(n for n in model.graph if n.op_type == "Conv")


def test_a_real_bias_is_moved() -> None:
    model = imported(parse(TEXT))
    node = convolution(model)
    found = product(node)
    assert found is not None and Fit._fits(found)
    shift = np.arange(6) / 4
    shift_bias(model, node, shift)
    np.testing.assert_allclose(g.constant(node.inputs[2]), 1 + shift, rtol=1e-6)
    assert [n.op_type for n in model.graph].count("DequantizeLinear") == 1
