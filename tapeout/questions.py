"""What can be asked of models and artifacts: explain, verify, compare, inspect, bench."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tapeout.calibrating import Given, Samples, with_stand_in
from tapeout.compiler.bundle import bundled, is_bundle
from tapeout.compiler.bundle import read as schedule
from tapeout.compiler.errors import AccuracyError, InvalidModelError, UsageError
from tapeout.compiler.target import Request, Target
from tapeout.failures import failures
from tapeout.fallback import Fallback
from tapeout.quantizing import with_borders
from tapeout.road import (
    Model,
    Prepared,
    Wish,
    choose,
    dtype_name,
    left_to_host,
    legalize,
    opened,
    prepare,
    target_of,
)

if TYPE_CHECKING:
    from tapeout.compiler.comparison import Comparison
    from tapeout.compiler.explanation import Explanation
    from tapeout.compiler.verification import Verification

Notify = Callable[[str], None]
PathLike = str | os.PathLike[str]


def explain(
    model: Model,
    target: str | Target = "tflite",
    *,
    device: str | None = None,
    quantize: str | None = None,
    shape: Mapping[str, Sequence[int | str]] | None = None,
    layout: Mapping[str, str] | None = None,
    outputs: Sequence[str] | None = None,
    options: Mapping[str, str] | None = None,
    calibration: Given | None = None,
    fallback: str = "error",
    try_fixes: bool = False,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    notify: Notify | None = None,
) -> Explanation:
    """What would go where on `target`, and why not; nothing is written. Arguments as for `export`; a static scheme
    without `calibration` takes its ranges from random inputs, which hardly matters to what goes where. With
    `try_fixes` every fix that a pass or an option could make is tried on what is refused, and the answer says
    which worked.

    Raises TapeoutError for a bad model or option; what the target refuses is part of the answer, no error.
    """
    from tapeout.compiler.explanation import explain as told

    with failures(), ExitStack() as stack:
        chosen, request = choose(target, device, quantize, options)
        _tell(notify, "read")
        model = opened(
            stack, model, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes, proven=False
        )
        wish = Wish(shape or {}, layout or {}, tuple(outputs or ()))
        prepared = prepare(model, wish)
        samples = None if calibration is None else Samples(calibration)
        asked = with_borders(with_stand_in(request, samples, prepared), chosen, prepared.model)
        _tell(notify, "passes")
        try:
            _, acceptance = legalize(prepared.model, chosen, asked)
        except UsageError as error:
            if asked.calibration is None or not asked.calibration.stand_in:
                raise
            raise UsageError(
                f"{error.message} (random inputs)",
                hint="--calibration DATA gives typical ones",
                nodes=error.nodes,
            ) from error
        host = left_to_host(acceptance, prepared.model, chosen, asked)
        found = told(acceptance, host=host, hosted=Fallback(fallback).to_host)
        if try_fixes and acceptance.refused:
            from tapeout.fixing import tried

            _tell(notify, "fixes")
            found = replace(found, tried=tried(prepare(model, wish), acceptance, chosen, request))
        return found


@dataclass(frozen=True)
class Verified:
    """The numbers of an artifact, and the error that they call for, if any."""

    verification: Verification
    error: AccuracyError | None = None


def verify(
    artifact: PathLike,
    against: Model,
    *,
    target: str | Target | None = None,
    device: str | None = None,
    data: PathLike | None = None,
    samples: int = 8,
    gates: Mapping[str, float] | None = None,
    jobs: int | None = None,
    raising: bool = True,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    notify: Notify | None = None,
) -> Verified:
    """Run `artifact` on its target's own runtimes against the model it was made from.

    What it was made with (target, device, scheme, shapes, layouts, outputs) is read from its manifest;
    without one, the target follows from the file's suffix, and inputs and outputs that are called otherwise
    are matched by their shapes. `against` may be another artifact of the same kind. `data` and `gates` as for
    `export`; at most `samples` samples are run. Raises AccuracyError where a bound does not hold, unless
    `raising` is False.
    """
    from tapeout.integer_proof import stated_grids
    from tapeout.proof import Claim, judge, judge_numbers, locate, prove

    with failures(), ExitStack() as stack:
        path, chosen, request, wish = opened_artifact(artifact, target, device)
        _tell(notify, "read")
        against = opened(
            stack, against, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes,
            data=None if wish.layout else data, threads=jobs,
        )  # fmt: skip
        from tapeout.foreign import artifact_target, is_foreign, verify_foreign

        other = artifact_target(against) is not None
        prepared = None if other else prepare(against, wish)
        if prepared is None or (not manifest_of(path) and is_foreign(chosen, path, request, prepared)):
            _tell(notify, "verify")
            numbers = verify_foreign(path, chosen, request, against, prepared, data, samples, jobs)
            verdict = judge_numbers(numbers, gates or {})
            if verdict is not None and raising:
                raise verdict
            return Verified(numbers, verdict)
        grids = stated_grids(manifest_of(path))
        claim = Claim(against, wish, prepared, chosen, request, path, data, jobs, samples, grids=grids)
        _tell(notify, "verify")
        found = prove(claim)
        error = judge(found, gates or {}, found is None, claim)
        if error is not None and found is not None and not found.holds:
            error = locate(error, claim, found)
        if found is None or (error is not None and raising):
            assert error is not None
            raise error
        return Verified(found, error)


def compare(
    model: Model,
    artifact: PathLike,
    *,
    target: str | Target | None = None,
    device: str | None = None,
    data: PathLike | None = None,
    sample: int = 0,
    jobs: int | None = None,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    notify: Notify | None = None,
) -> Comparison:
    """Hold every tensor that the artifact's runtime shows against the source, through fusions, by source
    names.

    `sample` chooses one of `data` (or of the random inputs). The runtime that shows the most tensors is used.
    `model` may be another artifact of the same kind: then tensors of the same name are held together.
    Raises TapeoutError; deviations are part of the answer.
    """
    from tapeout.compiler.comparison import Holder, holders_of
    from tapeout.compiler.comparison import compare as compared
    from tapeout.compiler.states import states, zeros
    from tapeout.foreign import artifact_target, compare_artifacts, compare_with_model, is_foreign
    from tapeout.integer_proof import stated_grids
    from tapeout.proof import feeds, inner_spread, running

    with failures(), ExitStack() as stack:
        path, chosen, request, wish = opened_artifact(artifact, target, device)
        _tell(notify, "read")
        if artifact_target(model) is not None:
            return compare_artifacts(Path(str(model)), path, chosen, request, data, sample, jobs)
        model = opened(
            stack, model, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes,
            data=None if wish.layout else data, threads=jobs,
        )  # fmt: skip
        source = prepare(model, wish)
        if not manifest_of(path) and is_foreign(chosen, path, request, source):
            return compare_with_model(path, chosen, request, model, source, data, sample, jobs)
        stated = [Holder.from_json(h) for h in manifest_of(path).get("tensors", ())]
        if not stated:
            final = prepare(model, wish)
            _tell(notify, "passes")
            legalize(final.model, chosen, request)
            stated = holders_of(final.model)
        runners = chosen.runners(path, running(request, jobs))
        if not runners:
            raise AccuracyError(f"nothing here can run the artifact for {chosen.name} on {request.device}")
        _tell(notify, "verify")
        feed = _sample(source, data, sample, feeds)
        feed |= zeros(source.model, states(source.model, request.options))  # both sides at their first step
        own = inner_spread(source.model, feed, jobs)
        grids = stated_grids(manifest_of(path))
        feed = {k: grids[k].codes(v) if k in grids else v for k, v in feed.items()}
        names = [h.tensor for h in stated]
        # Of those that show as much, the last: targets list the runtime that fuses most first.
        runner = max(reversed(runners), key=lambda r: len(r.tensors(feed, names)))
        return compared(
            source.model, stated, runner, feed, scheme=request.scheme, threads=jobs, own_spread=own
        )


def _sample(prepared: Prepared, data: PathLike | None, sample: int, feeds: Any) -> dict[str, Any]:
    for index, feed in enumerate(feeds(prepared.model, data, sample + 1)[0]):
        if index == sample:
            return dict(feed)
    raise UsageError(f"there is no sample {sample} in {data or 'the random inputs'}")


def inspect(file: PathLike) -> dict[str, Any]:
    """What is in a model file or an artifact: operators with versions, inputs and outputs, sizes.

    Raises UsageError where the file is missing, InvalidModelError where it is damaged.
    """
    with failures():
        path = Path(file)
        if not (path / "saved_model.pb").exists():
            path = _existing(file, "file")
        if is_bundle(path):
            return {"kind": "bundle", **schedule(path)}
        one = target_of(path)
        if one is not None and one.inspect is not None:
            return {"kind": one.name, **one.inspect(path)}
        with ExitStack() as stack:
            return _inspect_model(opened(stack, path, proven=False))


def _inspect_model(source: Model) -> dict[str, Any]:
    from collections import Counter

    from tapeout.compiler.artifact import digest
    from tapeout.compiler.ir import graph as g

    prepared = prepare(source, Wish())
    model = prepared.model

    def tensor(value: Any) -> dict[str, Any]:
        dims = g.dims(value)
        return {
            "name": value.name,
            "dtype": dtype_name(value),
            "shape": None if dims is None else list(dims),
        }

    nodes = [n for graph in g.graphs(model) for n in graph]
    operators = Counter(
        f"{n.domain}::{n.op_type}" if n.domain not in ("", "ai.onnx") else n.op_type for n in nodes
    )
    weights = [
        v.const_value
        for graph in g.graphs(model)
        for v in graph.initializers.values()
        if v.const_value is not None
    ]
    return {
        "kind": prepared.framework or "onnx",
        "bytes": sum(digest(f)[1] for f in prepared.files),
        "sha256": digest(prepared.files[0])[0],
        "producer": f"{model.producer_name or ''} {model.producer_version or ''}".strip() or "unknown",
        "nodes": len(nodes),
        "weights": sum(w.nbytes for w in weights),
        "parameters": sum(w.size for w in weights),
        "weights_by_type": _by_type(weights),
        "inputs": [tensor(v) for v in model.graph.inputs],
        "outputs": [tensor(v) for v in model.graph.outputs],
        "operators": dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
    }


def _by_type(weights: Sequence[Any]) -> dict[str, dict[str, int]]:
    """Number, elements and bytes of constants by type, most bytes first."""
    found: dict[str, dict[str, int]] = {}
    for w in weights:
        entry = found.setdefault(str(w.dtype.numpy().name), {"tensors": 0, "elements": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["elements"] += w.size
        entry["bytes"] += w.nbytes
    return dict(sorted(found.items(), key=lambda item: -item[1]["bytes"]))


# --- artifacts --------------------------------------------------------------------------------------------


def _existing(file: PathLike, what: str) -> Path:
    path = Path(file)
    if not path.exists():
        raise UsageError(f"the {what} '{path}' does not exist")
    if path.is_dir() and not is_bundle(path) and target_of(path) is None:
        raise UsageError(f"the {what} '{path}' is a folder")
    return path


def manifest_of(path: Path) -> dict[str, Any]:
    """The manifest beside an artifact, {} where there is none."""
    place = path.with_name(path.name.removesuffix(".rejected") + ".manifest.json")
    try:
        found = json.loads(place.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InvalidModelError(f"the manifest '{place}' is damaged: {error}") from error
    return found if isinstance(found, dict) else {}


def opened_artifact(
    artifact: PathLike, target: str | Target | None, device: str | None
) -> tuple[Path, Target, Request, Wish]:
    """An artifact with what it was made by and for."""
    path = _existing(artifact, "artifact")
    manifest = manifest_of(path)
    if target is None:
        target = manifest.get("target") or (schedule(path)["target"] if is_bundle(path) else _by_suffix(path))
    options = {str(k): str(v) for k, v in manifest.get("options", {}).items()}
    chosen, request = choose(target, device or manifest.get("device"), manifest.get("scheme"), options)
    if is_bundle(path):
        chosen = bundled(chosen)
    asked = manifest.get("wish", {})
    return (
        path,
        chosen,
        request,
        Wish(asked.get("shape", {}), asked.get("layout", {}), tuple(asked.get("outputs", ()))),
    )


def _by_suffix(path: Path) -> str:
    found = target_of(path)
    if found is not None:
        return found.name
    raise UsageError(
        f"no installed target writes '{path.suffix}' files", hint="name the target with --target"
    )


def _tell(notify: Notify | None, part: str) -> None:
    if notify is not None:
        notify(part)
