"""Small networks with random weights that hold one of everything that the faults spoil."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper, parser

VISION = """
<ir_version: 8, opset_import: ["" : 17]>
vision (float[1,3,16,16] image) => (float[1,10] scores, float[1,8,8,8] features)
{
   [shift] shifted = Sub (mean, image)
   [scale] scaled = Div (shifted, deviation)
   [stem_conv] c0 = Conv<kernel_shape=[3,3], strides=[2,2], pads=[0,0,1,1]> (scaled, w0, b0)
   [stem_norm] n0 = BatchNormalization (c0, g0, h0, m0, v0)
   [stem_relu] r0 = Relu (n0)
   [left_conv] c1 = Conv<kernel_shape=[3,3], pads=[1,1,1,1]> (r0, w1, b1)
   [left_sigmoid] s1 = Sigmoid (c1)
   [left_gate] e1 = Mul (c1, s1)
   [right_conv] c2 = Conv<kernel_shape=[1,1]> (r0, w2, b2)
   [right_clip] e2 = Clip (c2, zero, six)
   [depthwise] c3 = Conv<kernel_shape=[3,3], pads=[1,1,1,1], group=8> (e2, w3, b3)
   [join] j = Add (e1, c3)
   [tanh] t = Tanh (j)
   [both] k = Concat<axis=1> (t, r0)
   [squeeze] q = Conv<kernel_shape=[1,1]> (k, w4, b4)
   [features] features = Relu (q)
   [pool_max] p = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[0,0,1,1]> (features)
   [pool_mean] a = AveragePool<kernel_shape=[2,2], strides=[1,1], pads=[0,0,1,1]> (p)
   [flat] f = Reshape (a, flat_shape)
   [head_fc] h = Gemm<transB=1> (f, w5, b5)
   [head_relu] hr = Relu (h)
   [head_out] scores = Gemm<transB=1> (hr, w6, b6)
}
"""
VISION_WEIGHTS: dict[str, tuple[int, ...]] = {
    "mean": (1, 3, 1, 1),
    "deviation": (1, 3, 1, 1),
    "w0": (8, 3, 3, 3),
    "b0": (8,),
    "g0": (8,),
    "h0": (8,),
    "m0": (8,),
    "v0": (8,),
    "w1": (8, 8, 3, 3),
    "b1": (8,),
    "w2": (8, 8, 1, 1),
    "b2": (8,),
    "w3": (8, 1, 3, 3),
    "b3": (8,),
    "w4": (8, 16, 1, 1),
    "b4": (8,),
    "w5": (32, 128),
    "b5": (32,),
    "w6": (10, 32),
    "b6": (10,),
}

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
text (int64[1,12] ids, float[1,12] attention_mask) => (float[1,6] logits)
{
   [embed_words] words = Gather (table, ids)
   [embed_places] places = Slice (positions, from, to, axis0)
   [embed_sum] x0 = Add (words, places)
   [norm_mean] mu = ReduceMean<axes=[-1]> (x0)
   [norm_centre] d = Sub (x0, mu)
   [norm_square] d2 = Pow (d, two)
   [norm_variance] var = ReduceMean<axes=[-1]> (d2)
   [norm_eps] ve = Add (var, eps)
   [norm_root] sd = Sqrt (ve)
   [norm_divide] nd = Div (d, sd)
   [norm_scale] ns = Mul (nd, gamma)
   [norm_shift] x1 = Add (ns, beta)
   [query] q0 = MatMul (x1, wq)
   [key] k0 = MatMul (x1, wk)
   [value] v0 = MatMul (x1, wv)
   [query_split] q1 = Reshape (q0, heads)
   [key_split] k1 = Reshape (k0, heads)
   [value_split] v1 = Reshape (v0, heads)
   [query_turn] q2 = Transpose<perm=[0,2,1,3]> (q1)
   [key_turn] k2 = Transpose<perm=[0,2,3,1]> (k1)
   [value_turn] v2 = Transpose<perm=[0,2,1,3]> (v1)
   [scores] s0 = MatMul (q2, k2)
   [scores_scale] s1 = Mul (s0, factor)
   [mask_bool] mb = Cast<to=9> (attention_mask)
   [mask_wide] mw = Unsqueeze (mb, axes12)
   [mask_apply] s2 = Where (mw, s1, low)
   [softmax] pr = Softmax<axis=-1> (s2)
   [attend] o0 = MatMul (pr, v2)
   [attend_turn] o1 = Transpose<perm=[0,2,1,3]> (o0)
   [attend_join] o2 = Reshape (o1, joined)
   [attend_out] o3 = MatMul (o2, wo)
   [residual] x2 = Add (o3, x1)
   [mlp_up] u0 = MatMul (x2, wu)
   [mlp_up_bias] u = Add (u0, bu)
   [gelu_divide] g0 = Div (u, root2)
   [gelu_erf] g1 = Erf (g0)
   [gelu_one] g2 = Add (g1, one)
   [gelu_times] g3 = Mul (u, g2)
   [gelu_half] g4 = Mul (g3, half)
   [mlp_down] d0 = MatMul (g4, wd)
   [mlp_tanh] d1 = Tanh (d0)
   [tail] dt = Slice (d1, two_at, end_at, axis1)
   [pick] first = Gather<axis=1> (dt, index)
   [head] h = Gemm (first, wh, bh)
   [head_sigmoid] logits = Sigmoid (h)
}
"""
TEXT_WEIGHTS: dict[str, tuple[int, ...]] = {
    "table": (50, 16),
    "positions": (20, 16),
    "gamma": (16,),
    "beta": (16,),
    "wq": (16, 16),
    "wk": (16, 16),
    "wv": (16, 16),
    "wo": (16, 16),
    "wu": (16, 32),
    "bu": (32,),
    "wd": (32, 16),
    "wh": (16, 6),
    "bh": (6,),
}
TEXT_CONSTANTS = {
    "from": np.array([3]),
    "to": np.array([15]),
    "axis0": np.array([0]),
    "two_at": np.array([2]),
    "end_at": np.array([11]),
    "axis1": np.array([1]),
    "two": np.float32(2),
    "eps": np.float32(1e-5),
    "heads": np.array([1, 12, 4, 4]),
    "factor": np.float32(0.5),
    "axes12": np.array([1, 2]),
    "low": np.float32(-1e4),
    "joined": np.array([1, 12, 16]),
    "root2": np.float32(2**0.5),
    "one": np.float32(1),
    "half": np.float32(0.5),
    "index": np.array(4),
}
VISION_CONSTANTS = {"zero": np.float32(0), "six": np.float32(0.8), "flat_shape": np.array([1, -1])}


def network(name: str) -> onnx.ModelProto:
    """ "vision" or "text", its weights random and always the same."""
    text, weights, constants = {
        "vision": (VISION, VISION_WEIGHTS, VISION_CONSTANTS),
        "text": (TEXT, TEXT_WEIGHTS, TEXT_CONSTANTS),
    }[name]
    model = parser.parse_model(text)
    rng = np.random.default_rng(5)
    for key, shape in weights.items():
        fan = int(np.prod(shape[1:])) if key.startswith("w") and len(shape) > 2 else shape[0]
        array = rng.standard_normal(shape) / (fan**0.5 if key.startswith("w") else 2)
        if key in ("deviation", "v0"):
            array = np.abs(array) + 0.5
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), key))
    for key, constant in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(constant), key))
    onnx.checker.check_model(model)
    return model
