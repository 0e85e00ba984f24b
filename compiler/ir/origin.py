"""Where a node comes from: the names of the source nodes (and module paths) it computes for."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

KEY = "tapeout.origin"


def origin(node: ir.Node) -> tuple[str, ...]:
    """The source node names of `node`, in source order; empty only before import has recorded them."""
    text = node.metadata_props.get(KEY)
    return tuple(text.split("\n")) if text else ()


def set_origin(node: ir.Node, names: Iterable[str]) -> None:
    """Record `names` (duplicates removed, order kept) as the origin of `node`."""
    node.metadata_props[KEY] = "\n".join(dict.fromkeys(names))


def merged_origin(nodes: Iterable[ir.Node]) -> tuple[str, ...]:
    """The union of the origins of `nodes`, in the order given."""
    return tuple(dict.fromkeys(name for node in nodes for name in origin(node)))
