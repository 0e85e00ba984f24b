"""The version of a TFLite operator (the lowest with the types and options used); the oldest runtime.

A runtime registers each operator up to a highest version and refuses a file that asks for more; a version
too low would let an old runtime load what it computes wrongly. Numbers are LiteRT's published versioning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ai_edge_litert import schema_py_generated as s

if TYPE_CHECKING:
    from tapeout.targets.tflite.writer import File

T = s.TensorType
EIGHT_BITS = (T.INT8, T.UINT8)


@dataclass(frozen=True)
class Use:
    """How an operator is used: TensorTypes (None: absent input), shapes (None: rank unknown) and options."""

    inputs: tuple[int | None, ...]
    outputs: tuple[int, ...]
    shapes: tuple[tuple[int, ...] | None, ...]
    options: Any

    def rank(self, index: int) -> int:
        shape = self.shapes[index] if index < len(self.shapes) else None
        return 0 if shape is None else len(shape)


Condition = Callable[[Use], bool]


def _reads(*types: int, at: int = 0) -> Condition:
    return lambda u: at < len(u.inputs) and u.inputs[at] in types


def _makes(*types: int, at: int = 0) -> Condition:
    return lambda u: at < len(u.outputs) and u.outputs[at] in types


def _touches(*types: int) -> Condition:
    return lambda u: u.inputs[0] in types or u.outputs[0] in types


def _rank_over(limit: int) -> Condition:
    return lambda u: u.rank(0) > limit


def _broadcast_over(limit: int) -> Condition:
    return lambda u: u.shapes[0] != u.shapes[1] and max(u.rank(0), u.rank(1)) > limit


def _option(name: str) -> Condition:
    return lambda u: bool(getattr(u.options, name, False))


def _dilated(u: Use) -> bool:
    return bool((u.options.dilationHFactor, u.options.dilationWFactor) != (1, 1))


def _grouped(u: Use) -> bool:
    x, w = u.shapes[:2]
    return x is not None and w is not None and len(x) == 4 and x[3] != w[3]


def _hybrid(u: Use) -> bool:
    return u.inputs[:2] == (T.FLOAT32, T.INT8)


# For each operator its versions above the first, the decisive condition first.
Rules = tuple[tuple[int, Condition], ...]
_SMALL: Rules = ((3, _reads(T.INT16)), (2, _reads(T.INT8)))
_ONLY_INT8: Rules = ((2, _reads(T.INT8)),)
_MAXIMUM: Rules = ((4, _reads(T.INT16)), (3, _broadcast_over(4)), (2, _reads(T.INT8)))
_PAD: Rules = ((5, _reads(T.BOOL)), (4, _rank_over(4)), *_SMALL)

RULES: Mapping[str, Rules] = {
    "CONV_2D": (
        (7, _reads(T.INT4, at=1)),
        (6, _grouped),
        (4, _reads(T.INT16)),
        (3, _reads(T.INT8)),
        (5, lambda u: _hybrid(u) and u.options.dilationHFactor is not None),
    ),
    "DEPTHWISE_CONV_2D": (
        (7, _reads(T.INT4, at=1)),
        (5, _reads(T.INT16)),
        (6, _hybrid),
        (3, _reads(T.INT8)),
        (2, _dilated),
    ),
    "FULLY_CONNECTED": (
        (14, _reads(T.INT2, at=1)),
        (13, lambda u: u.inputs[:2] == (T.INT16, T.INT4)),
        (12, lambda u: u.inputs[:2] in ((T.FLOAT32, T.INT8), (T.FLOAT32, T.INT4))),
        (11, lambda u: u.inputs[:2] == (T.INT16, T.INT8) and bool(u.options.quantizedBiasType)),
        (7, _reads(T.INT16)),
        (6, lambda u: len(u.inputs) == 2),
        (5, _option("keepNumDims")),
        (10, _reads(T.INT4, at=1)),
        (4, _reads(T.INT8)),
    ),
    "TRANSPOSE_CONV": (
        (4, _option("fusedActivationFunction")),
        (3, lambda u: len(u.inputs) == 4 and u.inputs[3] is not None),
        (2, _reads(T.INT8, at=1)),
    ),
    "GATHER": (
        (7, _reads(T.INT4)),
        (6, _reads(T.INT16, at=1)),
        (5, _option("batchDims")),
        (4, _reads(T.INT16)),
        (3, _reads(T.BOOL)),
        (2, _reads(T.INT8)),
    ),
    "GATHER_ND": (
        (5, _reads(T.BOOL)),
        (4, _reads(T.INT16, at=1)),
        (3, _reads(T.INT16)),
        (2, _reads(T.STRING)),
    ),
    "ADD": ((4, _reads(T.INT64)), (3, _reads(T.INT16)), (2, _reads(T.INT8))),
    "SUB": ((5, _reads(T.INT16)), (4, _reads(T.INT64)), (3, _broadcast_over(4)), (2, _reads(T.INT8))),
    "MUL": (
        (7, _reads(T.UINT32)),
        (6, _reads(T.COMPLEX64)),
        (5, _reads(T.INT64)),
        (4, _reads(T.INT16)),
        (2, _reads(T.INT8)),
    ),
    "DIV": ((2, _broadcast_over(4)),),
    "FLOOR_DIV": ((3, _reads(T.INT16, T.INT8)), (2, _reads(T.FLOAT32))),
    "FLOOR_MOD": ((2, _reads(T.INT16, T.INT8)),),
    "MAXIMUM": _MAXIMUM,
    "MINIMUM": _MAXIMUM,
    "SIGN": ((2, _reads(T.INT32)),),
    "ABS": ((5, _reads(T.INT32)), (3, _reads(T.INT16)), (2, _reads(*EIGHT_BITS))),
    "EXP": ((2, _reads(T.INT8, T.INT16)),),
    "LOG": ((2, _reads(T.INT8, T.INT16)),),
    "RELU": ((3, _reads(T.INT16)), (2, _reads(*EIGHT_BITS))),
    "GELU": ((3, _reads(T.INT16)), (2, _reads(*EIGHT_BITS))),
    "LEAKY_RELU": ((2, _reads(T.INT16)),),
    "TANH": _SMALL,
    "LOGISTIC": _SMALL,
    "SOFTMAX": _SMALL,
    "MEAN": _SMALL,
    "MIRROR_PAD": _SMALL,
    "REDUCE_MAX": _SMALL,
    "REDUCE_MIN": _SMALL,
    "RELU6": _SMALL,
    "RSQRT": _SMALL,
    "MAX_POOL_2D": _SMALL,
    "AVERAGE_POOL_2D": _SMALL,
    "REDUCE_PROD": ((2, _reads(T.INT8, T.INT16)),),
    "SUM": _ONLY_INT8,
    "SPACE_TO_DEPTH": _ONLY_INT8,
    "DEPTH_TO_SPACE": _ONLY_INT8,
    "SPLIT_V": _ONLY_INT8,
    "LOG_SOFTMAX": _ONLY_INT8,
    "L2_NORMALIZATION": _ONLY_INT8,
    "GREATER": _ONLY_INT8,
    "LESS_EQUAL": _ONLY_INT8,
    "SQUARED_DIFFERENCE": _ONLY_INT8,
    "LESS": _SMALL,
    "GREATER_EQUAL": _SMALL,
    "EQUAL": ((4, _reads(T.INT16)), (3, _reads(T.STRING)), (2, _reads(T.INT8))),
    "NOT_EQUAL": ((3, _reads(T.STRING)), (2, _reads(T.INT8))),
    "TRANSPOSE": (
        (7, _reads(T.INT4)),
        (6, _rank_over(5)),
        (5, _reads(T.INT16)),
        (4, _rank_over(4)),
        (3, _reads(T.BOOL)),
        (2, _reads(T.INT8)),
    ),
    "SPLIT": ((4, _reads(T.INT16, at=1)), (3, _reads(T.INT32, at=1)), (2, _reads(T.INT8, at=1))),
    "SLICE": (
        (6, _reads(T.UINT32)),
        (5, _rank_over(4)),
        (4, _reads(T.INT16)),
        (3, _reads(T.STRING)),
        (2, _reads(T.INT8)),
    ),
    "STRIDED_SLICE": (
        (8, _option("offset")),
        (7, _reads(T.UINT32)),
        (6, lambda u: bool(u.options.ellipsisMask or u.options.newAxisMask)),
        (5, _reads(T.STRING)),
        (4, _rank_over(4)),
        (3, _reads(T.BOOL)),
        (2, _reads(T.INT8)),
    ),
    "REVERSE_V2": ((3, _reads(T.INT8)), (2, _reads(T.BOOL))),
    "RESIZE_BILINEAR": ((4, _reads(T.INT16)), (3, _option("halfPixelCenters")), (2, _reads(T.INT8))),
    "RESIZE_NEAREST_NEIGHBOR": (
        (4, _reads(T.INT16)),
        (3, lambda u: bool(u.options.halfPixelCenters or u.options.alignCorners)),
        (2, _reads(T.INT8)),
    ),
    "PACK": ((4, _reads(T.UINT32)), *_SMALL),
    "UNPACK": ((4, _reads(T.INT16)), (3, _reads(T.BOOL)), (2, _reads(*EIGHT_BITS))),
    "TILE": ((3, _reads(T.INT8)), (2, _reads(T.STRING))),
    "SQUEEZE": ((2, _reads(T.STRING)),),
    "SPACE_TO_BATCH_ND": ((4, _reads(T.INT16)), (3, lambda u: u.rank(0) != 4), (2, _reads(T.INT8))),
    "BATCH_TO_SPACE_ND": ((4, _reads(T.INT16)), (3, lambda u: u.rank(0) != 4), (2, _reads(T.INT8))),
    "FILL": (
        (4, _reads(T.FLOAT16, at=1)),
        (3, _reads(T.INT8, T.INT16, at=1)),
        (2, _reads(T.BOOL, T.STRING, at=1)),
    ),
    "RANGE": ((2, _reads(T.INT64)),),
    "BATCH_MATMUL": ((3, _reads(T.INT16)), (2, _reads(T.INT8)), (4, _option("asymmetricQuantizeInputs"))),
    "PAD": _PAD,
    "PADV2": _PAD,
    "CONCATENATION": ((4, _reads(T.UINT32)), *_SMALL),
    "ARG_MAX": ((3, _reads(T.BOOL)), (2, _reads(T.INT8))),
    "ARG_MIN": ((3, _reads(T.BOOL)), (2, _reads(T.INT8))),
    "SELECT": ((4, _reads(T.UINT32)), (3, _rank_over(4)), (2, _reads(T.INT8))),
    "SELECT_V2": ((2, _reads(T.UINT32)),),
    "TOPK_V2": ((3, lambda u: T.INT16 in (*u.inputs, *u.outputs)), (2, _reads(T.INT8))),
    "EMBEDDING_LOOKUP": ((5, _reads(T.INT2, at=1)), (4, _reads(T.INT4, at=1)), (3, _reads(T.INT8, at=1))),
    "DYNAMIC_UPDATE_SLICE": ((4, _reads(T.INT16)), (3, _reads(T.FLOAT16)), (2, _reads(T.INT64, at=2))),
    "BROADCAST_TO": ((3, _reads(T.INT8, T.INT16)), (2, lambda u: True)),
    "CAST": (
        (7, _touches(T.BFLOAT16)),
        (6, _reads(T.INT4)),
        (5, _touches(T.FLOAT64, T.FLOAT16)),
        (4, _touches(T.UINT16)),
        (3, _touches(T.INT8)),
        (2, _touches(T.UINT32)),
    ),
    "WHERE": ((2, lambda u: u.inputs[0] != T.BOOL),),
    "DEQUANTIZE": (
        (9, _reads(T.INT2)),
        (6, _reads(T.INT4)),
        (3, _reads(T.INT16, T.FLOAT16)),
        (2, _reads(T.INT8)),
    ),
    "QUANTIZE": ((4, _touches(T.INT4)), (2, _makes(T.INT16))),
    "SPARSE_TO_DENSE": ((3, _reads(*EIGHT_BITS, at=2)), (2, _reads(T.INT64, at=2))),
}


def version_of(code: str, use: Use) -> int:
    """The version of operator `code`, used as `use`."""
    return next((version for version, holds in RULES.get(code, ()) if holds(use)), 1)


# The runtime release that first has each version of an operator, version 1 first ("-": none has it).
RELEASES: Mapping[str, str] = {
    "ABS": "1.13 2.4 2.5 2.6 2.12",
    "ADD": "1.5 1.14 2.4 2.6 2.13",
    "ARG_MAX": "1.9 1.14 2.9",
    "ARG_MIN": "1.9 1.14 2.9",
    "AVERAGE_POOL_2D": "1.5 1.14 2.3",
    "BATCH_MATMUL": "2.3 2.3 2.4 2.5",
    "BITCAST": "2.13",
    "BITWISE_XOR": "2.13",
    "BROADCAST_TO": "- 2.5 2.5",
    "CAST": "1.5 2.7 2.8 2.9 2.12 2.16 2.19",
    "CEIL": "1.14",
    "CONCATENATION": "1.5 1.14 2.3 2.14",
    "CONV_2D": "1.5 1.14 1.14 2.3 2.4 2.9 2.11 2.13",
    "CONV_3D": "2.5",
    "COS": "1.14",
    "CUMSUM": "2.4",
    "DENSIFY": "2.2",
    "DEPTHWISE_CONV_2D": "1.5 1.12 1.14 2.2 2.3 2.3 2.11",
    "DEPTH_TO_SPACE": "2.1 2.5",
    "DEQUANTIZE": "1.13.1 1.14 1.15 2.2 2.7 2.18 2.20 2.20 2.20",
    "DIV": "1.6 2.3",
    "EMBEDDING_LOOKUP": "1.13.1 1.14 1.14 2.18 2.20",
    "DYNAMIC_UPDATE_SLICE": "2.9 2.17 2.19 2.20",
    "ELU": "1.14",
    "EQUAL": "1.14 1.14 2.3 2.13",
    "EXP": "1.7 2.12",
    "EXPAND_DIMS": "1.10",
    "FILL": "1.13 2.3 2.5 2.12",
    "FLOOR": "1.9",
    "FLOOR_DIV": "1.14 1.14 2.13",
    "FLOOR_MOD": "1.13 2.13",
    "FULLY_CONNECTED": "1.5 1.10 1.14 1.14 2.0 2.1 2.3 2.3 2.3 2.11 2.15 2.17 2.18 2.20",
    "GATHER": "1.6 1.14 1.15 2.4 2.5 2.13 2.15",
    "GATHER_ND": "1.14 2.3 2.5 2.13 2.16",
    "GELU": "2.9 2.9 2.20",
    "GREATER": "1.14 1.14",
    "GREATER_EQUAL": "1.14 1.14 2.13",
    "HARD_SWISH": "1.15",
    "IF": "1.15",
    "LEAKY_RELU": "1.13.1 2.3",
    "LESS": "1.14 1.14 2.13",
    "LESS_EQUAL": "1.14 1.14",
    "LOCAL_RESPONSE_NORMALIZATION": "1.5",
    "LOG": "1.14 2.12",
    "LOGICAL_AND": "1.11",
    "LOGICAL_NOT": "1.11",
    "LOGICAL_OR": "1.11",
    "LOGISTIC": "1.14 1.14 2.3",
    "LOG_SOFTMAX": "1.14 1.14",
    "MAXIMUM": "1.14 1.14 2.3 2.3",
    "MAX_POOL_2D": "1.5 1.14 2.3",
    "MEAN": "1.6 1.14 2.4",
    "MINIMUM": "1.14 1.14 2.3 2.3",
    "MIRROR_PAD": "1.13.1 2.3 2.12",
    "MUL": "1.5 1.14 1.15 2.3 2.6 2.11 2.13",
    "NEG": "1.9",
    "NOT_EQUAL": "1.14 1.14 2.3",
    "ONE_HOT": "1.11",
    "PACK": "1.11 1.14 2.3 2.15",
    "PAD": "1.5 1.14 2.4 2.6 2.17",
    "PADV2": "1.9 1.14 2.4 2.6 2.17",
    "POW": "1.10",
    "PRELU": "1.8",
    "QUANTIZE": "1.14 1.15 2.7 2.18",
    "RANGE": "1.13 2.14",
    "RANK": "1.14",
    "REDUCE_ALL": "2.6",
    "REDUCE_ANY": "1.11",
    "REDUCE_MAX": "1.11 1.14 2.5",
    "REDUCE_MIN": "1.11 1.14 2.5",
    "REDUCE_PROD": "1.11 2.6",
    "RELU": "1.5 2.1 2.5",
    "RELU6": "1.5 1.14 2.5",
    "RELU_0_TO_1": "2.10",
    "RELU_N1_TO_1": "1.5",
    "RESHAPE": "1.5",
    "RESIZE_BILINEAR": "1.7 1.14 2.2 2.5",
    "RESIZE_NEAREST_NEIGHBOR": "1.13.1 1.14 2.3 2.4",
    "REVERSE_SEQUENCE": "1.14",
    "REVERSE_V2": "1.14 2.2 2.5",
    "RIGHT_SHIFT": "2.13",
    "ROUND": "1.14",
    "RSQRT": "1.10 2.5 2.12",
    "SCATTER_ND": "2.1",
    "SELECT": "1.14 1.14 2.12 2.14",
    "SELECT_V2": "2.2 2.14",
    "SHAPE": "1.10",
    "SIGN": "2.12 2.12",
    "SIN": "1.9",
    "SLICE": "1.14 1.14 1.14 2.4 2.5 2.14",
    "SOFTMAX": "1.5 1.14 2.3",
    "SPACE_TO_DEPTH": "1.5 1.14",
    "SPLIT": "1.5 1.14 1.14 2.3",
    "SPLIT_V": "1.13.1 2.3",
    "SQRT": "1.10",
    "SQUARE": "1.12",
    "SQUARED_DIFFERENCE": "1.13.1 2.5",
    "SQUEEZE": "1.6 2.5",
    "STRIDED_SLICE": "1.6 1.14 2.1 2.2 2.5 2.6 2.14 2.14",
    "SUB": "1.6 1.14 2.3 2.4 2.4",
    "SUM": "1.10 1.15",
    "TANH": "1.14 1.14 2.3",
    "TILE": "1.10.1 2.2 2.8",
    "TOPK_V2": "1.7 1.14 2.13",
    "TRANSPOSE": "1.6 1.14 1.15 2.3 2.4 2.12 2.17",
    "TRANSPOSE_CONV": "1.9 2.2 2.3 2.13 2.15",
    "UNPACK": "1.11 1.14 2.2 2.3",
    "WHERE": "1.14 2.5",
    "WHILE": "1.15",
    "ZEROS_LIKE": "1.12",
}
_NEWEST = "2.20"
_NAMES = {number: name for name, number in vars(s.BuiltinOperator).items() if isinstance(number, int)}


def minimum_runtime(file: File) -> str:
    """The oldest runtime release that has every operator of `file`, such as "2.3.0"."""
    needed = ["1.5"]
    for subgraph in file.subgraphs:
        for operator in subgraph.operators:
            releases = RELEASES.get(_NAMES[operator.code], _NEWEST).split()
            needed.append(releases[operator.version - 1] if operator.version <= len(releases) else _NEWEST)
    release = max(needed, key=lambda text: tuple(int(part) for part in text.split(".")))
    return release if release.count(".") == 2 else f"{release}.0"
