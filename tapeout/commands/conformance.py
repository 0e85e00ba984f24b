"""tapeout conformance NAME"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tapeout.commands import options as o

if TYPE_CHECKING:
    from tapeout.compiler.declaration import Declaration


def register(app: typer.Typer) -> None:
    app.command("conformance", help="Hold a target against its own declaration and the ONNX standard.")(
        conformance
    )


def conformance(
    target: Annotated[
        str, typer.Argument(metavar="NAME", help="The target, or the folder of its package.")
    ] = "tflite",
    level: Annotated[
        list[str] | None,
        typer.Option(
            "--level",
            metavar="LEVEL",
            help="load, nodes, generated, finished, refused, graphs, models, damaged; may be given several times. "
            "Default: all.",
            show_default=False,
        ),
    ] = None,
    case: Annotated[
        str | None,
        typer.Option(
            "--case",
            metavar="FOLDER|REGEX",
            help="The case in a folder that a failed run has left, or only cases whose name matches.",
            show_default=False,
        ),
    ] = None,
    count: Annotated[
        int, typer.Option("--count", min=1, metavar="N", help="About so many generated cases.")
    ] = 3000,
    device: Annotated[
        str | None,
        typer.Option("--device", help="The device; default: the target's first.", show_default=False),
    ] = None,
    models: Annotated[
        Path | None,
        typer.Option(
            "--models", metavar="DIR", help="ONNX models for the level 'models'.", show_default=False
        ),
    ] = None,
    since: Annotated[
        Path | None,
        typer.Option(
            "--since",
            metavar="TOML",
            help="An earlier target.toml: what it takes must be taken still.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Other random cases.")] = 0,
    every: Annotated[int, typer.Option("--every", min=1, metavar="N", help="Only each N-th node case.")] = 1,
    keep: Annotated[
        Path | None,
        typer.Option(
            "--keep",
            metavar="DIR",
            help="Where failures are left, shrunk, as folders. Default: conformance-NAME.",
            show_default=False,
        ),
    ] = None,
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", help="Write JUnit's XML.", show_default=False)
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page of HTML.", show_default=False)
    ] = None,
    as_json: o.Json = False,
) -> None:
    from tapeout.compiler.artifact import file_errors
    from tapeout.compiler.conformance.kept import FACTS
    from tapeout.compiler.conformance.levels import LEVELS, Choice, rerun, run_kit
    from tapeout.compiler.errors import AccuracyError

    def show(done: int, total: int, outcome: Any) -> None:
        if sys.stderr.isatty() and not as_json:
            print(f"\r\x1b[K{outcome.level} {done} {outcome.case}", end="", file=sys.stderr, flush=True)

    if case is not None and (Path(case) / FACTS).is_file():
        report = rerun(target, Path(case))
    else:
        chosen = Choice(
            levels=tuple(level) if level else LEVELS,
            count=count,
            device=device,
            seed=seed,
            pattern=case,
            every=every,
            keep=keep or Path(f"conformance-{Path(target).resolve().name}"),
            models=models,
            since=None if since is None else _earlier(since, target, device),
        )
        report = run_kit(target, chosen, show)
    if sys.stderr.isatty() and not as_json:
        print("\r\x1b[K", end="", file=sys.stderr)
    for path, text in ((junit, report.junit), (html, report.html)):
        if path is not None:
            with file_errors("write", path):
                path.write_text(text(), encoding="utf-8")
    print(report.json() if as_json else report.text())
    o.say(f"{report.seconds:.0f} s, {report.cpu_seconds:.0f} s of processor time")
    if not report.ok:
        o.say(f"error: {len(report.faults)} cases fail on {target}")
        raise typer.Exit(AccuracyError.exit_code)


def _earlier(path: Path, name: str, device: str | None) -> Declaration:
    """The declaration in `path`, with the quantities of the target as it is now."""
    from tapeout.compiler.declaration import Declaration
    from tapeout.compiler.target import target

    found = target(name)
    now = found.declaration(device or found.devices[0])
    return Declaration.load(path, device, now.source.quantities, now.parent)
