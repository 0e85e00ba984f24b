"""How much of what a layer's output loses reaches the model's outputs: found by adding a little noise to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.errors import InvalidModelError
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.save import to_bytes
from tapeout.compiler.reference import open_session
from tapeout.passes.quantization.layers import spread
from tapeout.passes.sparsity.layers import Layer

Array = np.ndarray[Any, Any]

# Noise, as a share of the deviation of each of a layer's outputs; samples that it is tried on.
NOISE = 0.05
SAMPLES = 8


def gains(model: ir.Model, chosen: Sequence[Layer], feeds: Sequence[Mapping[str, Array]]) -> dict[str, float]:
    """For each layer the share of the outputs' variance that is lost for each share lost of the layer's own."""
    probe = model.clone()
    nodes = {n.name: n for n in probe.graph}
    results = {f.name: f._replace(node=nodes[f.node.name]).result for f in chosen}
    axes = {f.name: 1 if f.node.op_type == "Conv" else -1 for f in chosen}
    for name, value in results.items():
        shape = ir.Shape([None] * (g.rank(value) or 0))
        noise = ir.val(f"{name}~noise", ir.DataType.FLOAT, shape)
        noisy = ir.node("Add", [value, noise], name=f"{name}~noisy")
        noisy.outputs[0].name, noisy.outputs[0].dtype = f"{name}~noisy", ir.DataType.FLOAT
        value.replace_all_uses_with(noisy.outputs[0], replace_graph_outputs=True)
        noisy.replace_input_with(0, value)
        producer = value.producer()
        assert producer is not None
        probe.graph.insert_after(producer, noisy)
        probe.graph.inputs.append(noise)
    outputs = [v.name or "" for v in probe.graph.outputs if v.dtype == ir.DataType.FLOAT]
    for value in results.values():
        probe.graph.outputs.append(value)
    session = open_session(to_bytes(probe), None, 2)
    if session is None:
        raise InvalidModelError("the model does not run in ONNX Runtime")
    few = spread(feeds, SAMPLES)
    quiet = {f"{name}~noise": np.zeros([1] * (g.rank(v) or 0), np.float32) for name, v in results.items()}
    inner = [v.name or "" for v in results.values()]
    clean = [session.run([*outputs, *inner], {**feed, **quiet}) for feed in few]
    power = [
        max(float(np.var(np.concatenate([c[i].ravel() for c in clean]))), 1e-30) for i in range(len(outputs))
    ]
    found = {}
    for index, name in enumerate(results):
        own = [held[len(outputs) + index] for held in clean]
        scale = NOISE * deviation(own, axes[name])
        lost = 0.0
        for number, (feed, held) in enumerate(zip(few, clean, strict=True)):
            noise = np.random.default_rng(number).standard_normal(own[number].shape, np.float32) * scale
            noisy = session.run(outputs, {**feed, **quiet, f"{name}~noise": noise})
            lost += sum(float(np.mean((a - b) ** 2)) / p for a, b, p in zip(noisy, held, power, strict=False))
        found[name] = lost / (len(few) * NOISE**2)
    return found


def deviation(samples: Sequence[Array], axis: int) -> Array:
    """The standard deviation of each channel along `axis` of a tensor over all its `samples`, shaped to go with one:
    what a layer loses is spread over its channels about as they are."""
    rank = samples[0].ndim
    rows = np.concatenate([np.moveaxis(s, axis, -1).reshape(-1, s.shape[axis]) for s in samples])
    shape = [1] * rank
    shape[axis] = -1
    return np.asarray(rows.std(0), np.float32).reshape(shape)
