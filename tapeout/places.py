"""Where an export writes: the artifact and what lies beside it."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from tapeout.compiler import artifact as files
from tapeout.compiler.bundle import is_bundle
from tapeout.compiler.errors import UsageError
from tapeout.compiler.target import Request, Target
from tapeout.road import Model, is_artifact

BUNDLE = ".bundle"


@dataclass(frozen=True)
class Places:
    """Where an export writes: `artifact` and what lies beside it; `shown` is the artifact as the user wrote
    it."""

    shown: Path
    artifact: Path
    parts: tuple[Path, ...]
    report: Path
    manifest: Path
    depfile: Path | None

    def all(self) -> list[Path]:
        """Every file, as the user would write it."""
        others = [self.shown.with_suffix(p.suffix) for p in self.parts]
        others += [beside(self.shown, ".report.json"), beside(self.shown, ".manifest.json")]
        return [self.shown, *others, *([self.depfile] if self.depfile is not None else [])]


def laid_out(
    stack: ExitStack, output: str | os.PathLike[str] | None, target: Target, request: Request
) -> str | os.PathLike[str] | None:
    """Where the artifact goes: `output`, or where the target's options put it; folders on the way are made, and go
    again where nothing comes into them before `stack` closes."""
    if target.place is None:
        return output
    place = target.place(None if output is None else Path(output), request.options)
    if place is None:
        return output
    stack.enter_context(files.folders(place.parent))
    return place


def places_of(
    model: Model,
    output: str | os.PathLike[str] | None,
    depfile: str | os.PathLike[str] | None,
    target: Target,
    bundles: bool = False,
) -> Places:
    """Raises UsageError or OutputError where one of them cannot be written or is the model itself. With `bundles`
    an earlier bundle may be replaced."""
    shown = Path(output) if output is not None else Path(_stem(model) + target.suffix)
    earlier = (bundles and is_bundle(shown)) or _replaceable(target, shown)
    place = (
        files.check_output(beside(shown, BUNDLE)).with_name(shown.name)
        if earlier
        else files.check_output(shown)
    )
    parts = tuple(files.check_output(place.with_suffix(suffix)) for suffix in target.parts)
    if place in parts:
        raise UsageError(
            f"the output '{shown}' is a file beside the artifact",
            hint=f"-o {shown.with_suffix(target.suffix)}",
        )
    others = [files.check_output(beside(place, suffix)) for suffix in (".report.json", ".manifest.json")]
    listed = None if depfile is None else files.check_output(Path(depfile))
    if isinstance(model, str | os.PathLike) and os.path.realpath(model) in map(
        str, (place, *parts, *others, listed)
    ):
        raise UsageError(f"the output '{shown}' is the model itself", hint="choose another name with -o")
    if listed in (place, *parts, *others):
        raise UsageError(f"the dependency file '{depfile}' is an output of the export itself")
    return Places(shown, place, parts, others[0], others[1], listed)


def of_bundle(places: Places, given: bool, target: Target) -> Places:
    """The places of an artifact that is a folder; `given`: the user named the output. Raises UsageError."""
    if not given:
        shown = places.shown.with_suffix(BUNDLE)
        place = places.artifact.with_name(shown.name)
    else:
        shown, place = places.shown, places.artifact
        if target.folder is None and shown.suffix in (target.suffix, *target.parts):
            raise UsageError(
                f"what {target.name} leaves to the host lies beside it: the artifact is a folder, not the file "
                f"'{shown}'",
                hint=f"-o {shown.with_suffix(BUNDLE)}",
            )
    if place.exists() and not is_bundle(place) and not _replaceable(target, place):
        raise UsageError(f"the output '{shown}' is there and no bundle", hint="choose another name with -o")
    report, manifest = beside(place, ".report.json"), beside(place, ".manifest.json")
    return replace(places, shown=shown, artifact=place, parts=(), report=report, manifest=manifest)


def of_file(places: Places, target: Target) -> Places:
    """The places of an artifact that is no bundle. Raises UsageError where another folder lies there."""
    if places.artifact.is_dir() and not _replaceable(target, places.artifact):
        raise UsageError(f"the output '{places.shown}' is a folder, expected a file")
    return places


def beside(place: Path, suffix: str) -> Path:
    return place.with_name(place.name + suffix)


def _replaceable(target: Target, path: Path) -> bool:
    """Whether an artifact that is a folder may take the place of a folder: of an earlier one, or an empty one."""
    if target.folder is None or not path.is_dir():
        return False
    return is_artifact(target, path) or is_bundle(path) or not any(path.iterdir())


def _stem(model: Model) -> str:
    return Path(model).stem if isinstance(model, str | os.PathLike) else "model"
