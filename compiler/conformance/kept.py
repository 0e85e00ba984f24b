"""A case as a folder: the model, its data, what is expected, and the one command that runs it again."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tapeout.compiler.conformance.case import Array, Case, Outcome
from tapeout.compiler.errors import OutputError, UsageError

FACTS = "case.json"
_ARRAYS = ("model", "inputs", "outputs")


def command(folder: Path, target: str) -> str:
    """The command that runs the case in `folder` again."""
    return f"tapeout conformance {shlex.quote(target)} --case {shlex.quote(str(folder))}"


def write_case(case: Case, folder: Path, target: str, outcome: Outcome | None = None) -> None:
    """Write `case` into `folder`: model.onnx, inputs.npz, expected.npz and case.json. Raises OutputError."""
    facts: dict[str, Any] = dict(_plain(case).items())
    facts["schema"], facts["target"], facts["again"] = 1, target, command(folder, target)
    if outcome is not None:
        facts["status"], facts["reason"] = outcome.status, outcome.reason
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.onnx").write_bytes(case.model)
        np.savez(folder / "inputs.npz", **case.inputs)  # type: ignore[arg-type]
        np.savez(folder / "expected.npz", **case.outputs)  # type: ignore[arg-type]
        (folder / FACTS).write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"the case cannot be written to '{folder}': {error.strerror or error}") from error


def _plain(case: Case) -> dict[str, Any]:
    return {k: v for k, v in asdict(case).items() if k not in _ARRAYS}


def read_case(folder: Path) -> Case:
    """The case that `write_case` has left in `folder`. Raises UsageError where it has left none."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        names = set(Case.__dataclass_fields__) - set(_ARRAYS)
        return Case(
            model=(folder / "model.onnx").read_bytes(),
            inputs=_arrays(folder / "inputs.npz"),
            outputs=_arrays(folder / "expected.npz"),
            **{k: v for k, v in facts.items() if k in names},
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            f"'{folder}' holds no case of the kit: {type(error).__name__}: {error}",
            hint="a failed run writes such folders; name one of them, or a regular expression of names",
        ) from error


def _arrays(path: Path) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}
