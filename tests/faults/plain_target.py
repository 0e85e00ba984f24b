"""A target that takes everything and writes the graph as ONNX: any tuple of passes can be tested with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir

from tapeout.compiler.declaration import Acceptance
from tapeout.compiler.declaration.rows import Row
from tapeout.compiler.ir.save import to_bytes
from tapeout.compiler.pipeline import Pass
from tapeout.compiler.reference import Reference
from tapeout.compiler.target import Request, Target

Array = np.ndarray[Any, Any]


class Everything:
    """The declaration of a target without limits; a row per operator, lowered to itself."""

    def match(self, node: ir.Node, functions: Any = None) -> Row:
        return Row(op=node.op_type, index=1, file="plain", lower=node.op_type.upper())

    def accept(self, model: ir.Model) -> Acceptance:
        return Acceptance("plain", placed=[(n, self.match(n)) for n in model.graph], order=list(model.graph))


class Runner:
    runtime = "ORT"
    device = "cpu"

    def __init__(self, path: Path) -> None:
        self._reference = Reference(path)

    def run(self, inputs: Mapping[str, Array], /) -> dict[str, Array]:
        return self._reference.run(inputs)

    def tensors(self, inputs: Mapping[str, Array], names: Sequence[str], /) -> dict[str, Array]:
        known = set(self._reference.names())
        return self._reference.run(inputs, [n for n in names if n in known])


def _emit(model: ir.Model, sink: BinaryIO, request: Request) -> None:
    sink.write(to_bytes(model))


def plain(passes: tuple[Pass, ...] = (), emit: Any = _emit) -> Target:
    """A target with these passes."""
    return Target(
        name="plain",
        suffix=".onnx",
        schemes=("float32",),
        devices=("cpu",),
        declaration=lambda device: Everything(),  # type: ignore[arg-type, return-value]
        passes=lambda request: passes,
        emit=emit,
        runners=lambda path, request: (Runner(path),),
    )
