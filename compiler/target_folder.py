"""A target that is not installed: the folder of its package, named in place of the target."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
import tomllib
from pathlib import Path

from tapeout.compiler.errors import UsageError

PROJECT = "pyproject.toml"


def is_folder(name: str) -> bool:
    """Whether a target is named by a folder: `./acme`, `/home/me/acme`, `.`."""
    return name in (".", "..") or "/" in name or os.sep in name


def entry_in(folder: Path, group: str) -> importlib.metadata.EntryPoint:
    """The one entry point of `group` that the folder's pyproject.toml states; its code is put on the path.

    Raises UsageError where there is none.
    """
    path = folder / PROJECT
    try:
        project = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {})
        found = dict(project.get("entry-points", {}).get(group, {}))
    except OSError as error:
        raise UsageError(
            f"no target in '{folder}': {PROJECT}: {error.strerror or error}",
            hint="name an installed target, or the folder of a target's package",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, AttributeError, ValueError) as error:
        raise UsageError(f"'{path}' cannot be read: {error}") from error
    if len(found) != 1:
        raise UsageError(
            f"'{path}' has {len(found)} entry points of the group '{group}', expected one",
            hint=f'[project.entry-points."{group}"]',
        )
    source = folder / "src" if (folder / "src").is_dir() else folder
    place = str(source.resolve())
    if place not in sys.path:
        sys.path.insert(0, place)
        importlib.invalidate_caches()
    ((name, value),) = found.items()
    return importlib.metadata.EntryPoint(name, str(value), group)
