"""Puts the stages of a factorized layer in place of its node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.origin import merged_origin, set_origin
from tapeout.compiler.ir.shapes import infer_node
from tapeout.passes.factorization.forms import Stage
from tapeout.passes.sparsity.layers import Layer

Array = np.ndarray[Any, Any]


def split(graph: ir.Graph, found: Layer, stages: Sequence[Stage]) -> None:
    """Let `stages` compute what the layer's node did; the last adds its bias."""
    node = found.node
    value, made = node.inputs[0], node.outputs[0]
    assert value is not None and found.stored.const_value is not None
    dtype = found.stored.const_value.dtype.numpy()
    hint = (node.name or "layer").split("~")[0]

    def add(op: str, given: Sequence[ir.Value | None], attributes: Mapping[str, Any]) -> ir.Value:
        fresh = ir.node(op, given, attributes, name=g.fresh(graph, hint))
        result = fresh.outputs[0]
        result.name, result.type = g.fresh(graph, hint), made.type
        infer_node(fresh)
        set_origin(fresh, merged_origin([node]))
        graph.insert_before(node, fresh)
        return result

    for number, stage in enumerate(stages):
        weight, attributes = stage.weight, dict(stage.attributes)
        bias = list(node.inputs[2:]) if number == len(stages) - 1 else []
        if node.op_type == "MatMul":
            weight = weight.T
        elif node.op_type == "Gemm":
            attributes["transB"] = 1
            if not number:
                attributes["transA"] = int(g.attribute(node, "transA", 0))
            if bias:
                attributes["beta"] = float(g.attribute(node, "beta", 1.0))
        held = g.add_constant(graph, np.ascontiguousarray(weight).astype(dtype), f"{hint}_factor")
        if dtype == np.float16:
            held = add("Cast", [held], {"to": int(ir.DataType.FLOAT)})
        value = add(node.op_type, [value, held, *bias], attributes)
    g.replace(graph, made, value)
