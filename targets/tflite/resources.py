"""State inside the file: resource variables, set to zero before the first run and by the signature `reset`.

x, h -> y, h'   with h' the next h   ->   x -> y
CALL_ONCE(zero)   h = READ_VARIABLE(VAR_HANDLE)   ...   ASSIGN_VARIABLE(VAR_HANDLE, h')
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from ai_edge_litert import schema_py_generated as s

from tapeout.sdk import graph as g
from tapeout.targets.tflite import writer
from tapeout.targets.tflite.builder import Builder
from tapeout.targets.tflite.run import RESET


class States:
    """The states of one file. `read` comes before everything else in the main graph, `assign` behind it."""

    def __init__(self, main: Builder, graph: ir.Graph, pairs: Mapping[str, str]) -> None:
        inputs = {v.name: v for v in graph.inputs}
        outputs = {v.name: v for v in graph.outputs}
        self.main = main
        self.pairs = [(inputs[start], outputs[end]) for start, end in pairs.items()]
        self._handles: dict[ir.Value, int] = {}

    @property
    def inputs(self) -> set[ir.Value]:
        return {start for start, _ in self.pairs}

    @property
    def outputs(self) -> set[ir.Value]:
        return {end for _, end in self.pairs}

    def read(self) -> None:
        """Let the values of the inputs be what the variables hold."""
        if not self.pairs:
            return
        zero = self._zero()
        once = s.CallOnceOptionsT()
        once.initSubgraphIndex = zero.number
        self.main.operator("CALL_ONCE", [], [], once)
        for value, _ in self.pairs:
            assert value.dtype is not None
            self._handles[value] = _handle(self.main, value)
            made = self.main.tensor(value.name or "state", g.dims(value), value.dtype)
            self.main.graph.tensors[made].name = value.name or "state"
            self.main.operator("READ_VARIABLE", [self._handles[value]], [made], s.ReadVariableOptionsT())
            self.main.bind(value, made)

    def assign(self) -> None:
        """Keep what the outputs hold. All are computed before any is kept."""
        ends = [self.main.index(end) for _, end in self.pairs]
        for (value, _), end in zip(self.pairs, ends, strict=True):
            self.main.operator("ASSIGN_VARIABLE", [self._handles[value], end], [], s.AssignVariableOptionsT())

    def _zero(self) -> Builder:
        """The subgraph that sets every variable to zero."""
        child = self.main.subgraph("zero_states")
        for value, _ in self.pairs:
            shape = g.static_dims(value)
            assert shape is not None and value.dtype is not None
            zeros = child.constant(np.zeros(shape, value.dtype.numpy()), "zeros")
            handle = _handle(child, value)
            child.operator("ASSIGN_VARIABLE", [handle, zeros], [], s.AssignVariableOptionsT())
        child.finish([])
        self.main.file.signatures.append(writer.Signature(RESET, [], [], child.number))
        return child


def _handle(b: Builder, value: ir.Value) -> int:
    made = b.resource(value.name or "state")
    options = s.VarHandleOptionsT()
    options.container, options.sharedName = "", value.name or "state"
    b.operator("VAR_HANDLE", [], [made], options)
    return made
