"""Random networks in int8 on the whole road: every kernel within its row's bound, end to end no noisier than the graph.

    TAPEOUT_RANDOM_GRAPHS=500 pytest tests/targets/tflite/test_random_graphs.py

looks at 500 of them; by default there are 40.
"""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from tapeout.compiler import pipeline
from tapeout.compiler.calibration import Calibration
from tapeout.compiler.cluster_check import check_clusters
from tapeout.compiler.ir.load import from_proto
from tapeout.compiler.reference import Reference
from tapeout.compiler.target import Request
from tapeout.targets.tflite import TARGET
from tapeout.targets.tflite.run import RESOLVERS, LiteRT
from tests.targets.tflite.networks import Net

pytestmark = pytest.mark.slow

Array = np.ndarray[Any, Any]
COUNT = int(os.environ.get("TAPEOUT_RANDOM_GRAPHS", "40"))
FACTOR = 1.1


def draw(seed: int) -> onnx.ModelProto:
    """Three to eight operators on images, with branches that meet again, and often a classifier behind them."""
    n = Net(seed)
    rng = n.rng
    channels, height, width = int(rng.integers(2, 9)), int(rng.integers(5, 13)), int(rng.integers(5, 13))
    shape = [1, channels, height, width]
    x, size = n.conv("x", channels, channels, 3), (height, width)
    for _ in range(int(rng.integers(3, 9))):
        kind = str(rng.choice(KINDS))
        if kind == "conv":
            outer, k = int(rng.integers(2, 9)), int(rng.choice([1, 3]))
            x, channels = n.conv(x, channels, outer, k), outer
            x = n("Relu", x) if rng.integers(2) else x
        elif kind == "depthwise":
            x = n.conv(x, channels, channels, 3, group=channels)
            x = n("Clip", x, n.const(0.0, np.float32), n.const(6.0, np.float32)) if rng.integers(2) else x
        elif kind in ("Add", "Sub", "Mul", "Max", "Min"):
            x = n(kind, x, n.conv(x, channels, channels, 1))
        elif kind == "Concat":
            outer = int(rng.integers(1, 5))
            x = n("Concat", x, n.conv(x, channels, outer, 3), axis=1)
            channels += outer
        elif kind == "pool" and min(size) >= 4:
            x = n(str(rng.choice(["MaxPool", "AveragePool"])), x, kernel_shape=[2, 2], strides=[2, 2])
            size = (size[0] // 2, size[1] // 2)
        elif kind == "gate":
            x = n("Mul", x, n("Sigmoid", n.conv(n("GlobalAveragePool", x), channels, channels, 1)))
        elif kind == "Resize" and max(size) <= 12:
            scales = n.const([1, 1, 2, 2], np.float32)
            x = n("Resize", x, "", scales, mode="nearest", coordinate_transformation_mode="asymmetric",
                  nearest_mode="floor")  # fmt: skip
            size = (2 * size[0], 2 * size[1])
        elif kind == "Pad":
            x = n("Pad", x, n.const([0, 0, 1, 0, 0, 0, 1, 1]))
            size = (size[0] + 2, size[1] + 1)
        elif kind in ("Sigmoid", "Tanh", "HardSwish", "LeakyRelu"):
            x = n(kind, x)
    if rng.integers(2):
        x = n("Flatten", n("GlobalAveragePool", x))
        x = n("Gemm", x, n.weight(channels, 5), n.weight(5))
        x = n("Softmax", x, axis=-1) if rng.integers(2) else x
    return n.model({"x": (TensorProto.FLOAT, shape)}, x)


KINDS = (
    *(
        "conv",
        "conv",
        "depthwise",
        "Add",
        "Sub",
        "Mul",
        "Max",
        "Min",
        "Concat",
        "pool",
        "gate",
        "Resize",
        "Pad",
    ),
    *("Sigmoid", "Tanh", "HardSwish", "LeakyRelu"),
)


def samples(proto: onnx.ModelProto, count: int, seed: int) -> list[dict[str, Array]]:
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def noise(found: list[Array], right: list[Array]) -> float:
    return sum(float(((f.astype(np.float64) - r) ** 2).sum()) for f, r in zip(found, right, strict=True))


def test_kernels_keep_their_bounds_and_the_whole_is_no_noisier_than_the_graph() -> None:
    wrong, clusters = [], 0
    device = graph = 0.0
    for seed in range(COUNT):
        proto = draw(seed)
        model = from_proto(proto)
        drawn = samples(proto, 8, seed=2 * seed)
        request = Request(
            "int8", calibration=Calibration(lambda drawn=drawn: drawn, model), options={"refine": "off"}
        )
        pipeline.run(model, TARGET.passes(request))
        sink = io.BytesIO()
        TARGET.emit(model, sink, request)
        runners = [LiteRT(sink.getvalue(), resolver) for resolver in RESOLVERS]
        held = samples(proto, 6, seed=2 * seed + 1)
        builtin = next(r for r in runners if "builtin" in r.runtime)
        found = check_clusters(model, TARGET, Request("int8"), builtin, held[:1])
        clusters += len(found)
        wrong += [f"graph {seed}: {d.text()}" for d in found if not d.holds]
        (name,) = (o.name for o in proto.graph.output)
        with Reference(proto) as source, Reference(model) as quantized:
            right = [source.run(f)[name].astype(np.float64) for f in held]
            power = sum(float((r**2).sum()) for r in right) or 1.0
            own = noise([quantized.run(f)[name] for f in held], right) / power
        graph += own
        device += max(noise([r.run(f)[name] for f in held], right) for r in runners) / power
    assert wrong == []
    assert clusters >= 3 * COUNT
    assert (device / graph) ** 0.5 <= FACTOR, (device, graph)
