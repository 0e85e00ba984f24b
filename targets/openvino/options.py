"""The options that this target knows, and what is said about one that it does not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from tapeout.sdk import STATE, Changes, CheckStates, Pass, Request, UsageError
from tapeout.targets.openvino.preparation import OPTION as INPUT
from tapeout.targets.openvino.preparation import CheckPreparation

BLOB, SERVER, PROPERTY = "blob", "server", "property."
# Options, and what each is for.
KNOWN: Mapping[str, str] = {
    STATE: "states that the file keeps: IN:OUT,IN2:OUT2",
    INPUT: "preparation of an input: input.NAME=...",
    BLOB: "true: the device's compiled blob beside the file",
    SERVER: "NAME[:VERSION]: the folders of OpenVINO Model Server",
    PROPERTY: "a property of the plugin, for the blob and for bench: property.NUM_STREAMS=2",
    "threads": "threads of the runner",
    "refine": "how long a quantized graph is worked on",
    "wide": "what float16 leaves wide",
}


@dataclass(frozen=True)
class CheckOptions:
    """Holds the options against what is known, before anything is done."""

    options: Mapping[str, str]
    name: str = "options"

    def __call__(self, model: ir.Model) -> Changes:
        check(self.options)
        return Changes(0)


def check(options: Mapping[str, str]) -> None:
    """Raise UsageError on an option that is not known, with the nearest that is."""
    for key in options:
        if key in KNOWN or any(key.startswith(k) and len(key) > len(k) for k in (INPUT, PROPERTY)):
            continue
        raise UsageError(f"target 'openvino' has no option '{key}'; {nearest(key, KNOWN)}")
    flag(options)


def flag(options: Mapping[str, str]) -> bool:
    """Whether the blob is asked for. Raises UsageError where that is not said with true or false."""
    text = options.get(BLOB, "false").lower()
    if text not in ("true", "false"):
        raise UsageError(f"option {BLOB}: '{options[BLOB]}', expected true or false")
    return text == "true"


def checks(request: Request) -> tuple[Pass, ...]:
    """The passes that hold the options against the model."""
    found: list[Any] = [CheckOptions(request.options)]
    if STATE in request.options:
        found.append(CheckStates(request.options, grows=request.device != "npu"))
    if any(key.startswith(INPUT) for key in request.options):
        found.append(CheckPreparation(request.options, request.device))
    return tuple(found)


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a message about a word that is not known."""
    names = list(known)
    upper = {n.upper(): n for n in names}
    close = difflib.get_close_matches(word.upper(), list(upper), n=1, cutoff=0.5)
    return f"did you mean '{upper[close[0]]}'?" if close else f"known: {', '.join(sorted(names))}"
