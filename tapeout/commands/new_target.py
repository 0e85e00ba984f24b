"""tapeout new-target NAME"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tapeout.commands import options as o

FIRST = ("load", "generated", "refused", "graphs", "damaged")  # the levels that a new package passes at once
CASES = 60


def register(app: typer.Typer) -> None:
    app.command("new-target", help="Write the package of a new target, ready to be filled in.")(new_target)


def new_target(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What the target is called.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="The new folder. Default: NAME.", show_default=False
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Run the first levels of the conformance kit on it at once.")
    ] = False,
    as_json: o.Json = False,
) -> None:
    from tapeout import scaffold

    folder = output or Path(name)
    files = scaffold.new_target(name, folder)
    # With a separator the folder is the target's name.
    named = str(folder) if folder.is_absolute() else f"./{folder}"
    o.say(f"{folder}: the target '{name}' in {len(files)} files")
    report = None
    if check:
        from tapeout.compiler.conformance.levels import Choice, run_kit

        kept = Path(f"conformance-{folder.name}")
        report = run_kit(named, Choice(levels=FIRST, count=CASES, keep=kept))
        if not as_json:
            print(report.text())
    else:
        o.say(f"  next: tapeout conformance {named} --count {CASES}")
    o.say(f"  install: pip install -e {named}")
    if as_json:
        found = {"ok": report.ok, "levels": report.levels()} if report else None
        o.print_json(
            {"schema": "tapeout.new-target/1", "name": name, "files": [str(f) for f in files], "check": found}
        )
    if report is not None and not report.ok:
        from tapeout.compiler.errors import AccuracyError

        o.say(f"error: {len(report.faults)} cases fail on {name}")
        raise typer.Exit(AccuracyError.exit_code)
