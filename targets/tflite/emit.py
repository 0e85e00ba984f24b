"""Writes a legalized graph as a TFLite file: nodes become operators by their rows, weights follow behind."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import BinaryIO

import onnx_ir as ir

from tapeout.sdk import Declaration, Refusal, Request, UnsupportedError, states
from tapeout.targets.tflite import sparse, writer
from tapeout.targets.tflite.builder import Builder
from tapeout.targets.tflite.clusters import Cluster, cluster
from tapeout.targets.tflite.lower import LOWERINGS
from tapeout.targets.tflite.resources import States
from tapeout.targets.tflite.versions import minimum_runtime


def emit(model: ir.Model, sink: BinaryIO, request: Request) -> None:
    """Write `model`, which the passes have legalized and the declaration accepts, to `sink`."""
    from tapeout.targets.tflite import declaration

    pairs = states(model, request.options)
    writer.write(build(model, declaration(request.device), pairs, sparse.asked(request)), sink)


def build(
    model: ir.Model, rows: Declaration, pairs: Mapping[str, str] | None = None, packed: bool = False
) -> writer.File:
    """The tables of the file; weights are referred to, not read. `pairs` are inputs and outputs that the file
    keeps as its state; with `packed` zeros of weights are left out where that saves bytes."""

    def find(node: ir.Node) -> Cluster:
        row = rows.match(node, model.functions)
        if isinstance(row, Refusal):
            raise UnsupportedError(str(row), nodes=[node.name or ""])
        return cluster(LOWERINGS[row.lower or ""], row, rows.call(node, model.functions))

    file = writer.File(f"tapeout {importlib.metadata.version('tapeout')}")
    builder = Builder(file, "main", find)
    graph = model.graph
    kept = States(builder, graph, pairs or {})
    inputs = [v for v in graph.inputs if v not in kept.inputs]
    outputs = [v for v in graph.outputs if v not in kept.outputs]
    for value in inputs:
        builder.input(value)
    kept.read()
    builder.lower(graph)
    kept.assign()
    builder.finish(outputs)
    if packed:
        sparse.pack(file)
    serving = writer.Signature(
        "serving_default",
        [(v.name or "", i) for v, i in zip(inputs, builder.graph.inputs, strict=True)],
        [(v.name or "", i) for v, i in zip(outputs, builder.graph.outputs, strict=True)],
    )
    file.signatures.insert(0, serving)
    file.buffers.append(minimum_runtime(file).encode().ljust(16, b"\0"))
    file.metadata.append(("min_runtime_version", len(file.buffers) - 1))
    return file
