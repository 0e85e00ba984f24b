"""Graphs for the tests of quantization: an integer device, measured ranges, and errors against the float
graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from tapeout.compiler import pipeline
from tapeout.compiler.calibration.statistics import Statistics, TensorStats
from tapeout.compiler.declaration import Declaration
from tapeout.compiler.recipe import Recipe
from tapeout.compiler.schemes import STATIC
from tapeout.passes.quantization import Quantize
from tests import passtext

Arrays = dict[str, np.ndarray[Any, Any]]

DECLARATION = Declaration.load(Path(__file__).parent / "target.toml")


def samples(proto: onnx.ModelProto, count: int = 8, seed: int = 0, scale: float = 1.0) -> list[Arrays]:
    """Normal inputs of a model with fixed shapes."""
    rng = np.random.default_rng(seed)
    constants = {i.name for i in proto.graph.initializer}
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in proto.graph.input
        if v.name not in constants
    }
    return [
        {n: (scale * rng.standard_normal(s)).astype(np.float32) for n, s in shapes.items()}
        for _ in range(count)
    ]


def measure(model: ir.Model, feeds: list[Arrays]) -> Statistics:
    """The extremes of every float tensor of `model`."""
    proto = ir.to_proto(model)
    outputs = {o.name for o in proto.graph.output}
    for node in model.graph:
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT and value.name not in outputs:
                proto.graph.output.append(onnx.helper.make_tensor_value_info(value.name, 1, None))
    found: dict[str, list[float]] = {}
    for feed in feeds:
        for name, array in {**feed, **passtext.run(proto, feed)}.items():
            if array.dtype == np.float32:
                low, high = float(array.min()), float(array.max())
                old = found.setdefault(name, [low, high])
                found[name] = [min(low, old[0]), max(high, old[1])]
    return Statistics(
        {n: TensorStats(1, low, high, 0.0, low, high, None) for n, (low, high) in found.items()}
    )


def quantized(
    text: str, scheme: str = "int8", recipe: str = "", scale: float = 1.0, **options: Any
) -> tuple[onnx.ModelProto, ir.Model, pipeline.History]:
    """The graph written in `text` as it was and quantized, with ranges of normal inputs."""
    proto = passtext.parse(text)
    model = passtext.imported(proto)
    statistics = measure(model, samples(proto, scale=scale))
    step = Quantize(STATIC[scheme], DECLARATION, statistics, Recipe.parse(recipe), **options)
    history = pipeline.run(model, (step,))
    return proto, model, history


def sqnr(proto: onnx.ModelProto, model: ir.Model, seed: int = 1, scale: float = 1.0) -> float:
    """Signal to noise in dB of the first output on inputs that calibration has not seen."""
    after = ir.to_proto(model)
    signal = noise = 0.0
    for feed in samples(proto, 4, seed, scale):
        a = next(iter(passtext.run(proto, feed).values())).astype(np.float64)
        b = next(iter(passtext.run(after, feed).values())).astype(np.float64)
        signal, noise = signal + float((a**2).sum()), noise + float(((a - b) ** 2).sum())
    return 10 * float(np.log10(signal / noise)) if noise else float("inf")


def operators(model: ir.Model) -> dict[str, int]:
    """How many nodes of each operator."""
    found: dict[str, int] = {}
    for node in model.graph:
        found[node.op_type] = found.get(node.op_type, 0) + 1
    return found
