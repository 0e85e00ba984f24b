"""Writes the legalized graph as one ONNX file."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir

from tapeout.sdk import DOMAIN, Declaration, ResourceError, lowered, save

CHUNK = 1 << 20


def emit(model: ir.Model, sink: BinaryIO, rows: Declaration) -> None:
    """Write `model` to `sink`. Raises UnsupportedError where `rows` refuse a node, ResourceError where its weights
    do not fit into one ONNX file."""
    list(lowered(model, rows))
    if not model.functions:
        model.graph.opset_imports.pop(DOMAIN, None)  # a domain that nothing is in
    with tempfile.TemporaryDirectory(prefix="tapeout-") as folder:
        made = save(model, Path(folder) / "model.onnx")
        if len(made) > 1:
            size = made[1].stat().st_size
            raise ResourceError(
                f"the weights have {size:,} bytes; one ONNX file holds about 1,600,000,000",
                hint="--quantize float16 halves them",
            )
        with made[0].open("rb") as file:
            shutil.copyfileobj(file, sink, CHUNK)
