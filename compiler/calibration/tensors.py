"""Which tensors of a float graph are measured, which axes of them, and how made ones are known again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
# Operators over the axes behind axis 1: their last axis is a place, not a channel.
SPATIAL = frozenset(
    {
        "Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "LRN",
        "BatchNormalization", "InstanceNormalization", "GroupNormalization", "Resize", "DepthToSpace",
        "SpaceToDepth", "ConvInteger", "GridSample", "Pad",
    }
)  # fmt: skip
# Constants up to so many elements are told apart by their content, larger ones by a part of it.
HASHED = 1 << 16


@dataclass(frozen=True)
class Wanted:
    """The tensors to measure: name -> axes with statistics of their own; and who stands in for whom."""

    axes: dict[str, tuple[int, ...]]
    stand_in: dict[str, str]
    values: dict[str, ir.Value]


def wanted(model: ir.Model) -> Wanted:
    """Every float tensor of the main graph but constants, what has scales already, and what saturation cuts."""
    axes: dict[str, tuple[int, ...]] = {}
    values: dict[str, ir.Value] = {}
    stand_in: dict[str, str] = {}
    for value in _floats(model.graph):
        name = value.name or ""
        other = _cut(value)
        if other is not None:
            stand_in[name] = other
            continue
        axes[name], values[name] = _axes(value), value
    return Wanted(axes, stand_in, values)


def _floats(graph: ir.Graph) -> Iterator[ir.Value]:
    for value in graph.inputs:
        if value.dtype in FLOATS and not _scaled(value):
            yield value
    for node in graph:
        if node.op_type == "DequantizeLinear":
            continue
        for value in node.outputs:
            read = value.uses() or value.is_graph_output()
            if value.name and value.dtype in FLOATS and read and not _scaled(value):
                yield value


def _scaled(value: ir.Value) -> bool:
    """Whether only QuantizeLinear reads it: the model brought its scale."""
    uses = value.uses()
    return (
        bool(uses) and all(u.node.op_type == "QuantizeLinear" for u in uses) and not value.is_graph_output()
    )


def _cut(value: ir.Value) -> str | None:
    """The output of the only reader of `value` where that is a Relu, or a Clip whose bounds are constants with
    zero between: codes of the output's range compute the same from a saturated input."""
    node = g.only_use(value)
    if node is None or node.domain or node.op_type not in ("Relu", "Clip") or value.producer() is None:
        return None
    if node.op_type == "Clip":
        if node.inputs[0] is not value:
            return None
        bounds = [g.scalar(v) for v in node.inputs[1:] if v is not None]
        if any(b is None for b in bounds):
            return None
        low, high = (
            g.scalar(node.inputs[i]) if len(node.inputs) > i and node.inputs[i] is not None else None
            for i in (1, 2)
        )
        if (low is not None and low > 0) or (high is not None and high < 0):
            return None
    return node.outputs[0].name


def _axes(value: ir.Value) -> tuple[int, ...]:
    """Axis 1, and the last one where it is no place in a picture."""
    rank = g.rank(value)
    if rank is None or rank < 2:
        return ()
    around = [u.node for u in value.uses()]
    made = value.producer()
    spatial = any(n.op_type in SPATIAL for n in [*around, *([made] if made else [])])
    return (1,) if rank == 2 or (spatial and rank > 2) else (1, rank - 1)


# --- names that hold across targets ---------------------------------------------------------------------------


def keys(model: ir.Model, names: dict[str, ir.Value]) -> dict[str, str]:
    """For each value the key that a statistics file knows it by: its name where that is the source's, else
    what it computes: operator, attributes and the keys of its inputs, down to source tensors."""
    known: dict[int, str] = {}
    result = {}
    for name, value in names.items():
        result[name] = _key(value, known)
    return result


def _key(value: ir.Value, known: dict[int, str]) -> str:
    found = known.get(id(value))
    if found is not None:
        return found
    name = value.name or ""
    if "~" not in name and not g.is_constant(value):
        known[id(value)] = name
        return name
    # Without recursion: chains of made values can be long.
    stack = [value]
    while stack:
        top = stack[-1]
        if id(top) in known:
            stack.pop()
            continue
        node = top.producer()
        if "~" not in (top.name or "") and not g.is_constant(top):
            known[id(top)] = top.name or ""
        elif node is None:
            known[id(top)] = _constant(top)
        else:
            waiting = [v for v in node.inputs if v is not None and id(v) not in known]
            if waiting:
                stack.extend(waiting)
                continue
            digest = hashlib.sha256()
            digest.update(f"{node.domain}\n{node.op_type}\n{top.index()}\n".encode())
            for attribute in sorted(node.attributes.values(), key=lambda a: a.name):
                digest.update(f"{attribute.name}={_attribute(attribute)}\n".encode())
            for source in node.inputs:
                digest.update(("" if source is None else known[id(source)]).encode() + b"\n")
            known[id(top)] = f"~{node.op_type}:{digest.hexdigest()[:20]}"
        stack.pop()
    return known[id(value)]


def _attribute(attribute: ir.Attr) -> str:
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        graphs = [attribute.value] if attribute.type == ir.AttributeType.GRAPH else list(attribute.value)
        return ";".join(f"{n.op_type}" for graph in graphs for n in graph)
    if attribute.type == ir.AttributeType.TENSOR:
        return hashlib.sha256(attribute.value.tobytes()).hexdigest()
    return repr(attribute.value)


def _constant(value: ir.Value) -> str:
    """A constant by its dtype, shape and content; of a large one its start, its end and its middle count."""
    tensor = value.const_value
    if tensor is None:
        return f"?{value.name}"
    array = tensor.numpy().reshape(-1)
    if array.size > HASHED:
        middle = array.size // 2
        third = HASHED // 3
        array = np.concatenate([array[:third], array[middle : middle + third], array[-third:]])
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes())
    digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
    return f"={digest.hexdigest()[:20]}"
