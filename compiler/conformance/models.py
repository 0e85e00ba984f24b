"""Whole models of a folder as cases, where a target has a float scheme: on random inputs, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tapeout.compiler.conformance.case import EITHER, Case
from tapeout.compiler.errors import TapeoutError

if TYPE_CHECKING:
    from tapeout.compiler.target import Target

LARGEST = 256 << 20  # bytes of a model that is handed to the worker
# Of the largest magnitude, or so many times what ONNX Runtime is apart from itself with and without optimizations.
RELATIVE, SPREAD = 1e-3, 4.0


def models(folder: Path, target: Target, device: str, notes: list[str]) -> Iterator[Case]:
    """A case for each ONNX file below `folder`; what is left out is said in `notes`."""
    from tapeout.compiler.data import random_inputs
    from tapeout.compiler.ir.load import load
    from tapeout.compiler.reference import Reference, spread

    found = sorted(folder.rglob("*.onnx"))
    if not found:
        notes.append(f"no .onnx file lies below '{folder}'")
    if "float32" not in target.schemes:
        notes.append(f"{len(found)} models are left out: the target has no float32 scheme")
        return
    for path in found:
        name = path.stem if path.stem != "model" else path.parent.name
        if path.stat().st_size > LARGEST:
            notes.append(f"model {name} is left out: larger than {LARGEST >> 20} MiB")
            continue
        try:
            model = load(path)
            (inputs,) = random_inputs(model, samples=1)
            with Reference(path, threads=1) as reference:
                outputs = reference.run(inputs)
            apart = max(spread(path, [inputs], threads=1).values(), default=0.0)
        except TapeoutError as error:
            notes.append(f"model {name} is left out: {error.message}")
            continue
        if not all(isinstance(a, np.ndarray) and a.dtype.kind in "biuf" for a in outputs.values()):
            notes.append(f"model {name} is left out: its outputs are no numbers")
            continue
        yield Case(
            f"model-{name}", name, path.read_bytes(), inputs, outputs, level="models", expects=EITHER,
            device=device, relative=max(RELATIVE, SPREAD * apart), origin=name,
        )  # fmt: skip
