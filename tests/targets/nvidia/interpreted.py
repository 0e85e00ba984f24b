"""Runs plans in Triton's interpreter, launch by launch over the same arena, and says how far each kernel is from
float64. It is a program: the interpreter is chosen before Triton is imported."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np

from tapeout.compiler.ir.load import from_text
from tapeout.compiler.reference import Reference
from tapeout.targets.nvidia import executor
from tapeout.targets.nvidia.fuse import numbers
from tapeout.targets.nvidia.kernels.build import function
from tapeout.targets.nvidia.kernels.source import TYPES
from tapeout.targets.nvidia.kernels.templates import source
from tapeout.targets.nvidia.plan.expressions import value
from tests.targets.nvidia.cases import CASES
from tests.targets.nvidia.road import HEADER, opened

Array = np.ndarray[Any, Any]


class Memory:
    """What the interpreter asks of a tensor."""

    device = "cpu"

    def __init__(self, array: Array, dtype: str) -> None:
        self.array, self.dtype, self.shape = array, TYPES[dtype], array.shape

    def data_ptr(self) -> int:
        return int(self.array.ctypes.data)

    def new_empty(self, *_: Any, **__: Any) -> Memory:
        return self

    def set_(self, *_: Any) -> None:
        pass

    def untyped_storage(self) -> Memory:
        return self

    def cpu(self) -> Memory:
        return self

    def copy_(self, _: Any) -> None:
        pass

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return self.shape

    def stride(self) -> tuple[int, ...]:
        return tuple(s // self.array.itemsize for s in self.array.strides)


class Interpreted(executor.Executor):
    """The executor with kernels of the GPU in the place of NumPy."""

    folder: Path
    used: set[str]

    def _step(self, launch: Any, place: Any) -> None:
        made = source(launch, self.plan.tensors)
        self.used.add(launch.operation)
        tensors = [
            Memory(place.array(i), self.plan.tensors[i].dtype) for i in (*launch.reads, *launch.writes)
        ]
        counts = [value(code, place.sizes) for code in numbers(launch)]
        grid = tuple(value(code, place.sizes) for code in made.grid)
        with np.errstate(all="ignore"):
            function(made, self.folder)[grid](*tensors, *counts, **made.constants)


def run(text: str, inputs: Mapping[str, Array], folder: Path) -> tuple[float, list[str]]:
    """The largest error over the largest magnitude of the outputs against float64, and which kernels ran."""
    runs = Interpreted(opened(text))
    runs.folder, runs.used = folder, set()
    found = runs.run(inputs)
    doubled = text.replace("float16[", "double[").replace("float[", "double[").replace("bdouble", "double")
    wide = {k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in inputs.items()}
    with Reference(from_text(HEADER + doubled)) as reference:
        expected = reference.run(wide)
    worst = 0.0
    for name, right in expected.items():
        gap = np.abs(found[name].astype(np.float64) - right).max(initial=0.0)
        worst = max(worst, float(gap / max(np.abs(right).max(initial=0.0), 1e-30)))
    return worst, sorted(runs.used)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        for name in sys.argv[1:] or CASES:
            text, inputs = CASES[name]()
            error, used = run(text, inputs, Path(place))
            print(json.dumps({"case": name, "error": error, "kernels": used}), flush=True)
