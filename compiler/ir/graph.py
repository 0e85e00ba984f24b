"""Small questions to and edits of a graph that every pass needs.

Conventions of the canonical IR that these rely on (see docs/architecture.md):
constants are initializers of the graph that uses them or of an outer one, never Constant nodes and never
graph inputs; every value that keeps a source name computes the source's tensor; made values have
names with `~`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

Shape = tuple[int | str, ...]

_COUNTER = "tapeout.fresh"


def dims(value: ir.Value | None) -> Shape | None:
    """The shape of `value`: ints and symbolic expressions such as "N" or "2*N+1"; None where the rank is unknown."""
    if value is None or value.shape is None:
        return None
    return tuple(
        d if isinstance(d, int) else str(d.value) if d.value is not None else "?" for d in value.shape
    )


def static_dims(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape of `value` where every dimension is a number, else None."""
    shape = dims(value)
    if shape is None or not all(isinstance(d, int) for d in shape):
        return None
    return tuple(int(d) for d in shape)


def rank(value: ir.Value | None) -> int | None:
    """Number of dimensions, or None where unknown."""
    return None if value is None or value.shape is None else value.shape.rank()


def is_constant(value: ir.Value | None) -> bool:
    """True for an initializer: its data may still lie on disk, see `constant`."""
    return value is not None and value.const_value is not None and value.producer() is None


def constant(value: ir.Value | None, limit: int | None = None) -> np.ndarray[Any, Any] | None:
    """The array of an initializer, or None where `value` is none or has more than `limit` elements."""
    if value is None or not is_constant(value):
        return None
    tensor = value.const_value
    assert tensor is not None
    if limit is not None and tensor.size > limit:
        return None
    return tensor.numpy()


def scalar(value: ir.Value | None) -> float | int | bool | None:
    """The number in an initializer of one element (of any rank), else None."""
    array = constant(value, limit=1)
    return None if array is None or array.size != 1 else array.reshape(()).item()


def producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that makes `value` where its op type is one of `op_types` in the standard domain."""
    node = None if value is None else value.producer()
    return node if node is not None and node.domain == "" and node.op_type in op_types else None


def only_use(value: ir.Value) -> ir.Node | None:
    """The single node that reads `value`, once, where it is read nowhere else and is no graph output."""
    uses = value.uses()
    return next(iter(uses)).node if len(uses) == 1 and not value.is_graph_output() else None


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """The plain Python value of an attribute (str for strings, tuple for lists), or `default`."""
    attr = node.attributes.get(name)
    if attr is None:
        return default
    value = attr.value
    if isinstance(value, bytes):
        return value.decode()
    return tuple(value) if isinstance(value, list) else value


def has_subgraph(node: ir.Node) -> bool:
    """True for If, Loop, Scan and whatever else carries a graph."""
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())


def graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """The main graph and all subgraphs, outer before inner; bodies of functions are not visited."""
    yield model.graph
    yield from model.graph.subgraphs()


def share_names(graph: ir.Graph) -> None:
    """Let `graph` and its subgraphs draw fresh names from one counter, past every name already there.

    The driver calls this for the main graph; a pass that makes a subgraph calls it again.
    """
    family = [graph, *graph.subgraphs()]
    highest = 0
    for each in family:
        nodes = list(each)
        for name in itertools.chain(
            (v.name for v in each.inputs),
            each.initializers,
            (n.name for n in nodes),
            (v.name for n in nodes for v in n.outputs),
        ):
            if name and (found := re.search(r"~(\d{1,15})$", name)):
                highest = max(highest, int(found[1]))
    counter = itertools.count(highest + 1)
    for each in family:
        each.meta[_COUNTER] = counter


def adopt_names(body: ir.Graph, graph: ir.Graph) -> None:
    """Let a new subgraph `body` draw fresh names together with the graph it will lie in."""
    if _COUNTER not in graph.meta:
        share_names(graph)
    body.meta[_COUNTER] = graph.meta[_COUNTER]


def fresh(graph: ir.Graph, hint: str) -> str:
    """A name used nowhere in the model, made from `hint`: "conv" -> "conv~3"."""
    if _COUNTER not in graph.meta:
        share_names(graph)
    return f"{hint.split('~')[0]}~{next(graph.meta[_COUNTER])}"


def add_constant(graph: ir.Graph, array: np.ndarray[Any, Any] | ir.TensorProtocol, hint: str) -> ir.Value:
    """A new initializer of `graph` holding `array`; `hint` names it."""
    name = fresh(graph, hint)
    tensor = (
        ir.tensor(np.ascontiguousarray(array) if array.ndim else array, name=name)
        if isinstance(array, np.ndarray)
        else array
    )
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape)  # type: ignore[arg-type]
    graph.register_initializer(value)
    return value


def add_lazy_constant(
    graph: ir.Graph,
    shape: Sequence[int],
    dtype: ir.DataType,
    make: Callable[[], np.ndarray[Any, Any]],
    hint: str,
) -> ir.Value:
    """A new initializer whose array `make()` computes each time it is read: large weights are never held.

    `make` must be pure, and must give exactly `shape` and `dtype`.
    """
    name = fresh(graph, hint)
    tensor = ir.LazyTensor(
        lambda: ir.Tensor(make(), dtype=dtype), dtype=dtype, shape=ir.Shape(shape), name=name
    )
    return add_constant(graph, tensor, hint)


def replace(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Let every reader of `old`, and the graph's outputs, read `new`, which keeps the name that users know.

    `old`'s producer is left for `remove_dead`. Where `old` is a graph output and `new` cannot take its name
    (a graph input, an initializer, another output, a value of an outer graph), an Identity stands between.
    """
    if old is new:
        return
    if new.type is None:
        new.type = old.type
    if new.shape is None:
        new.shape = old.shape
    if old.is_graph_output():
        owner = old.graph
        made = new.producer()
        if made is None or made.graph is not owner or new.is_graph_output():
            assert owner is not None
            bridge = ir.node("Identity", [new], name=fresh(owner, "identity"))
            bridge.outputs[0].dtype, bridge.outputs[0].shape = new.dtype, new.shape  # type: ignore[assignment]
            anchor = old.producer()
            if anchor is not None:
                bridge.metadata_props.update(anchor.metadata_props)
                owner.insert_after(anchor, bridge)
            else:
                owner.append(bridge)
            new = bridge.outputs[0]
        name = old.name
        old.name = fresh(owner, name or "value")  # type: ignore[arg-type]
        new.name = name
        if old.shape is not None:
            new.shape = old.shape  # users know the output's dimensions by the names that it was declared with
        new.metadata_props.update(
            {k: v for k, v in old.metadata_props.items() if k not in new.metadata_props}
        )
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    else:
        made = new.producer()
        if (
            made is not None
            and new.name
            and "~" in new.name
            and old.name
            and "~" not in old.name
            and not new.is_graph_output()
        ):
            name = old.name
            old.name = fresh(graph, name)
            new.name = name
        old.replace_all_uses_with(new)


def remove_dead(graph: ir.Graph, start: Iterable[ir.Node] | None = None) -> int:
    """Remove nodes whose outputs nobody reads, and what only they read; with `start`, look there only.

    Returns how many nodes went. Initializers without readers go too.
    """
    queue = list(reversed(list(graph))) if start is None else list(start)
    removed = 0
    while queue:
        node = queue.pop()
        if node.graph is not graph or any(v.uses() or v.is_graph_output() for v in node.outputs):
            continue
        inputs = [v for v in node.inputs if v is not None]
        captured = [] if not has_subgraph(node) else [v for v in graph.initializers.values() if v.uses()]
        graph.remove(node, safe=True)
        removed += 1
        for value in dict.fromkeys(inputs + captured):
            if value.uses() or value.is_graph_output():
                continue
            made = value.producer()
            if made is not None and made.graph is graph:
                queue.append(made)
            elif made is None and value.name and graph.initializers.get(value.name) is value:
                del graph.initializers[value.name]
    if start is None:
        for name in [n for n, v in graph.initializers.items() if not v.uses() and not v.is_graph_output()]:
            del graph.initializers[name]
    return removed
