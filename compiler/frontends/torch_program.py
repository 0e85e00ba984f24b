"""ExportedProgram files (`.pt2`): checked as data, then loaded and converted in a process of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tapeout.compiler.frontends.imported import Imported, Run
from tapeout.compiler.frontends.isolated import Isolated, about
from tapeout.compiler.frontends.pt2_archive import clean_copy


@contextmanager
def converting(path: Path, folder: Path, threads: int | None) -> Iterator[tuple[Imported, Run]]:
    """(the ONNX form of the program in `path`, the program as a function), while this context is open.

    Raises InvalidModelError (damaged, of another torch), UnsupportedError (a pickle, what torch cannot convert),
    VendorToolError (torch is missing or crashed).
    """
    clean = folder / "program.pt2"
    archive = clean_copy(path, clean)
    with Isolated(
        "torch_step.py", folder, name="torch", extra="torch", variable="TAPEOUT_TORCH_PYTHON", threads=threads
    ) as step:
        with about(path):
            made = step.ask(
                "convert",
                source=str(clean),
                target=str(folder / "model.onnx"),
                schema=archive.schema,
                wrote=archive.torch_version,
            )
        clean.unlink()
        yield Imported(folder / "model.onnx", f"torch {made['version']}", (path,), made["modules"]), step.run
