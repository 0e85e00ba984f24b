"""Finds the front end of a model and holds it open while the model is used."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tapeout.compiler.artifact import file_errors
from tapeout.compiler.errors import UnsupportedError, UsageError, VendorToolError
from tapeout.compiler.frontends.imported import check

# Files that hold weights as a pickle, or weights alone.
PICKLES = frozenset({".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".joblib", ".pth.tar"})
KERAS = frozenset({".keras", ".h5", ".hdf5"})
FROM_TORCH = (
    "build the module in Python, load its weights from safetensors, and call "
    "tapeout.export(module.eval(), example_inputs=...), or save it with torch.export.save(..., 'model.pt2')"
)


@contextlib.contextmanager
def importing(
    model: Any,
    *,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    data: Any = None,
    threads: int | None = None,
    proven: bool = True,
) -> Iterator[Any]:
    """`model` as it is where the loader reads it (ONNX), else as `Imported`, for the time of this context.

    torch modules and programs need `example_inputs` (a tensor, a tuple, or a dict of keywords) and may have
    `dynamic_shapes` (as for torch.export; text names a size). `data` is what the conversion is checked on, unless
    `proven` is False. Raises UnsupportedError for pickles, VendorToolError where the framework is missing,
    AccuracyError where the conversion changed the model.
    """
    is_path = isinstance(model, str | os.PathLike)
    torch_object = not is_path and _is_torch(model)
    if not torch_object and (example_inputs is not None or dynamic_shapes is not None):
        raise UsageError("example_inputs and dynamic_shapes belong to a torch.nn.Module or ExportedProgram")
    path = Path(model) if is_path else None
    kind = _kind(path) if path is not None and path.exists() else None
    if path is not None and kind is None and path.suffix.lower() in KERAS | {".pt2"}:
        raise UsageError(f"the model '{path}' does not exist")
    if kind is None and not torch_object:
        yield model
        return
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tapeout-")))
        examples: list[Any] = []
        if torch_object:
            from tapeout.compiler.frontends import torch_module

            imported, run, examples = torch_module.convert(model, example_inputs, dynamic_shapes, folder)
        elif kind == "pt2":
            from tapeout.compiler.frontends import torch_program

            imported, run = stack.enter_context(torch_program.converting(path, folder, threads))  # type: ignore[arg-type]
        else:
            from tapeout.compiler.frontends import keras_models

            imported, run = stack.enter_context(keras_models.converting(path, folder, threads))  # type: ignore[arg-type]
        if proven:
            imported = replace(imported, error=check(imported, run, data, examples, threads))
        yield imported


def _kind(path: Path) -> str | None:
    """The front end of a file or folder, None for ONNX. Raises UnsupportedError where it is a pickle."""
    suffix = path.suffix.lower()
    if path.is_dir():
        return "keras" if (path / "saved_model.pb").exists() else None
    with file_errors("read", path), open(path, "rb") as file:
        head = file.read(8)
    if suffix == ".pt2":
        return "pt2"
    if suffix in KERAS:
        return "keras"
    if suffix == ".safetensors":
        raise UnsupportedError(f"'{path}' holds weights and no model", hint=FROM_TORCH)
    pickled = head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    zipped = head[:4] == b"PK\x03\x04" and suffix != ".onnx"
    if suffix in PICKLES or pickled:
        raise UnsupportedError(
            f"'{path}' is a pickle, or is read as one: loading it can run any code, and it holds no graph",
            hint=FROM_TORCH,
        )
    if zipped:
        raise UsageError(
            f"'{path}' is an archive of an unknown kind",
            hint="ExportedPrograms are called .pt2, Keras models .keras",
        )
    return None


def _is_torch(model: Any) -> bool:
    """Whether `model` is a torch module or program; torch is not imported for it."""
    import sys

    torch = sys.modules.get("torch")
    if torch is None:
        return False
    kinds = [torch.nn.Module]
    if hasattr(torch, "export") and hasattr(torch.export, "ExportedProgram"):
        kinds.append(torch.export.ExportedProgram)
    if not isinstance(model, tuple(kinds)):
        return False
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedError(
            f"the model is TorchScript ({type(model).__name__}), which torch.export does not take",
            hint="export the nn.Module that it was made from",
        )
    return True


def missing(extra: str, name: str, package: str) -> VendorToolError:
    """The error where a framework is not installed."""
    return VendorToolError(
        f"{name} is needed to read this model, and {package} is not installed",
        hint=f"pip install 'tapeout[{extra}]'",
    )
