"""What is done with whole plans: strip, refit, compare, describe."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tapeout.sdk import InvalidModelError
from tapeout.targets.nvidia.plan.expressions import text
from tapeout.targets.nvidia.plan.parts import Kind, Plan, Tensor, Weight
from tapeout.targets.nvidia.plan.read import PlanFile
from tapeout.targets.nvidia.plan.write import write


def strip(file: PlanFile, sink: BinaryIO) -> None:
    """Write the plan without its weights; `refit` gives them back."""
    write(file.plan, sink, None)


def refit(file: PlanFile, given: Mapping[str, Any], sink: BinaryIO, *, exact: bool = True) -> list[str]:
    """Write the plan with the weights in `given`: arrays or buffers by the names that the plan has; a plan that is
    not stripped keeps those that are not given. Returns the names of the weights that are other ones than before.

    With `exact` every weight must have the sha256 that the plan names. Raises InvalidModelError where a weight is
    missing, unknown, of other size, or another one.
    """
    name = file.path.name
    known = {w.name for w in file.plan.weights}
    unknown = sorted(set(given) - known)
    if unknown:
        raise InvalidModelError(f"'{name}' has no weight '{unknown[0]}'; it has {_some(sorted(known))}")
    missing = [w.name for w in file.plan.weights if w.name not in given] if file.stripped else []
    if missing:
        raise InvalidModelError(
            f"'{name}' is stripped, and {len(missing)} weights are not given: {_some(missing)}"
        )
    weights, changed = [], []
    for weight in file.plan.weights:
        if weight.name not in given:
            weights.append(weight)
            continue
        content = _bytes(given[weight.name])
        if len(content) != weight.size:
            raise InvalidModelError(
                f"weight '{weight.name}' of '{name}' has {weight.size} bytes ({weight.dtype} {list(weight.shape)}), "
                f"{len(content)} are given"
            )
        digest = hashlib.sha256(content).digest()
        if digest != weight.sha256:
            changed.append(weight.name)
        weights.append(dataclasses.replace(weight, sha256=digest))
    if exact and changed:
        raise InvalidModelError(
            f"{len(changed)} weights are not those of '{name}': {_some(changed)}",
            hint="--changed takes other weights of the same sizes",
        )
    plan = dataclasses.replace(file.plan, weights=tuple(weights))
    write(plan, sink, lambda w: _bytes(given[w.name]) if w.name in given else file.weight(w))
    return changed


def weights_of(path: Path) -> dict[str, Any]:
    """The weights in a file, by name: another plan that has them, or an .npz. Raises InvalidModelError."""
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except (OSError, ValueError) as error:
            raise InvalidModelError(f"'{path}' is no archive of arrays: {error}") from error
    file = PlanFile(path)
    return {w.name: file.weight(w) for w in file.plan.weights}


def diff(first: Plan, second: Plan) -> list[str]:
    """What differs, a line each; nothing where the plans are the same."""
    lines = []
    for what, a, b in (
        ("symbols", first.symbols, second.symbols),
        ("architectures", first.architectures, second.architectures),
    ):
        lines += [f"{what}: {_some(a)} | {_some(b)}"] if a != b else []
    for what in ("weights", "tensors", "tactics"):
        lines += _named(what, _by_name(getattr(first, what)), _by_name(getattr(second, what)))
    kernels = [{f"{k.symbol} group {k.group} sm_{k.arch}": k for k in p.kernels} for p in (first, second)]
    lines += _named("kernels", *kernels)
    launches = [{f"{i} {a.operation}": a for i, a in enumerate(p.launches)} for p in (first, second)]
    lines += _named("launches", *launches)
    profiles = [{str(i): p for i, p in enumerate(plan.profiles)} for plan in (first, second)]
    lines += _named("profiles", *profiles)
    lines += _named("meta", first.meta, second.meta)
    return lines


def describe(file: PlanFile) -> dict[str, Any]:
    """A plan as plain data, for `tapeout inspect`."""
    plan = file.plan
    operations: dict[str, int] = {}
    for launch in plan.launches:
        operations[launch.operation] = operations.get(launch.operation, 0) + 1
    return {
        "format": "tapeout plan",
        "bytes": file.path.stat().st_size,
        "weight_bytes": sum(w.size for w in plan.weights),
        "stripped": file.stripped,
        **dict(plan.meta),
        "architectures": [f"sm_{arch}" for arch in plan.architectures],
        "inputs": [_port(t, plan.symbols) for t in plan.named(Kind.INPUT).values()],
        "outputs": [_port(t, plan.symbols) for t in plan.named(Kind.OUTPUT).values()],
        "profiles": [
            {"sizes": {s: list(n) for s, n in zip(plan.symbols, p.sizes, strict=True)}, "arena": p.arena}
            for p in plan.profiles
        ],
        "operations": dict(sorted(operations.items(), key=lambda item: (-item[1], item[0]))),
        "kernels": [
            {
                "group": k.group, "arch": f"sm_{k.arch}", "symbol": k.symbol, "bytes": len(k.image),
                "shared": k.shared, "warps": k.warps, "registers": k.registers, "spills": k.spills,
            }
            for k in plan.kernels
        ],
        "tactics": [dataclasses.asdict(t) for t in plan.tactics],
    }  # fmt: skip


def _port(tensor: Tensor, symbols: Sequence[str]) -> dict[str, Any]:
    return {"name": tensor.name, "type": tensor.dtype, "shape": [text(c, symbols) for c in tensor.shape]}


def _by_name(parts: Sequence[Any]) -> dict[str, Any]:
    return {part.name: part for part in parts}


def _named(what: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    lines = [f"{what}: only in the first: {n}" for n in first if n not in second]
    lines += [f"{what}: only in the second: {n}" for n in second if n not in first]
    for name, part in first.items():
        if name in second and part != second[name]:
            lines.append(f"{what}: {name}: {_changed(part, second[name])}")
    return lines


def _changed(first: Any, second: Any) -> str:
    if not dataclasses.is_dataclass(first):
        return f"{first} | {second}"
    names = [f.name for f in dataclasses.fields(first) if getattr(first, f.name) != getattr(second, f.name)]
    return ", ".join(f"{n} {_short(getattr(first, n))} | {_short(getattr(second, n))}" for n in names)


def _short(value: Any) -> str:
    shown = f"{len(value)} bytes" if isinstance(value, bytes) and len(value) > 32 else str(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _some(names: Sequence[Any], most: int = 5) -> str:
    shown = ", ".join(map(str, names[:most])) or "none"
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _bytes(value: Any) -> memoryview:
    if isinstance(value, np.ndarray):
        value = np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
    return memoryview(value).cast("B")


def weight(name: str, array: np.ndarray[Any, Any], offset: int) -> Weight:
    """The entry of an array in the table of weights."""
    return Weight(
        name, array.dtype.name, array.shape, offset, array.nbytes, hashlib.sha256(_bytes(array)).digest()
    )
