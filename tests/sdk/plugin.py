"""A plugin as it comes from elsewhere: a package on the path with an entry point, written for one test."""

from __future__ import annotations

import textwrap
from pathlib import Path

TOML = """
api = 1
name = "acme"
[[op.Relu]]
lower = "relu"
types = {X = ["float32"]}
[[op.Add]]
lower = "add"
"""

MODULE = '''
"""A target that writes JSON and runs it in NumPy."""
import json
from pathlib import Path
import numpy as np
from tapeout import sdk

declaration = sdk.declarations(Path(__file__).with_name("target.toml"))
KERNELS = {"relu": lambda x: np.maximum(x, 0), "add": np.add}

def passes(request):
    return sdk.standard_passes(request, declaration(request.device))

def emit(model, sink, request):
    steps = [
        [row.lower, [v.name for v in node.inputs], node.outputs[0].name]
        for node, row in sdk.lowered(model, declaration(request.device))
    ]
    constants = {n: sdk.graph.constant(v).tolist() for n, v in model.graph.initializers.items()}
    outputs = [v.name for v in model.graph.outputs]
    sink.write(json.dumps({"steps": steps, "constants": constants, "outputs": outputs}).encode())

class Runner:
    runtime, device = "NumPy", "cpu"

    def __init__(self, path):
        self.made = json.loads(Path(path).read_text())

    def run(self, inputs):
        return self.tensors(inputs, self.made["outputs"])

    def tensors(self, inputs, names):
        known = {n: np.asarray(a, np.float32) for n, a in self.made["constants"].items()} | dict(inputs)
        for do, reads, name in self.made["steps"]:
            known[name] = KERNELS[do](*(known[n] for n in reads))
        return {n: known[n] for n in names if n in known}

def runners(path, request):
    return [Runner(path)]

TARGET = sdk.Target(
    name="acme", suffix=".acme", schemes=("float32",), devices=("cpu",), declaration=declaration,
    passes=passes, emit=emit, runners=runners,
)
'''


def install(
    folder: Path, extra: str = "", toml: str = TOML, name: str = "acme", module: str = MODULE
) -> Path:
    """Write the package `NAME_target` into `folder`, a place on the path; `extra` is put behind the module."""
    package = folder / f"{name}_target"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(module.replace('"acme"', f'"{name}"') + textwrap.dedent(extra))
    (package / "target.toml").write_text(toml)
    info = folder / f"{name}_target-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-target\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[tapeout.targets]\n{name} = {name}_target:TARGET\n")
    return package
