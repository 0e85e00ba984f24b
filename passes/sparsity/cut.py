"""Removes channels for real: every weight, bias and shape that counts them becomes smaller."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.shapes import infer
from tapeout.passes.sparsity.atoms import Ties

Array = np.ndarray[Any, Any]


def cut(model: ir.Model, ties: Ties, removed: set[int]) -> int:
    """Remove the atoms whose roots are in `removed` from `model`, in place; the number of weights that went."""
    gone = 0

    def stays(atoms: Array) -> Array:
        return ~np.isin(ties.roots(atoms), list(removed))

    for (value, axis), atoms in ties.weights.items():
        kept = stays(atoms)
        if kept.all():
            continue
        tensor = value.const_value
        assert tensor is not None
        array = np.compress(kept, tensor.numpy(), axis)
        gone += tensor.size - array.size
        value.const_value = ir.tensor(np.ascontiguousarray(array), dtype=tensor.dtype, name=value.name)
        value.shape = ir.Shape(array.shape)
    for node, index, position, atoms in ties.shapes:
        numbers = g.constant(node.inputs[index])
        assert numbers is not None
        kept = stays(atoms)
        if not kept.all():
            new = np.array(numbers)
            new[position] = int(kept.sum())
            node.replace_input_with(index, g.add_constant(model.graph, new, f"{node.name}_shape"))
    for node, atoms in ties.groups:
        kept = stays(atoms)
        if not kept.all():
            node.attributes["group"] = ir.AttrInt64("group", int(kept.sum()))
    for value in list(model.graph.initializers.values()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[value.name or ""]
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    infer(model)
    return gone
