"""What a target is to the core, and how targets are found."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import onnx_ir as ir

from tapeout.compiler.containment import SHORT, contained, guarded
from tapeout.compiler.errors import TapeoutError, UsageError, VendorToolError
from tapeout.compiler.pipeline import Pass
from tapeout.compiler.target_folder import entry_in, is_folder

if TYPE_CHECKING:
    import numpy as np

    from tapeout.compiler.calibration import Calibration
    from tapeout.compiler.declaration import Declaration
    from tapeout.compiler.recipe import Recipe

GROUP = "tapeout.targets"
OURS = "tapeout"  # the package of the built-in targets
_folders: dict[str, importlib.metadata.EntryPoint] = {}  # targets that were named by their folders


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


@dataclass(frozen=True)
class Fix:
    """A change that may make a refused node one that the target takes: `words` say it as advice ("write Foo as
    Bar"), `passes` make it in the source graph."""

    words: str
    passes: tuple[Pass, ...]


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


class Timer(Protocol):
    """An artifact set up to be timed, by the means of its runtime."""

    runtime: str

    def measure(self, feed: Mapping[str, np.ndarray[Any, Any]], runs: int, /) -> tuple[list[float], float]:
        """Milliseconds of each of about `runs` inferences, and how many there were in a second."""
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
    fixes: tuple[Fix, ...] = ()  # what `explain --try-fixes` tries besides our own
    parts: tuple[str, ...] = ()  # suffixes of the files beside the artifact: `x.bin` of `x.xml`
    # The artifact is a folder, into which `emit(model, folder, request)` writes; the file in it that says so.
    folder: str | None = None
    # Where options put the artifact, with `-o` (None: not given) a folder above it; None: where `-o` says.
    place: Callable[[Path | None, Mapping[str, str]], Path | None] | None = None
    # Files that options ask for besides the artifact at a place, each with what makes it of the proven artifact.
    also: Callable[[Path, Request], Mapping[Path, Callable[[Path], bytes]]] | None = None
    # The option that leaves zeros of weights out of the artifact, of which `inspect` then tells under "packed".
    packs: str | None = None
    # The artifact on whatever device, for `bench` in place of runners: a hint is "latency", "throughput" or None.
    timers: Callable[[Path, Request, str | None], Sequence[Timer]] | None = None


def write(target: Target, model: ir.Model, path: Path, request: Request) -> None:
    """Write the artifact of `model` to `path` and its parts beside it, as they come: nothing is staged."""
    if target.folder is not None:
        path.mkdir()
        target.emit(model, path, request)
        return
    with ExitStack() as stack:
        sinks = [stack.enter_context(path.with_suffix(s).open("wb")) for s in target.parts]
        target.emit(model, stack.enter_context(path.open("wb")), request, *sinks)


def targets() -> dict[str, importlib.metadata.EntryPoint]:
    """All installed targets by name, none loaded yet, and those that were named by their folders. A name that two
    packages give is ours where one of them is, else the first package's: `target` names both."""
    found = dict(_folders)
    for entry in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda e: (e.name, _rank(e))):
        found.setdefault(entry.name, entry)
    return found


def _rank(entry: importlib.metadata.EntryPoint) -> tuple[bool, str]:
    return owner(entry) != OURS, owner(entry)


def owner(entry: importlib.metadata.EntryPoint) -> str:
    """The package that an entry point belongs to."""
    return entry.dist.name if entry.dist is not None else entry.value


def loadable() -> tuple[list[Target], list[TapeoutError]]:
    """Every installed target that loads, by name, and why the others do not: one broken plugin is nobody else's
    fault."""
    found, broken = list[Target](), list[TapeoutError]()
    for name in targets():
        try:
            found.append(target(name))
        except TapeoutError as error:
            broken.append(error)
    return found, broken


def extensions(name: str) -> list[Target]:
    """The installed targets that add devices to the target `name`; those that do not load add none."""
    return [found for found in loadable()[0] if found.extends == name and found.name != name]


def target(name: str) -> Target:
    """Load the target `name`, or the one whose package lies in the folder `name` ("./acme"). Raises UsageError
    where there is none, VendorToolError naming a plugin that is broken; whatever a plugin's target does later is
    contained."""
    if is_folder(name):
        entry = entry_in(Path(name), GROUP)
        name, _folders[entry.name] = entry.name, entry
    known = targets()
    if name not in known:
        raise UsageError(
            f"no target '{name}' is installed; found: {', '.join(known) or 'none'}",
            hint="one that is not installed is named by the folder of its package: --target ./FOLDER",
        )
    entry = known[name]
    package = owner(entry)
    who = f"target '{name}' of package '{package}' ({entry.value})"
    if package == OURS:
        found = entry.load()
    else:
        others = {owner(e) for e in importlib.metadata.entry_points(group=GROUP) if e.name == name}
        if len(others) > 1 and name not in _folders:
            raise VendorToolError(
                f"target '{name}' is given by several packages: {', '.join(sorted(others))}",
                hint="uninstall all but one",
            )
        with contained(who, "its import", SHORT):
            found = entry.load()
    if not isinstance(found, Target):
        raise VendorToolError(f"{who}: it is a {type(found).__name__}, expected a Target")
    wrong = _wrong(found, name)
    if wrong:
        raise VendorToolError(f"{who}: {wrong}")
    return found if package == OURS else guarded(found, who)


def _wrong(found: Target, name: str) -> str | None:
    """What a Target is that it must not be."""
    if found.name != name:
        return f"its name is '{found.name}', its entry point's '{name}'"
    for field_name in ("schemes", "devices"):
        value = getattr(found, field_name)
        if not isinstance(value, tuple) or not value or not all(isinstance(v, str) for v in value):
            return f"its {field_name} are {value!r}, expected a tuple of names"
    for field_name in ("declaration", "passes", "emit", "runners"):
        if not callable(getattr(found, field_name)):
            return f"its {field_name} is a {type(getattr(found, field_name)).__name__}, expected a function"
    if not isinstance(found.suffix, str) or not found.suffix.startswith("."):
        return f"its suffix is {found.suffix!r}, expected one such as '.bin'"
    return None
