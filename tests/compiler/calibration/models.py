"""A small network with random weights, and data for it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper, parser

from tapeout.compiler.ir.load import from_proto

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N,3,8,8] x) => (float[N,5] y) {
  [conv] c = Conv<kernel_shape=[3,3], pads=[1,1,1,1]> (x, w, b)
  [relu] r = Relu (c)
  [second] d = Conv<kernel_shape=[1,1]> (r, v)
  [tanh] t = Tanh (d)
  [sum] s = Add (t, r)
  [pool] p = GlobalAveragePool (s)
  [flat] f = Flatten (p)
  [gemm] y = Gemm (f, m)
}"""
SHAPES = {"w": (4, 3, 3, 3), "b": (4,), "v": (4, 4, 1, 1), "m": (4, 5)}


def proto(text: str = TEXT, shapes: dict[str, tuple[int, ...]] = SHAPES, seed: int = 3) -> onnx.ModelProto:
    """The network as ONNX."""
    rng = np.random.default_rng(seed)
    model = parser.parse_model(text)
    for name, shape in shapes.items():
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def network(text: str = TEXT, shapes: dict[str, tuple[int, ...]] = SHAPES, seed: int = 3) -> ir.Model:
    """The network in the IR."""
    return from_proto(proto(text, shapes, seed))


def samples(count: int = 9, seed: int = 0) -> np.ndarray:
    """Inputs for it, the later the larger."""
    rng = np.random.default_rng(seed)
    scale = np.linspace(0.5, 2, count)[:, None, None, None]
    return (rng.standard_normal((count, 3, 8, 8)) * scale).astype(np.float32)
