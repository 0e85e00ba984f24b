"""tapeout conformance NAME"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tapeout.commands import options as o


def register(app: typer.Typer) -> None:
    app.command("conformance", help="Run the ONNX standard's own node cases through a target.")(conformance)


def conformance(
    target: Annotated[str, typer.Argument(metavar="NAME", help="The target.")] = "tflite",
    case: Annotated[
        str | None,
        typer.Option("--case", metavar="REGEX", help="Only cases whose name matches.", show_default=False),
    ] = None,
    every: Annotated[int, typer.Option("--every", min=1, metavar="N", help="Only each N-th of them.")] = 1,
    keep: Annotated[
        Path | None,
        typer.Option("--keep", metavar="DIR", help="Leave each faulty case there.", show_default=False),
    ] = None,
    as_json: o.Json = False,
) -> None:
    from tapeout.compiler.conformance import run_conformance
    from tapeout.compiler.errors import AccuracyError

    def show(done: int, total: int, outcome: Any) -> None:
        if sys.stderr.isatty() and not as_json:
            print(f"\r\x1b[K{done}/{total} {outcome.case}", end="" if done < total else "\n", file=sys.stderr)

    report = run_conformance(target, pattern=case, every=every, progress=show, keep=keep)
    print(report.json() if as_json else report.text())
    if not report.ok:
        o.say(f"error: cases of the standard fail on {target}\n  hint: --keep DIR leaves each as files")
        raise typer.Exit(AccuracyError.exit_code)
