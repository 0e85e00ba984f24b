"""A bundle: a folder of parts of one model, some for a device and some for the host, and the schedule by which
they run.

`schedule.json` names the parts in the order in which they run, each with its file, where it runs, and the tensors
that it takes and gives by the names of the legalized graph; those of the whole are the source's. Host parts are
ONNX files for ONNX Runtime, device parts are the target's own artifacts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.artifact import digest, json_bytes
from tapeout.compiler.artifact import entries as entries_of
from tapeout.compiler.declaration import source_name
from tapeout.compiler.errors import InvalidModelError
from tapeout.compiler.ir import graph as g
from tapeout.compiler.operators import dtype_name
from tapeout.compiler.partition import Part, extract

if TYPE_CHECKING:
    from tapeout.compiler.reference import Reference
    from tapeout.compiler.target import Request, Runner, Target

Array = np.ndarray[Any, Any]
SCHEDULE = "schedule.json"
SCHEMA = "tapeout.schedule/1"
HOST = "host"


def is_bundle(path: Path) -> bool:
    """Whether `path` is a folder with a schedule."""
    return (path / SCHEDULE).is_file()


def write(model: ir.Model, parts: Sequence[Part], target: Target, request: Request, folder: Path) -> None:
    """Write the parts of `model` and their schedule into `folder`, which is there and empty."""
    from tapeout.compiler.ir.save import save
    from tapeout.compiler.target import write as emit

    entries = []
    for index, part in enumerate(parts):
        piece = extract(model, part)
        name = f"part-{index:02d}" + (".onnx" if part.host else target.suffix)
        if part.host:
            save(piece, folder / name)
        else:
            emit(target, piece, folder / name, request)
        stem = Path(name).stem
        written = [e for e in entries_of(folder) if e["name"].split("/")[0].partition(".")[0] == stem]
        entries.append(
            {
                "on": HOST if part.host else request.device,
                "file": name,
                "files": written,
                "inputs": [_tensor(v) for v in part.inputs],
                "outputs": [_tensor(v) for v in part.outputs],
                "nodes": list(dict.fromkeys(source_name(n) for n in part.nodes)),
                "transfer_bytes": part.transfer,
            }
        )
    schedule = {
        "schema": SCHEMA,
        "target": target.name,
        "device": request.device,
        "inputs": [v.name for v in model.graph.inputs],
        "outputs": [v.name for v in model.graph.outputs],
        "parts": entries,
    }
    (folder / SCHEDULE).write_bytes(json_bytes(schedule))


def _tensor(value: ir.Value) -> dict[str, Any]:
    dims = g.dims(value)
    return {
        "name": value.name,
        "dtype": dtype_name(value.dtype),
        "shape": None if dims is None else list(dims),
    }


def read(folder: Path) -> dict[str, Any]:
    """The schedule of a bundle, its parts held to their digests. Raises InvalidModelError where something is
    missing, changed or not understood."""
    place = folder / SCHEDULE
    try:
        found = json.loads(place.read_text())
        if found.get("schema") != SCHEMA:
            raise InvalidModelError(
                f"'{place}' has the schema {found.get('schema')!r}, this tapeout reads {SCHEMA}"
            )
        for part in found["parts"]:
            for file in (part["file"], *(f["name"] for f in part["files"])):
                if not _inside(file):
                    raise InvalidModelError(f"'{place}' names the file '{file}', which is not in the folder")
            for entry in part["files"]:
                if digest(folder / entry["name"]) != (entry["sha256"], entry["bytes"]):
                    raise InvalidModelError(
                        f"'{folder / entry['name']}' is not the file that the schedule names: its digest differs"
                    )
            _names(part["inputs"]), _names(part["outputs"])
        list(found["inputs"]), list(found["outputs"])
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise InvalidModelError(
            f"the schedule '{place}' is damaged: {type(error).__name__}: {error}"
        ) from error
    return dict(found)


def _inside(name: str) -> bool:
    """Whether a name leads to a place in the folder that it is said of."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in name


def _names(tensors: Sequence[Mapping[str, Any]]) -> list[str]:
    return [str(t["name"]) for t in tensors]


class BundleRunner:
    """A bundle as one artifact: device parts on one of the target's runtimes, host parts on ONNX Runtime."""

    def __init__(self, folder: Path, target: Target, request: Request, choice: int = 0) -> None:
        """`choice` is the runtime of those that the target has for a part, the last where it has fewer."""
        from tapeout.compiler.reference import Reference

        self.schedule = read(folder)
        self._parts: list[tuple[dict[str, Any], Reference | Runner]] = []
        self.count = 1  # of the target's runtimes
        names: dict[str, None] = {}
        self.device = request.device
        for part in self.schedule["parts"]:
            if part["on"] == HOST:
                opened: Reference | Runner = Reference(
                    folder / part["file"], threads=int(request.options.get("threads", 1)), optimized=True
                )
            else:
                runners = target.runners(folder / part["file"], request)
                if not runners:
                    raise LookupError(part["file"])
                self.count = max(self.count, len(runners))
                opened = runners[min(choice, len(runners) - 1)]
                self.device = opened.device
            names[opened.runtime] = None
            self._parts.append((part, opened))
        self.runtime = " and ".join(names)

    def run(self, inputs: Mapping[str, Array], /) -> dict[str, Array]:
        found = self._run(inputs, {})
        return {n: found[n] for n in self.schedule["outputs"]}

    def tensors(self, inputs: Mapping[str, Array], names: Sequence[str], /) -> dict[str, Array]:
        """Those of `names` that device parts show, and whatever crosses a border."""
        shown: dict[str, Array] = {}
        known = self._run(inputs, shown, names)
        return shown | {n: known[n] for n in names if n in known}

    def _run(
        self, inputs: Mapping[str, Array], shown: dict[str, Array], names: Sequence[str] = ()
    ) -> dict[str, Array]:
        known = dict(inputs)
        for part, opened in self._parts:
            feed = {n: known[n] for n in _names(part["inputs"])}
            if names and part["on"] != HOST:
                shown.update(opened.tensors(feed, names))  # type: ignore[union-attr]
            found = opened.run(feed)
            known |= {n: found[n] for n in _names(part["outputs"])}
        return known


def bundled(target: Target) -> Target:
    """`target` where its artifact is a bundle."""
    from dataclasses import replace

    def runners(folder: Path, request: Request) -> Sequence[Runner]:
        try:
            first = BundleRunner(folder, target, request)
        except LookupError:
            return ()  # nothing here runs the device's parts
        return [first, *(BundleRunner(folder, target, request, i) for i in range(1, first.count))]

    return replace(target, runners=runners, inspect=read, parts=(), folder=None)
