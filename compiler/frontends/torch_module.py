"""A torch module or program in this process: traced by torch.export, converted by torch.onnx, module paths kept."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tapeout.compiler.errors import InvalidModelError, TapeoutError, UnsupportedError, UsageError
from tapeout.compiler.frontends.imported import Array, Imported, Run
from tapeout.compiler.frontends.steps import torch_step

_KINDS: dict[str, type[TapeoutError]] = {c.kind: c for c in (InvalidModelError, UnsupportedError, UsageError)}


def convert(
    model: Any, example_inputs: Any, dynamic_shapes: Any, folder: Path
) -> tuple[Imported, Run, list[Mapping[str, Array]]]:
    """(the ONNX form in `folder`, the original as a function, the example inputs by name).

    Raises UsageError (no example inputs, training mode), UnsupportedError (torch cannot trace or convert it).
    """
    from tapeout.compiler.frontends.importing import missing

    if importlib.util.find_spec("onnxscript") is None:
        raise missing("torch", "torch.onnx", "onnxscript")
    try:
        return _convert(model, example_inputs, dynamic_shapes, folder)
    except torch_step.Refused as error:
        raise _KINDS.get(error.kind, UnsupportedError)(error.message, hint=error.hint) from error


def _convert(
    model: Any, example_inputs: Any, dynamic_shapes: Any, folder: Path
) -> tuple[Imported, Run, list[Mapping[str, Array]]]:
    import torch

    if isinstance(model, torch.nn.Module):
        if example_inputs is None:
            raise UsageError(
                f"{type(model).__name__} is a torch module: example_inputs are needed to trace it",
                hint="tapeout.export(module, example_inputs=(tensor, ...))",
            )
        program, shapes = torch_step.export_module(model, example_inputs, dynamic_shapes)
        call: Any = model
    else:
        program, shapes, call = model, None, None
    made = torch_step.Converted(program, str(folder / "model.onnx"), call, shapes)
    imported = Imported(Path(made.path), f"torch {torch_step.version()}", (), made.modules)

    def run(feed: Mapping[str, Array]) -> dict[str, Array]:
        try:
            return made.run(feed)
        except torch_step.Refused as error:
            raise UnsupportedError(error.message, hint=error.hint) from error

    return imported, run, _examples(example_inputs, made)


def _examples(example_inputs: Any, made: torch_step.Converted) -> list[Mapping[str, Array]]:
    import torch
    from torch.utils import _pytree as pytree

    if example_inputs is None:
        return []
    tensors = [v for v in pytree.tree_leaves(example_inputs) if isinstance(v, torch.Tensor)]
    if len(tensors) != len(made.inputs):
        return []
    return [{n: t.detach().cpu().numpy() for n, t in zip(made.inputs, tensors, strict=True)}]
