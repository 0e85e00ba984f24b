"""Weights stored as float16: the scheme "float16".

    w (float32 constant)  ->  Cast(w in float16)

for every float32 constant of at least `least` elements that float16 holds: finite, none beyond 65504.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.origin import merged_origin, set_origin
from tapeout.compiler.rewriting import Changes, Declined


@dataclass(frozen=True)
class HalfStorage:
    """Store float32 constants of at least `least` elements as float16; computation stays float32."""

    least: int = 256
    name: str = "tflite-half-storage"

    def __call__(self, model: ir.Model) -> Changes:
        count = 0
        declined: list[Declined] = []
        for graph in g.graphs(model):
            for value in list(graph.initializers.values()):
                tensor = value.const_value
                if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < self.least:
                    continue
                if value.is_graph_output() or not value.uses():
                    continue
                array = tensor.numpy()
                largest = float(np.maximum(array.max(), -array.min()))
                if not largest <= 65504:
                    declined.append(Declined(self.name, value.name or "", f"{largest:g} is beyond float16"))
                    continue
                _narrow(graph, value, tensor)
                count += 1
        return Changes(count, tuple(declined))


def _narrow(graph: ir.Graph, value: ir.Value, tensor: ir.TensorProtocol) -> None:
    readers = [use.node for use in value.uses()]
    first = next((n for n in graph if n in readers), None) or graph[0]
    half = g.add_lazy_constant(
        graph,
        [int(d) for d in tensor.shape],  # type: ignore[arg-type]
        ir.DataType.FLOAT16,
        lambda: tensor.numpy().astype(np.float16),
        value.name or "weight",
    )
    cast = ir.node("Cast", [half], {"to": int(ir.DataType.FLOAT)}, name=g.fresh(graph, "widen"))
    made = cast.outputs[0]
    made.name, made.dtype, made.shape = g.fresh(graph, value.name or "weight"), ir.DataType.FLOAT, value.shape
    set_origin(cast, merged_origin(readers[:1]))
    graph.insert_before(first, cast)
    value.replace_all_uses_with(made)
    if value.name is not None:
        del graph.initializers[value.name]
