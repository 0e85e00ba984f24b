"""For every rule of the NPU, changes to a call that is taken: just outside, and just inside."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.compiler.vela_u55.inside import BIAS_T, HALF, INSIDE, MAP, W
from tests.compiler.vela_u55.nodes import T, ints

MANY = 65536

# (operator, just outside, what the refusal says, just inside); "+" takes what INSIDE has.
CASES: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    # rules for all
    ("ADD", {"input1": T((1, 8, "W", 16))}, "needs static dimensions after the first", {}),
    ("ADD", {"input1": T(("N", 8, 8, 16))}, "needs static shapes", {}),
    (
        "ADD",
        {"input1": replace(MAP, dtype="uint16")},
        "types of feature maps",
        {"input1": replace(MAP, dtype="int32")},
    ),
    ("CONCATENATION", {"inputs": []}, "number of inputs 0, at least 1", {"inputs": [MAP]}),
    ("SPLIT", {"outputs": [], "attr.num_splits": 0}, "number of outputs 0, at least 1", {}),
    ("MUL", {"input2": T((1, 8, 8, 16), "float32", None)}, "needs quantization of every tensor", {}),
    (
        "SUB",
        {"output": replace(MAP, scale=0.0)},
        "needs positive scales",
        {"output": replace(MAP, scale=1e-30)},
    ),
    ("NEG", {"input": replace(MAP, scale=-0.5)}, "needs positive scales", {}),
    ("TANH", {"input": replace(MAP, scale=(0.5,) * 16, axis=3)}, "quantization of input along axis 3", {}),
    ("ADD", {"input2": replace(MAP, dtype="int64")}, "bits of feature maps 64, at most 32", {}),
    ("RESHAPE", {"input": replace(MAP, dtype="int32", zp=1)}, "zero point of 32-bit tensors 1", {}),
    # operators with exceptions to rules for all
    ("PAD", {}, "", {"input": replace(MAP, scale=None), "output": T((3, 10, 10, 18), scale=None)}),
    ("CONV_2D", {}, "", {"weights": replace(W, scale=(0.5,) * 16, axis=0)}),
    (
        "ARG_MAX",
        {"input": T((1, 8, 8, 128))},
        "dimension -1 of input 128, at most 127",
        {"input": T((1, 8, 8, 127))},
    ),
    ("ARG_MAX", {"axis": ints(2)}, "axis from the end 2, exactly 1", {"axis": ints(-1)}),
    ("ARG_MAX", {}, "", {"output": T((1, 8, 8), "int64", None)}),
    # windows
    *[
        (
            op,
            {"attr.strides": [1, 4], "attr.padding": "SAME"},
            "stride 4, at most 3",
            {"attr.strides": [1, 4], "attr.padding": "VALID"},
        )
        for op in ("CONV_2D", "MAX_POOL_2D", "AVERAGE_POOL_2D")
    ],
    (
        "CONV_2D",
        {"attr.strides": [4, 1], "attr.dilations": [2, 1]},
        "4, at most 3",
        {"attr.strides": [3, 3], "attr.dilations": [2, 2]},
    ),
    ("DEPTHWISE_CONV_2D", {"attr.strides": [4, 4]}, "stride 4, at most 3", {"attr.strides": [3, 3]}),
    (
        "AVERAGE_POOL_2D",
        {"attr.kernel_shape": [9, 1], "attr.padding": "SAME"},
        "kernel height 9, at most 8",
        {"attr.kernel_shape": [8, 8], "attr.padding": "SAME"},
    ),
    (
        "AVERAGE_POOL_2D",
        {"attr.kernel_shape": [1, 9], "attr.padding": "SAME"},
        "kernel width 9, at most 8",
        {"attr.kernel_shape": [1, 9]},
    ),
    (
        "AVERAGE_POOL_2D",
        {"attr.kernel_shape": [256, 257]},
        "kernel area 65792, at most 65536",
        {"attr.kernel_shape": [256, 256]},
    ),
    (
        "MAX_POOL_2D",
        {"attr.kernel_shape": [257, 1]},
        "kernel height 257, at most 256",
        {"attr.kernel_shape": [1, MANY]},
    ),
    ("MAX_POOL_2D", {"attr.kernel_shape": [1, MANY + 1]}, "kernel area 65537, at most 65536", {}),
    *[
        entry
        for op in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
        for entry in (
            (op, {"bias": replace(BIAS_T, data=None)}, "needs constant bias", {"bias": None}),
            (
                op,
                {"bias": replace(BIAS_T, dtype="int16")},
                "type of bias int16",
                {"bias": replace(BIAS_T, dtype="int64")},
            ),
            (
                op,
                {"bias": T((16, 1), "int32", data=1)},
                "needs bias along the channels",
                {"bias": T((1, 16), "int32", data=1)},
            ),
            (
                op,
                {"bias": T((16,), "int64", data=2**40 - 1)},
                "largest magnitude of bias 1099511627775",
                {"bias": T((16,), "int64", data=2**40 - 2)},
            ),
            (
                op,
                {"weights": replace(INSIDE[op]["weights"], dtype="int16")},
                "type of weights int16",
                {"weights": replace(INSIDE[op]["weights"], dtype="uint8")},
            ),
        )
    ],
    (
        "CONV_2D",
        {"weights": T((16, 64, 32, 33), data=127)},
        "sum of absolute weights of weights 8583168, at most 8323072",
        {"weights": T((16, 64, 32, 32), data=127)},
    ),
    (
        "CONV_2D",
        {"weights": T((1, 64, 32, 32), "uint8", zp=128, data=0)},
        "sum of absolute weights",
        {"weights": T((1, 64, 32, 32), "uint8", zp=128, data=1)},
    ),
    (
        "DEPTHWISE_CONV_2D",
        {"weights": T((1, 257, 256, 2), data=127)},
        "sum of absolute weights",
        {"weights": T((1, 256, 256, 2), data=127)},
    ),
    (
        "FULLY_CONNECTED",
        {"weights": T((16, MANY + 1), data=127)},
        "sum of absolute weights",
        {"weights": T((16, MANY), data=127)},
    ),
    ("TRANSPOSE_CONV", {"weights": T((1, 3, 3, 7282), data=127)}, "sum of absolute weights", {}),
    (
        "TRANSPOSE_CONV",
        {"attr.strides": [3, 3], "output": T((1, 24, 24, 16))},
        "strides [3, 3], must be [1, 1] or [2, 2]",
        {"attr.strides": [1, 1], "output": MAP},
    ),
    (
        "TRANSPOSE_CONV",
        {"attr.strides": [1, 2], "output": T((1, 8, 16, 16))},
        "strides [1, 2]",
        {
            "attr.strides": [1, 2],
            "input": T((1, 1, 8, 16)),
            "weights": T((16, 1, 3, 16), data=1),
            "output": T((1, 1, 16, 16)),
        },
    ),
    (
        "TRANSPOSE_CONV",
        {"attr.strides": [2, 1], "output": T((1, 16, 8, 16))},
        "strides [2, 1]",
        {
            "attr.strides": [2, 1],
            "input": T((1, 8, 1, 16)),
            "weights": T((16, 3, 1, 16), data=1),
            "output": T((1, 16, 1, 16)),
        },
    ),
    (
        "TRANSPOSE_CONV",
        {"output": T((1, 17, 16, 16))},
        "size beyond what the stride gives [1, 0], exactly 0",
        {},
    ),
    (
        "TRANSPOSE_CONV",
        {"attr.padding": "VALID"},
        "[-1, -1], exactly 0",
        {"attr.padding": "VALID", "output": T((1, 17, 17, 16))},
    ),
    *[
        entry
        for op in ("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR")
        for entry in (
            (op, {"output": T((1, 12, 12, 16))}, "factor [3, 3]", {"output": T((1, 16, 16, 16))}),
            (
                op,
                {"output": T((1, 8, 16, 16))},
                "needs one size before and after",
                {"output": T((1, 32, 32, 16))},
            ),
            (
                op,
                {"output": T((1, 64, 64, 16))},
                "factor [16, 16]",
                {"input": T((1, 1, 1, 16)), "output": T((1, 64, 64, 16))},
            ),
            (
                op,
                {"attr.align_corners": True},
                "factor [2.33",
                {"attr.align_corners": True, "output": T((1, 7, 7, 16))},
            ),
            (
                op,
                {"input": T((1, 1, 4, 16)), "output": T((1, 2, 16, 16))},
                "exactly 1",
                {"input": T((1, 1, 4, 16)), "output": T((1, 1, 8, 16))},
            ),
            (op, {"output": T((1, 5, 5, 16))}, "factor [1.25", {"output": HALF}),
        )
    ],
    (
        "RESIZE_BILINEAR",
        {"attr.half_pixel_centers": True, "output": T((1, 16, 16, 16))},
        "",
        {"attr.half_pixel_centers": True},
    ),
    # matrix products
    ("BATCH_MATMUL", {"input1": T((2, 8, 4), "int16")}, "type of input1 int16, must be int8", {}),
    (
        "BATCH_MATMUL",
        {"output": T((2, 8, MANY + 1))},
        "dimension -1 of output 65537, at most 65536",
        {"output": T((2, 8, MANY))},
    ),
    ("BATCH_MATMUL", {"input1": T((2, 8, MANY + 1))}, "summed dimension 65537", {"input1": T((2, 8, MANY))}),
    (
        "BATCH_MATMUL",
        {"input1": T((2, MANY + 1, 8)), "attr.adj_x": True},
        "summed dimension 65537",
        {"input1": T((2, MANY + 1, 8))},
    ),
    (
        "FULLY_CONNECTED",
        {"weights": T((16, 2, 8), data=1)},
        "needs ones between the ends of weights",
        {"weights": T((16, 1, 1, 16), data=1)},
    ),
    (
        "FULLY_CONNECTED",
        {"weights": T((16, 16)), "input": T((1, 16), "int16")},
        "needs constant weights",
        {"weights": T((16, 16))},
    ),
    (
        "FULLY_CONNECTED",
        {"weights": T((16, 16)), "output": T((1, MANY + 1))},
        "",
        {"weights": T((16, 16)), "output": T((1, MANY))},
    ),
    (
        "FULLY_CONNECTED",
        {"weights": T((16, MANY + 1)), "input": T((1, MANY + 1))},
        "",
        {"weights": T((16, MANY)), "input": T((1, MANY))},
    ),
    ("FULLY_CONNECTED", {"attr.strides": [4, 4]}, "stride 4", {}),
]
