"""What is kept under --cache, found by its content: statistics, and pictures after their preprocessing."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

import onnx_ir as ir

from tapeout.compiler.artifact import file_errors

VERSION = 1


def put(place: Path, content: bytes) -> None:
    """Write an entry whole or not at all."""
    with file_errors("write", place):
        place.parent.mkdir(parents=True, exist_ok=True)
        staged = place.with_name(f".{place.name}.{secrets.token_hex(6)}")
        try:
            staged.write_bytes(content)
            os.replace(staged, place)
        finally:
            staged.unlink(missing_ok=True)


def statistics_place(folder: Path, model: ir.Model, data: str) -> Path:
    """Where the statistics of this very graph, weights included, on this very data lie."""
    import numpy
    import onnxruntime

    digest = hashlib.sha256(
        f"statistics {VERSION} {onnxruntime.__version__} {numpy.__version__} {data}\n".encode()
    )
    graph = model.graph
    for value in graph.inputs:
        digest.update(f"{value.name} {value.dtype} {value.shape}\n".encode())
    weights = dict(graph.initializers)
    kept = {name: value.const_value for name, value in weights.items()}
    for name, tensor in kept.items():
        if tensor is not None:
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.tobytes())
    for node in model.graph.all_nodes() if hasattr(model.graph, "all_nodes") else graph:
        names = [v.name if v is not None else "" for v in (*node.inputs, *node.outputs)]
        attributes = sorted((a.name, _text(a)) for a in node.attributes.values())
        digest.update(f"{node.domain} {node.op_type} {names} {attributes}\n".encode())
    return folder / "calibration" / f"{digest.hexdigest()[:40]}.json"


def _text(attribute: ir.Attr) -> str:
    if attribute.type == ir.AttributeType.TENSOR:
        return hashlib.sha256(attribute.value.tobytes()).hexdigest()
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return ""  # its nodes are visited by themselves
    return repr(attribute.value)


def image_place(folder: Path, content: bytes, preprocess: str) -> Path:
    """Where a picture of this content after this preprocessing lies."""
    from PIL import __version__

    digest = hashlib.sha256(f"image {VERSION} {__version__} {preprocess}\n".encode() + content)
    return folder / "images" / f"{digest.hexdigest()[:40]}.npy"
