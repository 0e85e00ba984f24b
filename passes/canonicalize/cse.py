"""What is computed twice is computed once, and what is stored twice is stored once.

f(x, y), f(x, y) -> one of them         two initializers of the same bytes -> one of them
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.evaluate import RANDOM
from tapeout.compiler.ir.origin import merged_origin, set_origin
from tapeout.compiler.rewriting import Changes

# Initializers of up to this many bytes are compared by their bytes; larger ones by a sample first.
SMALL = 4096


def merge_duplicates(model: ir.Model) -> Changes:
    """Merge equal nodes and equal initializers, graph by graph. Random operators and nodes with subgraphs
    stay."""
    count = 0
    for graph in list(g.graphs(model)):
        count += _constants(graph) + _nodes(graph)
        g.remove_dead(graph)
    return Changes(count)


def _nodes(graph: ir.Graph) -> int:
    seen: dict[Hashable, ir.Node] = {}
    dead: list[ir.Node] = []
    for node in graph:
        if (node.domain == "" and node.op_type in RANDOM) or g.has_subgraph(node):
            continue
        key = (node.op_identifier(), tuple(map(id, node.inputs)), len(node.outputs), _attributes(node))
        first = seen.setdefault(key, node)
        if first is node or any(
            a.is_graph_output() and b.is_graph_output()
            for a, b in zip(first.outputs, node.outputs, strict=True)
        ):
            continue
        set_origin(first, merged_origin([first, node]))
        for old, new in zip(node.outputs, first.outputs, strict=True):
            g.replace(graph, old, new)
        dead.append(node)
    g.remove_dead(graph, dead)
    return len(dead)


def _attributes(node: ir.Node) -> Hashable:
    return tuple(sorted((name, attr.type, _plain(attr)) for name, attr in node.attributes.items()))


def _plain(attr: ir.Attr) -> Any:
    value = attr.value
    if attr.is_ref():
        return ("ref", attr.ref_attr_name)
    if attr.type == ir.AttributeType.TENSOR:
        return (int(value.dtype), tuple(value.shape), value.tobytes())
    if attr.type in (ir.AttributeType.FLOAT, ir.AttributeType.FLOATS):
        return np.asarray(value, dtype=np.float32).tobytes()
    if isinstance(value, list | tuple):
        return tuple(str(v) if not isinstance(v, int | bytes) else v for v in value)
    return value if isinstance(value, int | str | bytes) else str(value)


def _constants(graph: ir.Graph) -> int:
    groups: dict[Hashable, list[ir.Value]] = {}
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and value.uses() and not value.is_graph_output():
            groups.setdefault((tensor.dtype, tuple(tensor.shape)), []).append(value)
    count = 0
    for group in groups.values():
        if len(group) > 1:
            count += _merge(graph, group)
    return count


def _merge(graph: ir.Graph, group: list[ir.Value]) -> int:
    seen: dict[Hashable, list[ir.Value]] = {}
    count = 0
    for value in group:
        same = seen.setdefault(_sample(value), [])
        first = next((v for v in same if _equal(v, value)), None)
        if first is None:
            same.append(value)
            continue
        value.replace_all_uses_with(first)
        del graph.initializers[value.name or ""]
        count += 1
    return count


def _sample(value: ir.Value) -> Hashable:
    """The bytes of a small tensor; some elements from three places of a large one, so that little of its file
    is read."""
    tensor = value.const_value
    assert tensor is not None
    if tensor.nbytes <= SMALL:
        return _bytes(tensor)
    if isinstance(tensor, ir.LazyTensor):
        return id(tensor)  # to look at it would be to compute it
    flat = tensor.numpy().reshape(-1)
    if flat.dtype.kind == "O":
        return id(tensor)
    middle = flat.size // 2
    return b"".join(part.tobytes() for part in (flat[:32], flat[middle : middle + 32], flat[-32:]))


def _equal(a: ir.Value, b: ir.Value) -> bool:
    x, y = a.const_value, b.const_value
    assert x is not None and y is not None
    if x is y or x.nbytes <= SMALL:
        return True
    p, q = (np.ascontiguousarray(t.numpy()).reshape(-1).view(np.uint8) for t in (x, y))
    return bool(np.array_equal(p, q))


def _bytes(tensor: ir.TensorProtocol) -> bytes:
    if tensor.dtype == ir.DataType.STRING:
        return repr(tensor.numpy().tolist()).encode()
    return tensor.tobytes()
