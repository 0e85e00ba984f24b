"""Small networks with random weights for passes that look at calibration data."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir

from tapeout.compiler.calibration import Calibration
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.load import from_proto
from tapeout.compiler.ir.save import to_bytes
from tapeout.compiler.reference import open_session

Array = np.ndarray[Any, Any]
HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'


def network(text: str, seed: int = 0) -> ir.Model:
    """The network in ONNX's text syntax; tensors that it declares without a value are random weights."""
    proto = onnx.parser.parse_model(HEAD + text)
    draw = np.random.default_rng(seed)
    made = {o for n in proto.graph.node for o in n.output}
    given = {i.name for i in proto.graph.initializer}
    for value in list(proto.graph.value_info):
        if value.name not in made | given:
            shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
            fan = max(int(np.prod(shape[1:])) if len(shape) > 2 else shape[0], 1)
            dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            weight = (draw.standard_normal(shape) / np.sqrt(fan)).astype(dtype)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, value.name))
            proto.graph.value_info.remove(value)
    return from_proto(proto)


def samples(model: ir.Model, count: int, seed: int = 7) -> list[dict[str, Array]]:
    """Inputs whose channels move together, as those of real data do."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        feed = {}
        for value in model.graph.inputs:
            shape = [int(d) for d in g.static_dims(value) or ()]
            common = np.cumsum(draw.standard_normal(shape), axis=-1) / np.sqrt(shape[-1])
            feed[value.name or ""] = (common + 0.2 * draw.standard_normal(shape)).astype(np.float32)
        found.append(feed)
    return found


def calibration(model: ir.Model, count: int = 24) -> Calibration:
    feeds = samples(model, count)
    return Calibration(lambda: feeds, model)


def outputs(model: ir.Model, feeds: list[dict[str, Array]]) -> Array:
    """The first output for each of `feeds`, in ONNX Runtime."""
    session = open_session(to_bytes(model), None, 1)
    return np.stack([session.run(None, feed)[0] for feed in feeds])
