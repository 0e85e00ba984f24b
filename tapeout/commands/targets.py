"""tapeout targets"""

from __future__ import annotations

from typing import Any

import typer

from tapeout.commands import options as o


def register(app: typer.Typer) -> None:
    app.command("targets", help="List what can be compiled for, and what each target offers.")(targets)


def targets(as_json: o.Json = False) -> None:
    from tapeout.compiler.errors import TapeoutError
    from tapeout.compiler.target import target
    from tapeout.compiler.target import targets as installed

    found: list[dict[str, Any]] = []
    for name in installed():
        try:
            one = target(name)
        except TapeoutError as error:
            found.append({"name": name, "error": error.message})
            continue
        found.append(
            {"name": name, "devices": list(one.devices), "schemes": list(one.schemes), "suffix": one.suffix}
        )
    if as_json:
        o.print_json({"schema": "tapeout.targets/1", "targets": found})
        return
    for entry in found:
        if "error" in entry:
            o.say(f"{entry['name']}: {entry['error']}")
        else:
            devices, schemes = ", ".join(entry["devices"]), ", ".join(entry["schemes"])
            print(f"{entry['name']}: devices {devices}; schemes {schemes}")
