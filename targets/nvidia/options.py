"""The options of the NVIDIA targets, and what is said about one that they do not know."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from tapeout.sdk import Changes, UsageError
from tapeout.targets.nvidia.sizes import OPTION as SIZE
from tapeout.targets.nvidia.sizes import profiles_of


@dataclass(frozen=True)
class CheckOptions:
    """Holds the options of `target` against those that it knows and against the model, before anything is done."""

    target: str
    known: Mapping[str, str]
    options: Mapping[str, str]
    name: str = "options"

    def __call__(self, model: ir.Model) -> Changes:
        for key in self.options:
            if key not in self.known and not (key.startswith(SIZE) and key != SIZE):
                near = difflib.get_close_matches(key, self.known, 1)
                say = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(self.known)}"
                raise UsageError(f"target '{self.target}' has no option '{key}'; {say}")
        profiles_of(model, self.options)
        return Changes(0)
