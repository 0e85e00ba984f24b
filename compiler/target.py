"""What a target is to the core, and how targets are found."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import onnx_ir as ir

from tapeout.compiler.errors import UsageError, VendorToolError
from tapeout.compiler.pipeline import Pass

if TYPE_CHECKING:
    import numpy as np

    from tapeout.compiler.calibration import Calibration
    from tapeout.compiler.declaration import Declaration
    from tapeout.compiler.recipe import Recipe

GROUP = "tapeout.targets"


@dataclass(frozen=True)
class Request:
    """What the user asked of a target: `scheme` such as "float32" or "int8", the device, target options; the
    calibration data and the recipe of a quantized export, and the types asked of inputs and outputs."""

    scheme: str = "float32"
    device: str = "cpu"
    options: Mapping[str, str] = field(default_factory=dict)
    calibration: Calibration | None = None
    recipe: Recipe | None = None
    dtypes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Finished:
    """What a vendor's compiler made of an emitted file: the new content, facts that are the same for the same
    input and versions (for the manifest), what it left to the host by source names, and a line for people."""

    content: bytes
    facts: Mapping[str, Any]
    hosted: Sequence[str]
    summary: str


class Runner(Protocol):
    """An artifact opened on a runtime. Inputs and outputs are keyed by the source's names."""

    runtime: str  # what ran, with its version: "LiteRT 2.3.0 XNNPACK"
    device: str

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]], /) -> dict[str, np.ndarray[Any, Any]]: ...

    def tensors(
        self, inputs: Mapping[str, np.ndarray[Any, Any]], names: Sequence[str], /
    ) -> dict[str, np.ndarray[Any, Any]]:
        """The tensors among `names` (IR value names) that the runtime can show, in the IR's layout."""
        ...


@dataclass(frozen=True)
class Target:
    """One target. `passes(request)` is its visible tuple; `emit(model, sink, request, *parts)` writes the artifact,
    pure, with one more sink for each suffix in `parts`: files beside the artifact that belong to it.
    `runners(artifact, request)` opens it, once for every runtime that it must agree on (none: it stays unproven)."""

    name: str
    suffix: str
    schemes: tuple[str, ...]
    devices: tuple[str, ...]
    declaration: Callable[[str], Declaration]  # of a device
    passes: Callable[[Request], tuple[Pass, ...]]
    emit: Callable[..., None]
    runners: Callable[[Path, Request], Sequence[Runner]]
    inspect: Callable[[Path], dict[str, Any]] | None = None
    extends: str | None = None  # the target whose devices this one adds
    finish: Callable[[Path, ir.Model, Request], Finished] | None = None  # a vendor's compiler behind emission
    integer_borders: bool = False  # real inputs and outputs are integers unless the user says otherwise
    parts: tuple[str, ...] = ()  # suffixes of the files beside the artifact: `x.bin` of `x.xml`


def write(target: Target, model: ir.Model, path: Path, request: Request) -> None:
    """Write the artifact of `model` to `path` and its parts beside it, as they come: nothing is staged."""
    with ExitStack() as stack:
        sinks = [stack.enter_context(path.with_suffix(s).open("wb")) for s in target.parts]
        target.emit(model, stack.enter_context(path.open("wb")), request, *sinks)


def targets() -> dict[str, importlib.metadata.EntryPoint]:
    """All installed targets by name, none loaded yet."""
    return {e.name: e for e in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda e: e.name)}


def extensions(name: str) -> list[Target]:
    """The installed targets that add devices to the target `name`; a broken plugin raises and names itself."""
    return [found for other in targets() if other != name and (found := target(other)).extends == name]


def target(name: str) -> Target:
    """Load the target `name`; a broken plugin raises and names itself."""
    known = targets()
    if name not in known:
        raise UsageError(f"no target '{name}' is installed; found: {', '.join(known) or 'none'}")
    entry = known[name]
    try:
        found = entry.load()
    except Exception as error:
        owner = entry.dist.name if entry.dist else entry.value
        raise VendorToolError(
            f"target '{name}' of package '{owner}' ({entry.value}) does not load: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(found, Target):
        raise VendorToolError(
            f"target '{name}': {entry.value} is a {type(found).__name__}, expected a Target"
        )
    return found
