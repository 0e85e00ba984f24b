"""Cases as in `cases.py`: operators that map, move and reduce, and what only one key of one row keeps out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.compiler.vela_u55.inside import HALF, MAP, PADS
from tests.compiler.vela_u55.nodes import T, ints

MANY = 65536

CASES: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    # elementwise
    *[
        (
            op,
            {"input": replace(MAP, dtype="int32")},
            "bits of feature maps 32, at most 16",
            {"input": replace(MAP, dtype="int16")},
        )
        for op in (
            "ABS",
            "EXP",
            "HARD_SWISH",
            "LEAKY_RELU",
            "LOGISTIC",
            "PRELU",
            "QUANTIZE",
            "RELU",
            "RELU6",
            "RELU_0_TO_1",
            "RELU_N1_TO_1",
            "TANH",
            "TILE",
            "SOFTMAX",
            "UNPACK",
            "PAD",
            "PADV2",
            "REDUCE_MAX",
            "REDUCE_MIN",
            "SLICE",
            "SPLIT",
            "SPLIT_V",
            "STRIDED_SLICE",
            "RSQRT",
            "REVERSE_V2",
            "CONV_2D",
            "DEPTHWISE_CONV_2D",
            "TRANSPOSE_CONV",
            "AVERAGE_POOL_2D",
            "MAX_POOL_2D",
            "MEAN",
            "UNIDIRECTIONAL_SEQUENCE_LSTM",
        )
    ],
    *[
        (op, {"input1": replace(MAP, dtype="int32")}, "bits of feature maps 32", {})
        for op in ("MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE")
    ],
    *[
        (op, {"inputs": [replace(MAP, dtype="int32")]}, "bits of feature maps 32", {})
        for op in ("CONCATENATION", "PACK")
    ],
    *[
        (op, {"input": replace(HALF, dtype="int32")}, "bits of feature maps 32", {})
        for op in ("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR")
    ],
    (
        "ELU",
        {"input": replace(MAP, dtype="int16"), "output": replace(MAP, dtype="int16")},
        "type of input int16, must be int8",
        {},
    ),
    (
        "GELU",
        {"input": replace(MAP, dtype="uint8")},
        "needs equal types",
        {"input": replace(MAP, dtype="uint8"), "output": replace(MAP, dtype="uint8")},
    ),
    (
        "GELU",
        {"input": replace(MAP, dtype="int16"), "output": replace(MAP, dtype="int16")},
        "type of input int16",
        {},
    ),
    (
        "LOG",
        {"input": replace(MAP, dtype="uint8"), "output": replace(MAP, dtype="uint8")},
        "type of input uint8",
        {"input": replace(MAP, dtype="int16"), "output": replace(MAP, dtype="int16")},
    ),
    *[(op, {"output": HALF}, "needs equal shapes", {}) for op in ("ELU", "GELU", "LOG")],
    (
        "RSQRT",
        {"input": replace(MAP, dtype="uint8")},
        "type of input uint8",
        {"input": replace(MAP, dtype="int16")},
    ),
    *[
        (op, {"input2": replace(MAP, scale=0.25)}, "scale of input2 0.25, 0, the same as input1 (0.5, 0)", {})
        for op in ("MAXIMUM", "MINIMUM")
    ],
    *[(op, {"output": replace(MAP, zp=1)}, "scale of output 0.5, 1", {}) for op in ("MAXIMUM", "MINIMUM")],
    # reductions
    (
        "MEAN",
        {"input": T((1, 4097, 4096, 16)), "axis": ints(1)},
        "reduced axis 4097, at most 4095",
        {"input": T((1, 4095, 4, 16)), "axis": ints(1)},
    ),
    (
        "MEAN",
        {"input": T((1, 4095, 4095, 2, 16)), "axis": ints(1, 2, 3)},
        "elements in one mean",
        {"input": T((1, 4095, 2048, 2, 16)), "axis": ints(1, 2, 3)},
    ),
    (
        "MEAN",
        {"input": T((1, 2049, 4095, 16), "uint8")},
        "elements in one mean 8390655, at most 8388608",
        {"input": T((1, 2048, 4095, 16), "uint8")},
    ),
    (
        "MEAN",
        {"input": T((1, 257, 256, 16), "int16")},
        "elements in one mean 65792, at most 65536",
        {"input": T((1, 256, 256, 16), "int16")},
    ),
    ("MEAN", {"input": T((2, 8, 8, 16))}, "batch 2, exactly 1", {}),
    ("MEAN", {"axis": T((2,), "int32", None)}, "needs constant axis", {}),
    (
        "MEAN",
        {"axis": ints(3)},
        "smallest of height, width and depth 8, at most 1",
        {"axis": ints(3), "input": T((1, 1, 8, 16))},
    ),
    *[
        (op, {"attr.strides": [4, 4]}, "stride 4, at most 3", {"attr.strides": [3, 3]})
        for op in ("REDUCE_MAX", "REDUCE_MIN", "SUM")
    ],
    ("SUM", {}, "", {"input": replace(MAP, dtype="int32")}),
    # moving data
    *[
        entry
        for op in ("MIRROR_PAD", "PAD", "PADV2")
        for entry in (
            (op, {"paddings": replace(PADS, data=None)}, "needs constant paddings", {}),
            (
                op,
                {"paddings": replace(PADS, dtype="int16")},
                "type of paddings int16",
                {"paddings": replace(PADS, dtype="int64")},
            ),
        )
    ],
    ("SLICE", {"begin": T((4,), "int32", None)}, "needs constant begin", {}),
    ("SLICE", {"size": T((4,), "int32", None)}, "needs constant size", {}),
    ("STRIDED_SLICE", {"steps": T((4,), "int32", None)}, "needs constant steps", {}),
    ("STRIDED_SLICE", {"end": ints(1, 0, 8, 16)}, "needs volume to cut out", {"end": ints(1, 1, 8, 16)}),
    ("STRIDED_SLICE", {"steps": ints(1, -1, 1, 1)}, "step -1, at least 0", {"steps": ints(1, 5, 1, 1)}),
    ("STRIDED_SLICE", {"steps": ints(1, 1, 1, 2)}, "step of batch or depth 2, at most 1", {}),
    ("SPLIT", {"attr.num_splits": 3}, "stated less real parts 1, exactly 0", {}),
    ("SPLIT_V", {"attr.num_splits": 1}, "stated less real parts -1, exactly 0", {}),
    ("REVERSE_V2", {"axis": ints(1)}, "does not take axis", {}),
    (
        "SOFTMAX",
        {"input": T((1, 256, 256, 4))},
        "height times width 65536, at most 65535",
        {"input": T((1, 255, 257, 4))},
    ),
    ("TRANSPOSE", {"perm": T((4,), "int32", None)}, "needs constant perm", {}),
    (
        "TRANSPOSE",
        {"input": T((1,) * 6 + (4, 4, 4)), "perm": ints(*range(9))},
        "rank of input 9, at most 8",
        {"input": T((1,) * 5 + (4, 4, 4)), "perm": ints(*range(8))},
    ),
    ("TRANSPOSE", {"input": T((1, 8, MANY + 1, 16))}, "65537, at most 65536", {"input": T((1, 8, MANY, 16))}),
    ("TRANSPOSE", {}, "", {"input": T((2, 9, MANY + 1, 16)), "perm": ints(0, 1, 2, 3)}),
    (
        "TRANSPOSE",
        {"input": T((8, 8, 8, 8200)), "perm": ints(3, 2, 1, 0)},
        "product of all but two dimensions 65600",
        {"input": T((8, 8, 8, 8192)), "perm": ints(3, 2, 1, 0)},
    ),
    (
        "TRANSPOSE",
        {"input": T((1, 8, 8, MANY + 1), "int32"), "perm": ints(0, 1, 2, 3)},
        "dimension -1 of input 65537",
        {"input": T((1, 8, 8, MANY), "int32"), "perm": ints(0, 1, 2, 3)},
    ),
    (
        "TRANSPOSE",
        {"input": T((1, 8, 8, 16385), "int32")},
        "dimension -1 of input 16385, at most 16384",
        {"input": T((1, 8, 8, 16384), "int32")},
    ),
    (
        "TRANSPOSE",
        {"input": T((2, 8, 8, 16), "int32")},
        "must be NHWC",
        {"input": T((1, 8, MANY, 16), "int32")},
    ),
    (
        "TRANSPOSE",
        {"input": T((2, MANY, 8, 16), "int32"), "perm": ints(0, 1, 3, 2)},
        "batch times height 131072",
        {"input": T((2, 32768, 8, 16), "int32"), "perm": ints(0, 1, 3, 2)},
    ),
    (
        "TRANSPOSE",
        {"input": T((1, 8, 8, 16), "int32"), "perm": ints(0, 3, 1, 2)},
        "permutation NCHW",
        {"input": T((8, 8, 16), "int32"), "perm": ints(0, 2, 1)},
    ),
    # recurrent
    *[
        ("UNIDIRECTIONAL_SEQUENCE_LSTM", {port: T((8,), data=1)}, f"does not take {port}", {})
        for port in (
            "input_norm",
            "forget_norm",
            "cell_norm",
            "output_norm",
            "cell_to_input_weights",
            "cell_to_forget_weights",
            "cell_to_output_weights",
            "projection_weights",
            "projection_bias",
        )
    ],
    *[
        ("UNIDIRECTIONAL_SEQUENCE_LSTM", {port: None}, f"needs {port}", {})
        for port in ("input_to_input_weights", "recurrent_to_input_weights", "input_gate_bias")
    ],
    # combinations that only one key of one row keeps out
    ("ELU", {"output": replace(MAP, dtype="uint8")}, "needs equal types", {}),
    ("LOG", {"output": replace(MAP, dtype="int16")}, "needs equal types", {}),
    ("FULLY_CONNECTED", {"weights": T((16, 2, 8))}, "needs ones between the ends of weights", {}),
    *[
        entry
        for dtype in ("uint8", "int16")
        for entry in (
            ("MEAN", {"input": T((2, 8, 8, 16), dtype)}, "batch 2", {"input": T((1, 8, 8, 16), dtype)}),
            ("MEAN", {"input": T((1, 4096, 8, 16), dtype), "axis": ints(1)}, "reduced axis 4096", {}),
            ("MEAN", {"input": T((1, 8, 8, 16), dtype), "axis": ints(3)}, "smallest of height", {}),
        )
    ],
    ("MEAN", {"input": replace(MAP, dtype="int32")}, "type of input int32", {}),
    (
        "AVERAGE_POOL_2D",
        {"attr.kernel_shape": [257, 1]},
        "kernel height 257",
        {"attr.kernel_shape": [256, 1]},
    ),
    ("STRIDED_SLICE", {"end": T((4,), "int32", None)}, "needs constant end", {}),
    ("TRANSPOSE", {"input": replace(MAP, dtype="uint8")}, "type of input uint8", {}),
    ("TRANSPOSE", {"input": T((1, MANY, 2, 2)), "perm": ints(3, 2, 1, 0)}, "permutation CWHN", {}),
    (
        "TRANSPOSE",
        {"input": T((2, 4, MANY, MANY)), "perm": ints(0, 1, 3, 2)},
        "on ethos-u55",
        {"input": T((2, 4, MANY, MANY), "int32"), "perm": ints(0, 1, 3, 2)},
    ),
    ("TRANSPOSE", {"input": T((1, 2, MANY + 1, 4), "int32")}, "height, width or depth 65537", {}),
    ("TRANSPOSE", {"input": T((1, 2, MANY + 1, 4), "int32"), "perm": ints(0, 1, 3, 2)}, "65537", {}),
    ("TRANSPOSE", {"input": T((1, 1, 4, 4, 4), "int32"), "perm": ints(0, 1, 3, 2, 4)}, "rank of input 5", {}),
    ("TRANSPOSE", {"input": T((1, 1, 4, 4, 4), "int32"), "perm": ints(0, 1, 2, 4, 3)}, "rank of input 5", {}),
    *[
        (
            "TRANSPOSE_CONV",
            {
                "attr.strides": strides,
                "input": T((1, *size, 16)),
                "weights": T((16, *window, 16), data=1),
                "output": T((1, *result, 16)),
            },
            "on ethos-u55",
            {},
        )
        for strides, size, window, result in (
            ([1, 2], (8, 8), (1, 3), (8, 16)),
            ([1, 2], (1, 8), (3, 3), (1, 16)),
            ([1, 2], (1, 8), (1, 3), (1, 17)),
            ([1, 3], (1, 8), (1, 3), (1, 24)),
            ([2, 1], (8, 8), (3, 1), (16, 8)),
            ([2, 1], (8, 1), (3, 3), (16, 1)),
            ([2, 1], (8, 1), (3, 1), (17, 1)),
            ([3, 1], (8, 1), (3, 1), (24, 1)),
        )
    ],
]
