"""A target that needs no vendor's software: writes JSON, runs it in NumPy. The driver is tested with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir

from tapeout.compiler.declaration import Declaration, Refusal
from tapeout.compiler.ir import graph as g
from tapeout.compiler.pipeline import Pass
from tapeout.compiler.rewriting import Builder, NodeRule, Rewrite
from tapeout.compiler.target import Request, Target

Array = np.ndarray[Any, Any]
HERE = Path(__file__).parent


def convolve(
    x: Array, w: Array, b: Array | None = None, *, strides: Sequence[int] = (1, 1), **_: Any
) -> Array:
    """A valid convolution of x [N,C,H,W] by w [O,C,KH,KW]."""
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3))
    y = np.einsum("nchwij,ocij->nohw", windows[:, :, :: strides[0], :: strides[1]], w)
    return y if b is None else y + b[:, None, None]


LOWERINGS: dict[str, Callable[..., Array]] = {
    "convolve": convolve,
    "clamp": lambda x: np.maximum(x, 0),
    "add": np.add,
    "add_bias": np.add,
    "matrix": np.matmul,
}


class ReluTwice(NodeRule):
    """Relu(Relu(x)) -> Relu(x)"""

    ops = ("Relu",)

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | None:
        return None if g.producer(node.inputs[0], "Relu") is None else node.inputs[0]


def passes(request: Request) -> tuple[Pass, ...]:
    return (Rewrite("tiny", (ReluTwice(),)),)


def declaration(device: str) -> Declaration:
    return Declaration.load(HERE / "target.toml", device)


def emit(model: ir.Model, sink: BinaryIO, request: Request) -> None:
    rows, steps = declaration(request.device), []
    for node in model.graph:
        row = rows.match(node, model.functions)
        assert not isinstance(row, Refusal), str(row)
        attributes = {k: g.attribute(node, k) for k in node.attributes}
        names = [v.name if v is not None else None for v in node.inputs]
        steps.append(
            {"do": row.lower, "inputs": names, "output": node.outputs[0].name, "attributes": attributes}
        )
    constants = {n: g.constant(v) for n, v in model.graph.initializers.items()}
    artifact = {
        "constants": {
            n: {"shape": a.shape, "data": a.ravel().tolist()} for n, a in constants.items() if a is not None
        },
        "steps": steps,
        "outputs": [v.name for v in model.graph.outputs],
    }
    sink.write(json.dumps(artifact, sort_keys=True).encode())


class TinyRunner:
    """Runs the JSON."""

    runtime = f"NumPy {np.__version__}"
    device = "one"

    def __init__(self, artifact: Path) -> None:
        self.artifact = json.loads(artifact.read_text())

    def run(self, inputs: Mapping[str, Array], /) -> dict[str, Array]:
        return self.tensors(inputs, self.artifact["outputs"])

    def tensors(self, inputs: Mapping[str, Array], names: Sequence[str], /) -> dict[str, Array]:
        known: dict[str | None, Array | None] = {None: None}
        for name, constant in self.artifact["constants"].items():
            known[name] = np.asarray(constant["data"], np.float32).reshape(constant["shape"])
        known.update(inputs)
        for step in self.artifact["steps"]:
            lowering = LOWERINGS[step["do"]]
            known[step["output"]] = lowering(*(known[n] for n in step["inputs"]), **step["attributes"])
        return {n: a for n in names if (a := known.get(n)) is not None}


TARGET = Target(
    name="tiny",
    suffix=".json",
    schemes=("float32",),
    devices=("one", "two"),
    declaration=declaration,
    passes=passes,
    emit=emit,
    runners=lambda path, request: (TinyRunner(path),),
)
