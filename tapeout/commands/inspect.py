"""tapeout inspect FILE"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tapeout.commands import options as o


def register(app: typer.Typer) -> None:
    app.command("inspect", help="Show what is in a model file or an artifact.")(inspect)


def inspect(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A model file or an artifact.", show_default=False)
    ],
    as_json: o.Json = False,
) -> None:
    from tapeout import api

    found = api.inspect(file)
    if as_json:
        o.print_json({"schema": "tapeout.inspect/1", "file": str(file), **found})
    else:
        print(text(found))


def text(found: dict[str, Any], indent: str = "") -> str:
    """Nested facts as lines; lists of facts one line each."""
    lines: list[str] = []
    for key, value in found.items():
        if isinstance(value, dict):
            lines.append(f"{indent}{key}:")
            lines.append(text(value, indent + "  "))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines.append(f"{indent}{key}:")
            lines += [
                f"{indent}  " + "  ".join(f"{k}={_plain(v)}" for k, v in entry.items()) for entry in value
            ]
        else:
            lines.append(f"{indent}{key}: {_plain(value)}")
    return "\n".join(line for line in lines if line)


def _plain(value: Any) -> str:
    return "[" + ", ".join(map(str, value)) + "]" if isinstance(value, list | tuple) else str(value)
