"""Small graphs that run every kernel, at sizes that no tile divides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Case = tuple[str, Mapping[str, np.ndarray[Any, Any]]]


def drawn(seed: int, *shape: int, dtype: str = "float32") -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def unary(call: str, *, shift: float = 0.0) -> Callable[[], Case]:
    text = f"agraph (float[7, 5] x) => (float[7, 5] y) {{ y = {call} }}"
    return lambda: (text, {"x": drawn(1, 7, 5) + np.float32(shift)})


def products(dtype: str) -> Case:
    kind = "float16" if dtype == "float16" else "float"
    text = f"""agraph ({kind}[3, 37, 50] a, {kind}[50, 21] b, {kind}[21] c) => ({kind}[3, 37, 21] y) {{
        p = MatMul(a, b)
        s = Add(p, c)
        y = Relu(s)
    }}"""
    return text, {
        "a": drawn(2, 3, 37, 50, dtype=dtype),
        "b": drawn(3, 50, 21, dtype=dtype),
        "c": drawn(4, 21, dtype=dtype),
    }


def attention() -> Case:
    text = """agraph (float[2, 2, 19, 8] q, float[2, 2, 8, 19] k, float[2, 2, 19, 8] v) => (float[2, 2, 19, 8] y) {
        s = MatMul(q, k)
        p = Softmax<axis = -1>(s)
        y = MatMul(p, v)
    }"""
    return text, {"q": drawn(5, 2, 2, 19, 8), "k": drawn(6, 2, 2, 8, 19), "v": drawn(7, 2, 2, 19, 8)}


def fused_attention(attributes: str, mask: str) -> Callable[[], Case]:
    """Two heads of Q for each of K and V, packed; 35 keys for 19 rows."""
    extra = f", {mask} m" if mask else ""
    text = f"""agraph (float[2, 19, 24] q, float[2, 35, 12] k, float[2, 35, 10] v{extra}) => (float[2, 19, 20] y) {{
        y = Attention<q_num_heads = 4, kv_num_heads = 2{attributes}>(q, k, v{", m" if mask else ""})
    }}"""
    inputs = {"q": drawn(20, 2, 19, 24), "k": drawn(21, 2, 35, 12), "v": drawn(22, 2, 35, 10)}
    if mask:
        inputs["m"] = drawn(23, 19, 35) > 0 if "bool" in mask else drawn(23, 2, 1, 19, 35)
    return lambda: (text, inputs)


def convolution(attributes: str, channels: int, outputs: int, group: int, size: str) -> Callable[[], Case]:
    text = f"""agraph (float[2, {channels}, 9, 7] x, float[{outputs}, {channels // group}, 3, 3] w, float[{outputs}] b)
    => (float[2, {outputs}, {size}] y) {{
        c = Conv<{attributes}, group = {group}>(x, w, b)
        y = Relu(c)
    }}"""
    return lambda: (
        text,
        {
            "x": drawn(8, 2, channels, 9, 7),
            "w": drawn(9, outputs, channels // group, 3, 3),
            "b": drawn(10, outputs),
        },
    )


def simple(call: str, result: str, constants: str = "") -> Callable[[], Case]:
    text = f"agraph (float[2, 6, 9, 7] x) => ({result} y) {constants} {{ y = {call} }}"
    return lambda: (text, {"x": drawn(11, 2, 6, 9, 7)})


def gathered() -> Case:
    text = "agraph (float[3, 11, 5] x, int64[4] i) => (float[3, 4, 5] y) { y = Gather<axis = 1>(x, i) }"
    return text, {"x": drawn(12, 3, 11, 5), "i": np.array([0, -1, 10, 3])}


def picked(call: str, result: str, places: Any) -> Callable[[], Case]:
    found = np.array(places)
    shape = ", ".join(map(str, found.shape))
    text = f"agraph (float[3, 11, 5] x, int64[{shape}] i) => ({result} y) {{ y = {call} }}"
    return lambda: (text, {"x": drawn(15, 3, 11, 5), "i": found})


def rows(call: str) -> Callable[[], Case]:
    text = f"agraph (float[5, 1500] x, float[1500] s) => (float[5, 1500] y) {{ y = {call} }}"
    return lambda: (text, {"x": drawn(13, 5, 1500) + 2, "s": drawn(14, 1500)})


WINDOW = "kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]"
AXES = "<int64[1] axes = {1}>"
CASES: dict[str, Callable[[], Case]] = {
    "gemm float32": lambda: products("float32"),
    "gemm float16": lambda: products("float16"),
    "attention": attention,
    "fused attention": fused_attention("", ""),
    "masked attention": fused_attention("", "float[2, 1, 19, 35]"),
    "hidden attention": fused_attention("", "bool[19, 35]"),
    "causal attention": fused_attention(", is_causal = 1", ""),
    "conv": convolution("pads = [1, 1, 1, 1], strides = [2, 2]", 5, 20, 1, "5, 4"),
    "conv in groups": convolution("pads = [1, 0, 0, 1], dilations = [2, 1]", 6, 4, 2, "6, 6"),
    "depthwise": convolution("pads = [1, 1, 1, 1]", 6, 6, 6, "9, 7"),
    "max pool": simple(f"MaxPool<{WINDOW}>(x)", "float[2, 6, 5, 4]"),
    "mean pool": simple(f"AveragePool<{WINDOW}>(x)", "float[2, 6, 5, 4]"),
    "mean pool with pads": simple(
        "AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1>(x)", "float[2, 6, 9, 7]"
    ),
    "softmax": simple("Softmax<axis = 1>(x)", "float[2, 6, 9, 7]"),
    "log softmax": rows("LogSoftmax(x)"),
    "layer norm": rows("LayerNormalization<axis = -1>(x, s)"),
    "rms norm": rows("RMSNormalization<axis = -1>(x, s)"),
    "sum": simple("ReduceSum<keepdims = 0>(x, axes)", "float[2, 9, 7]", AXES),
    "mean": simple("ReduceMean<keepdims = 0>(x, axes)", "float[2, 9, 7]", AXES),
    "max": simple("ReduceMax<keepdims = 0>(x, axes)", "float[2, 9, 7]", AXES),
    "l2": simple("ReduceL2<keepdims = 0>(x, axes)", "float[2, 9, 7]", AXES),
    "prod": simple("ReduceProd<keepdims = 0>(x, axes)", "float[2, 9, 7]", AXES),
    "log sum exp": simple("ReduceLogSumExp<keepdims = 0>(x, axes)", "float[2, 9, 7]", AXES),
    "arg max": simple("ArgMax<axis = 1, keepdims = 0>(x)", "int64[2, 9, 7]"),
    "arg min": simple("ArgMin<axis = 3, keepdims = 0, select_last_index = 1>(x)", "int64[2, 6, 9]"),
    "shape": simple("Shape(x)", "int64[4]"),
    "elements": picked("GatherElements<axis = 1>(x, i)", "float[3, 2, 2]", [[[0, -1], [4, 3]]] * 3),
    "places": picked("GatherND(x, i)", "float[2, 5]", [[0, -1], [2, 3]]),
    "transpose": simple("Transpose<perm = [3, 1, 0, 2]>(x)", "float[7, 6, 2, 9]"),
    "pad": simple("Pad(x, p)", "float[2, 6, 12, 7]", "<int64[8] p = {0, 0, 2, 0, 0, 0, 1, 0}>"),
    "gather": gathered,
    "tanh": unary("Tanh(x)"),
    "small tanh": unary("Tanh(x)", shift=1e-3),
    "sigmoid": unary("Sigmoid(x)"),
    "gelu": unary("Gelu(x)"),
    "mish": unary("Mish(x)"),
    "softplus": unary("Softplus(x)"),
    "round": unary("Round(x)", shift=0.5),
    "hard swish": unary("HardSwish(x)"),
    "power": unary("Pow(x, x)", shift=5),
}  # fmt: skip
