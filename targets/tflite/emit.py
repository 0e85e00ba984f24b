"""Writes a legalized graph as a TFLite file: nodes become operators by their rows, weights follow behind."""

from __future__ import annotations

import importlib.metadata
from typing import BinaryIO

import onnx_ir as ir

from tapeout.compiler.declaration import Declaration, Refusal
from tapeout.compiler.errors import UnsupportedError
from tapeout.compiler.target import Request
from tapeout.targets.tflite import writer
from tapeout.targets.tflite.builder import Builder
from tapeout.targets.tflite.clusters import Cluster, cluster
from tapeout.targets.tflite.lower import LOWERINGS
from tapeout.targets.tflite.versions import minimum_runtime


def emit(model: ir.Model, sink: BinaryIO, request: Request) -> None:
    """Write `model`, which the passes have legalized and the declaration accepts, to `sink`."""
    from tapeout.targets.tflite import declaration

    writer.write(build(model, declaration(request.device)), sink)


def build(model: ir.Model, rows: Declaration) -> writer.File:
    """The tables of the file; weights are referred to, not read."""

    def find(node: ir.Node) -> Cluster:
        row = rows.match(node, model.functions)
        if isinstance(row, Refusal):
            raise UnsupportedError(str(row), nodes=[node.name or ""])
        return cluster(LOWERINGS[row.lower or ""], row, rows.call(node, model.functions))

    file = writer.File(f"tapeout {importlib.metadata.version('tapeout')}")
    builder = Builder(file, "main", find)
    graph = model.graph
    for value in graph.inputs:
        builder.input(value)
    builder.lower(graph)
    builder.finish(graph.outputs)
    file.signatures.append(
        writer.Signature(
            "serving_default",
            [(v.name or "", i) for v, i in zip(graph.inputs, builder.graph.inputs, strict=True)],
            [(v.name or "", i) for v, i in zip(graph.outputs, builder.graph.outputs, strict=True)],
        )
    )
    file.buffers.append(minimum_runtime(file).encode().ljust(16, b"\0"))
    file.metadata.append(("min_runtime_version", len(file.buffers) - 1))
    return file
