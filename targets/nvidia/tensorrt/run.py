"""Runs the written file in ONNX Runtime on the CPU: what TensorRT will read computes what the source computes.

TensorRT itself is not run: a file proven here is unproven on the GPU. ONNX Runtime has no bfloat16 kernels on the
CPU: there each operator computes in float32 and its result is rounded to bfloat16, as tensor cores do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir.load import load
from tapeout.passes.decompose.precision import FLOAT_OPS, Widen
from tapeout.sdk import InvalidModelError, Reference, Request, Rewrite, UsageError
from tapeout.sdk import graph as g
from tapeout.targets.nvidia.precision import HALF_OPS

BFLOAT16 = ir.DataType.BFLOAT16
Arrays = dict[str, np.ndarray[Any, Any]]
ROUNDED = Rewrite("rounded", (Widen((*FLOAT_OPS, *HALF_OPS), {BFLOAT16: ir.DataType.FLOAT}),))


def runners(artifact: Path, request: Request) -> tuple[OnnxRuntime, ...]:
    """`artifact` in ONNX Runtime: option `threads` bounds its threads."""
    text = request.options.get("threads", "1")
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"option threads: '{text}', expected a number of at least 1")
    return (OnnxRuntime(artifact, int(text)),)


class OnnxRuntime:
    """An ONNX file on the CPU. Raises InvalidModelError where it is none or does not run."""

    device = "cpu"

    def __init__(self, artifact: Path, threads: int = 1) -> None:
        if not artifact.is_file():
            raise InvalidModelError(f"no ONNX file at {artifact}")
        model = load(artifact)
        self._narrow: set[str] = set()  # inputs and outputs in bfloat16
        if any(v.dtype == BFLOAT16 for n in model.graph for v in (*n.inputs, *n.outputs) if v is not None):
            self._narrow = widen_borders(model)
            ROUNDED(model)
        inner = (v for n in model.graph for v in n.outputs)
        self._known = {v.name or "" for v in inner if v.dtype != BFLOAT16}
        self._reference = Reference(model, threads=threads)
        self.runtime = self._reference.runtime

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        """The outputs for `inputs`, both keyed by the source's names."""
        return self._run(inputs, self._reference.outputs())

    def tensors(self, inputs: Mapping[str, np.ndarray[Any, Any]], names: Sequence[str]) -> Arrays:
        """The tensors of the main graph among `names`, but for those in bfloat16."""
        return self._run(inputs, [n for n in names if n in self._known])

    def _run(self, inputs: Mapping[str, np.ndarray[Any, Any]], names: Sequence[str]) -> Arrays:
        feed = {k: v.astype(np.float32) if k in self._narrow else v for k, v in inputs.items()}
        found = self._reference.run(feed, names)
        return {k: v.astype(ml_dtypes.bfloat16) if k in self._narrow else v for k, v in found.items()}


def widen_borders(model: ir.Model) -> set[str]:
    """Let inputs and outputs in bfloat16, which ONNX Runtime's interface lacks, be float32; their names."""
    graph, found = model.graph, set[str]()
    for value in graph.inputs:
        if value.dtype == BFLOAT16:
            cast = _cast(graph, value, BFLOAT16)
            graph.insert_before(graph[0], cast)
            value.replace_all_uses_with(cast.outputs[0])
            cast.replace_input_with(0, value)
            value.dtype = ir.DataType.FLOAT
            found.add(value.name or "")
    for index, value in enumerate(graph.outputs):
        if value.dtype == BFLOAT16:
            cast = _cast(graph, value, ir.DataType.FLOAT)
            graph.append(cast)
            name, value.name = value.name, g.fresh(graph, value.name or "value")
            cast.outputs[0].name, graph.outputs[index] = name, cast.outputs[0]
            found.add(name or "")
    return found


def _cast(graph: ir.Graph, value: ir.Value, to: ir.DataType) -> ir.Node:
    node = ir.node("Cast", [value], {"to": int(to)}, name=g.fresh(graph, "border"))
    made = node.outputs[0]
    made.name, made.dtype, made.shape = g.fresh(graph, value.name or "value"), to, value.shape
    return node
