"""From the model as it was read to the staged artifact: passes, placement, emission, a vendor's compiler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tapeout.compiler import artifact as files
from tapeout.compiler import bundle
from tapeout.compiler.errors import BudgetError, UsageError
from tapeout.compiler.explanation import explain
from tapeout.compiler.partition import Limits, Part, partition
from tapeout.compiler.states import OPTION as STATE
from tapeout.compiler.target import Request, Target
from tapeout.fallback import Fallback
from tapeout.manifest import manifest_of
from tapeout.places import Places
from tapeout.quantizing import quantized
from tapeout.road import Prepared, Wish, can_bundle, leave_to_host, legalize, refuse

if TYPE_CHECKING:
    from tapeout.compiler.declaration import Acceptance


def legalized(
    prepared: Prepared,
    target: Target,
    request: Request,
    wish: Wish,
    report: dict[str, Any],
    policy: Fallback,
) -> dict[str, Any]:
    """Run the passes on the model, in place; the manifest. Raises UnsupportedError, FallbackError."""
    history, acceptance = legalize(prepared.model, target, request)
    if policy.to_host and acceptance.refused:
        acceptance = _with_host(prepared, acceptance, target, request, policy, report)
    else:
        report["coverage"] = explain(acceptance).coverage()
    if prepared.parts is None:
        refuse(acceptance, target)
    report["passes"] = [
        {"name": s.name, "changes": s.count, "seconds": round(s.seconds, 4)} for s in history.steps
    ]
    said, told = quantized(prepared.model, request)
    if told is not None:
        report["quantization"] = told
    manifest = manifest_of(target, request, wish, prepared, history, acceptance)
    return manifest if said is None else manifest | {"quantization": said}


def _with_host(
    prepared: Prepared,
    acceptance: Acceptance,
    target: Target,
    request: Request,
    policy: Fallback,
    report: dict[str, Any],
) -> Acceptance:
    """What is accepted where a host takes part, in one artifact or in parts. Raises FallbackError."""
    if can_bundle(target):
        acceptance = _in_parts(prepared, target, request, policy)
        after, left = acceptance, acceptance.refused
    else:
        if policy.limits != Limits():
            raise UsageError(
                f"what goes where within one artifact is the business of {target.name}'s own compiler: "
                "--smallest-island and --largest-transfer are for bundles"
            )
        after, left = leave_to_host(acceptance, prepared.model, target, request)
    report["coverage"] = explain(acceptance, host={r.node for r in left}, hosted=True).coverage()
    report["fallback"] = policy.hold([r.name for r in left], len(acceptance.order), target.name) | {
        "reasons": [str(r) for r in left]
    }
    if prepared.parts is not None:
        device = [p for p in prepared.parts if not p.host]
        report["fallback"] |= {
            "parts": len(prepared.parts),
            "transfer_bytes": sum(p.transfer for p in device),
        }
    return after


def _in_parts(prepared: Prepared, target: Target, request: Request, policy: Fallback) -> Acceptance:
    """Cut the model into parts; what is the device's in them, and what is the host's and why."""
    if STATE in request.options:
        raise UsageError(
            f"a model that keeps its state (--option {STATE}) is not cut into parts for the host",
            hint="leave the state an input and an output",
        )
    rows = target.declaration(request.device)
    prepared.parts, acceptance = partition(prepared.model, rows, policy.limits)
    return acceptance


def emitted(
    prepared: Prepared,
    target: Target,
    request: Request,
    stage: files.Stage,
    places: Places,
    most: int | None,
) -> dict[str, Any]:
    """Stage the artifact; what the manifest says of it. Raises BudgetError where it is larger than `most`."""
    if prepared.parts is not None:
        return _bundle(prepared, prepared.parts, target, request, stage, places, most)
    if target.folder is not None:
        with stage.folder(places.artifact) as folder:
            target.emit(prepared.model, folder, request)
        return _in_folder(folder, target.folder, places, most, request)
    with ExitStack() as stack:
        sink = stack.enter_context(stage.open(places.artifact))
        parts = [stack.enter_context(stage.open(p, places.artifact)) for p in places.parts]
        target.emit(prepared.model, sink, request, *parts)
    _within(sink.size + sum(p.size for p in parts), most, request)
    made: dict[str, Any] = {"name": places.artifact.name, "sha256": sink.digest, "bytes": sink.size}
    if parts:
        made["parts"] = [
            {"name": place.name, "sha256": part.digest, "bytes": part.size}
            for place, part in zip(places.parts, parts, strict=True)
        ]
    return made


def _bundle(
    prepared: Prepared,
    parts: Sequence[Part],
    target: Target,
    request: Request,
    stage: files.Stage,
    places: Places,
    most: int | None,
) -> dict[str, Any]:
    """Stage the folder of a bundle. The digest is that of its schedule, which holds those of the files."""
    with stage.folder(places.artifact) as folder:
        bundle.write(prepared.model, parts, target, request, folder)
    return _in_folder(folder, bundle.SCHEDULE, places, most, request)


def _in_folder(folder: Path, main: str, places: Places, most: int | None, request: Request) -> dict[str, Any]:
    """What the manifest says of an artifact that is a folder: the digest is that of its `main` file."""
    written = files.entries(folder)
    size = sum(e["bytes"] for e in written)
    _within(size, most, request)
    sha = next(e["sha256"] for e in written if e["name"] == main)
    return {"name": places.artifact.name, "sha256": sha, "bytes": size, "parts": written}


def also(
    stage: files.Stage, places: Places, further: Mapping[Path, Callable[[Path], bytes]]
) -> list[dict[str, Any]]:
    """Stage the files that options ask for, made of the staged artifact; what the report says of them."""
    told = []
    for place, make in further.items():
        with stage.open(files.check_output(place)) as sink:
            sink.write(make(stage.path(places.artifact)))
        told.append({"name": place.name, "sha256": sink.digest, "bytes": sink.size})
    return told


def finish(
    prepared: Prepared,
    target: Target,
    request: Request,
    stage: files.Stage,
    places: Places,
    policy: Fallback,
    manifest: dict[str, Any],
    report: dict[str, Any],
) -> None:
    """Put what the vendor's compiler makes of the staged artifact in its place. Raises VendorToolError,
    UnsupportedError, FallbackError."""
    assert target.finish is not None
    made = target.finish(stage.path(places.artifact), prepared.model, request)
    total = sum(v for k, v in made.facts.get("placement", {}).items() if isinstance(v, int))
    report["fallback"] = report.get("fallback", {}) | policy.hold(list(made.hosted), total, request.device)
    stage.drop(places.artifact)
    with stage.open(places.artifact) as sink:
        sink.write(made.content)
    manifest["artifact"] = {"name": places.artifact.name, "sha256": sink.digest, "bytes": sink.size}
    manifest["finished"] = dict(made.facts)
    report["finished"] = {"summary": made.summary, **made.facts}
    # What ran was the file before it was compiled, on another device.
    report["proof"]["unproven"] = True


def _within(size: int, most: int | None, request: Request) -> None:
    if most is not None and size > most:
        half = "--quantize float16 halves the weights" if request.scheme == "float32" else None
        raise BudgetError(f"the artifact has {size:,} bytes, at most {most:,} are allowed", hint=half)
