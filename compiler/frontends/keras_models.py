"""Keras files (`.keras`, `.h5`) and SavedModels: checked as data, then converted by tf2onnx in a process of their
own, and held against TensorFlow: that converter has lost biases without a word."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tapeout.compiler.artifact import file_errors
from tapeout.compiler.errors import InvalidModelError, ResourceError, UnsupportedError
from tapeout.compiler.frontends.imported import Imported, Run
from tapeout.compiler.frontends.isolated import Isolated, about
from tapeout.compiler.frontends.steps import keras_config

VARIABLE = "TAPEOUT_TENSORFLOW_PYTHON"
CONFIG_BYTES = 64 << 20
_MEMBERS = {"config.json", "metadata.json", "model.weights.h5"}


@contextmanager
def converting(path: Path, folder: Path, threads: int | None) -> Iterator[tuple[Imported, Run]]:
    """(the ONNX form of the model in `path`, the original as a function), while this context is open.

    Raises InvalidModelError (damaged), UnsupportedError (custom or Lambda layers, what tf2onnx cannot convert),
    VendorToolError (TensorFlow is missing or crashed).
    """
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    if path.suffix.lower() == ".keras":
        _check_archive(path)
    with Isolated(
        "keras_step.py", folder, name="TensorFlow", extra="tensorflow", variable=VARIABLE, threads=threads
    ) as step:
        target = folder / "model.onnx"
        with about(path):
            made = step.ask("convert", source=str(path.absolute()), target=str(target), threads=threads)
        framework = f"TensorFlow {made['version']} (tf2onnx {made['converter']})"
        yield Imported(target, framework, tuple(files), made["modules"]), step.run


def _check_archive(path: Path) -> None:
    """Read a `.keras` file's configuration as data, and refuse what would run or read more than it."""
    with file_errors("read", path):
        try:
            with zipfile.ZipFile(path) as archive:
                members = {i.filename: i for i in archive.infolist()}
                extra = [n for n in members if n not in _MEMBERS and not n.endswith("/")]
                if extra:
                    raise UnsupportedError(
                        f"'{path}' holds '{extra[0]}', which is neither its configuration nor its weights",
                        hint="vocabularies and assets belong to the application",
                    )
                if not {"config.json", "model.weights.h5"} <= members.keys() or len(members) != len(
                    archive.infolist()
                ):
                    raise InvalidModelError(
                        f"'{path}' is no Keras file: config.json or its weights are missing"
                    )
                if members["config.json"].file_size > CONFIG_BYTES:
                    raise ResourceError(f"'{path}': its configuration has more than {CONFIG_BYTES:,} bytes")
                for member in members.values():
                    if member.file_size > keras_config.EXPANSION * max(member.compress_size, 512):
                        raise ResourceError(
                            f"'{path}': '{member.filename}' claims {member.file_size:,} bytes"
                        )
                config = json.loads(archive.read("config.json"))
        except (
            zipfile.BadZipFile,
            NotImplementedError,
            EOFError,
            RuntimeError,
            ValueError,
            RecursionError,
        ) as error:
            raise InvalidModelError(
                f"'{path}' is damaged, or no Keras file: {error}",
                hint="save it again: model.save('model.keras')",
            ) from error
    try:
        keras_config.check_config(config)
    except keras_config.Refused as error:
        kind = ResourceError if error.kind == "resource" else UnsupportedError
        raise kind(f"'{path}': {error.message}", hint=error.hint) from error
