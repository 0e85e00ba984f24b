"""One call of every operator that the NPU takes: the inside of all of its rules."""

from __future__ import annotations

from typing import Any

from tests.compiler.vela_u55 import load
from tests.compiler.vela_u55.nodes import T, ints

DECLARATION = load()
MAP = T((1, 8, 8, 16))
HALF = T((1, 4, 4, 16))
FLAT = T((1, 16))
PADS = T((4, 2), "int32", None, data=1)
BIAS_T = T((16,), "int32", data=3)
ONE = {"input": MAP, "output": MAP}
TWO = {"input1": MAP, "input2": MAP, "output": MAP}
W = T((16, 3, 3, 16), data=2)
VALID = T((1, 6, 6, 16))
REDUCED = {"input": MAP, "axis": ints(1, 2), "output": T((1, 16))}
CONV = {"input": MAP, "weights": W, "bias": BIAS_T, "output": VALID}
GATES = [f"{a}_to_{b}_weights" for a in ("input", "recurrent") for b in ("input", "forget", "cell", "output")]
LSTM: dict[str, Any] = dict.fromkeys(GATES, T((8, 8), data=1))
LSTM |= {
    f"{gate}_bias": T((8,), "int32", data=1)
    for gate in ("input_gate", "forget_gate", "cell_gate", "output_gate")
}
LSTM |= {
    "input": T((1, 5, 8)),
    "output": T((1, 5, 8)),
    "output_state": T((1, 8)),
    "cell_state": T((1, 8), "int16"),
}
RESIZE = {"input": HALF, "size": ints(8, 8), "output": MAP}


INSIDE: dict[str, dict[str, Any]] = {
    **{
        op: ONE
        for op, rows in DECLARATION.rows.items()
        if DECLARATION.source.interfaces[op].ports == ("input", "output")
    },
    **dict.fromkeys(("ADD", "MAXIMUM", "MINIMUM", "MUL", "SQUARED_DIFFERENCE", "SUB"), TWO),
    **dict.fromkeys(("MEAN", "REDUCE_MAX", "REDUCE_MIN", "SUM"), REDUCED),
    **{op: {"inputs": [MAP, MAP], "output": T((1, 8, 8, 32))} for op in ("CONCATENATION", "PACK")},
    **{
        op: {"input": MAP, "paddings": PADS, "output": T((3, 10, 10, 18))}
        for op in ("MIRROR_PAD", "PAD", "PADV2")
    },
    "PADV2": {"input": MAP, "paddings": PADS, "value": T((1,), data=0), "output": T((3, 10, 10, 18))},
    "ARG_MAX": {"input": MAP, "axis": ints(3), "output": T((1, 8, 8), "int32", None)},
    "AVERAGE_POOL_2D": {"input": MAP, "output": HALF, "attr.kernel_shape": [2, 2], "attr.strides": [2, 2]},
    "MAX_POOL_2D": {"input": MAP, "output": HALF, "attr.kernel_shape": [2, 2], "attr.strides": [2, 2]},
    "BATCH_MATMUL": {"input1": T((2, 8, 4)), "input2": T((2, 4, 8)), "output": T((2, 8, 8))},
    "CONV_2D": CONV,
    "DEPTHWISE_CONV_2D": CONV | {"weights": T((1, 3, 3, 16), data=2)},
    "FULLY_CONNECTED": {"input": FLAT, "weights": T((16, 16), data=2), "bias": BIAS_T, "output": FLAT},
    "TRANSPOSE_CONV": {
        "shape": ints(1, 16, 16, 16),
        "input": MAP,
        "weights": T((16, 3, 3, 16), data=2),
        "bias": BIAS_T,
        "output": T((1, 16, 16, 16)),
        "attr.padding": "SAME",
        "attr.strides": [2, 2],
    },
    "EXPAND_DIMS": {"input": MAP, "axis": ints(0), "output": T((1, 1, 8, 8, 16))},
    "PRELU": {"input": MAP, "alpha": T((1, 1, 16), data=1), "output": MAP},
    "RESHAPE": {"input": MAP, "shape": ints(1, 1024), "output": T((1, 1024))},
    "RESIZE_BILINEAR": RESIZE,
    "RESIZE_NEAREST_NEIGHBOR": RESIZE,
    "REVERSE_V2": ONE,
    "SLICE": {"input": MAP, "begin": ints(0, 0, 0, 0), "size": ints(1, 4, 4, 16), "output": HALF},
    "SPLIT": {"axis": ints(1), "input": MAP, "outputs": [T((1, 4, 8, 16))] * 2, "attr.num_splits": 2},
    "SPLIT_V": {
        "axis": ints(1),
        "sizes": ints(4, 4),
        "input": MAP,
        "outputs": [T((1, 4, 8, 16))] * 2,
        "attr.num_splits": 2,
    },
    "SQUEEZE": {"input": MAP, "output": T((8, 8, 16))},
    "STRIDED_SLICE": {
        "input": MAP,
        "begin": ints(0, 0, 0, 0),
        "end": ints(1, 8, 8, 16),
        "steps": ints(1, 2, 2, 1),
        "output": HALF,
    },
    "TILE": {"input": HALF, "multiples": ints(1, 2, 2, 1), "output": MAP},
    "TRANSPOSE": {"input": MAP, "perm": ints(0, 2, 1, 3), "output": MAP},
    "UNPACK": {"input": MAP, "outputs": [T((8, 16))] * 8, "attr.axis": 1},
    "UNIDIRECTIONAL_SEQUENCE_LSTM": LSTM,
}
