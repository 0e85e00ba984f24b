"""The folders of OpenVINO Model Server: `--option server=NAME[:VERSION]`, with `-o` the folder that holds them.

FOLDER/config.json                which models there are; those of other exports into the folder stay
FOLDER/NAME/VERSION/model.xml     with model.bin, and the manifest and the report of the export
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tapeout.sdk import UsageError, file_errors, json_bytes
from tapeout.targets.openvino.options import SERVER

CONFIG = "config.json"
FILE = "model.xml"


class Served(NamedTuple):
    """A model of the server: its name there, and which version of it this is."""

    name: str
    version: int


def served(options: Mapping[str, str]) -> Served | None:
    """What the option asks for, None where it is not given. Raises UsageError."""
    text = options.get(SERVER)
    if text is None:
        return None
    name, colon, version = text.partition(":")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise UsageError(
            f"option {SERVER}: '{text}', expected NAME[:VERSION], a name of letters, digits, - _ and ."
        )
    if colon and not re.fullmatch(r"[1-9][0-9]*", version):
        raise UsageError(f"option {SERVER}: version '{version}', expected a number from 1 on")
    return Served(name, int(version or "1"))


def place(folder: Path, model: Served) -> Path:
    """Where the artifact lies under `folder`."""
    return folder / model.name / str(model.version) / FILE


def config(folder: Path, model: Served) -> bytes:
    """The list of models with this one in it. Raises UsageError where there is a file of something else."""
    file = folder / CONFIG
    found: dict[str, Any] = {"model_config_list": []}
    if file.exists():
        with file_errors("read", file):
            text = file.read_text()
        try:
            found = json.loads(text)
            listed = found["model_config_list"]
            names = [entry["config"]["name"] for entry in listed]
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"'{file}' is no list of models of OpenVINO Model Server: {type(error).__name__}: {error}",
                hint="choose another folder with -o",
            ) from error
        if model.name in names:
            return json_bytes(found)
    found["model_config_list"].append({"config": {"name": model.name, "base_path": model.name}})
    return json_bytes(found)
