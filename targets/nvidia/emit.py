"""Writes a legalized graph as a plan."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir

from tapeout.compiler.ir.save import RELEASE
from tapeout.sdk import Declaration, Request, UsageError, lowered, release
from tapeout.targets.nvidia.collapse import collapsed
from tapeout.targets.nvidia.fuse import fused, short
from tapeout.targets.nvidia.lower import LOWERINGS
from tapeout.targets.nvidia.lower.builder import Builder, dtype
from tapeout.targets.nvidia.memory import profile
from tapeout.targets.nvidia.passes import ALSO, CACHE
from tapeout.targets.nvidia.plan.parts import Plan, Weight, padded
from tapeout.targets.nvidia.plan.write import write
from tapeout.targets.nvidia.run import CPU
from tapeout.targets.nvidia.sizes import profiles_of

KNOWN_ARCHITECTURES = ("sm_80", "sm_87", "sm_89", "sm_90")


def emit(model: ir.Model, sink: BinaryIO, request: Request, rows: Declaration) -> None:
    """Write the plan of `model` to `sink`, its weights one at a time. Raises UnsupportedError."""
    wanted = architectures(request)
    plan, weights = planned(model, request, rows)
    if wanted:
        from tapeout.targets.nvidia.kernels.build import with_kernels

        cache = request.options.get(CACHE)
        plan = with_kernels(plan, wanted, None if cache is None else Path(cache))
    by_name = {v.name or "": v for v in weights}
    write(plan, sink, lambda weight: content(by_name[weight.name]))


def architectures(request: Request) -> list[int]:
    """The architectures that are asked for, 90 for sm_90; none for the CPU executor. Raises UsageError."""
    asked = [request.device, *filter(None, request.options.get(ALSO, "").split(","))]
    if asked == [CPU]:
        return []
    wrong = next((name for name in asked if name not in KNOWN_ARCHITECTURES), None)
    if wrong is not None:
        known = ", ".join(KNOWN_ARCHITECTURES)
        raise UsageError(
            f"there are no kernels for '{wrong}' beside '{request.device}'; there are for {known}"
        )
    return sorted({int(name.removeprefix("sm_")) for name in asked})


def planned(model: ir.Model, request: Request, rows: Declaration) -> tuple[Plan, Sequence[ir.Value]]:
    """The plan of `model`, and the constants that are its weights."""
    sizes = profiles_of(model, request.options)
    symbols = tuple(sizes[0])
    builder = Builder(model, symbols)
    for node, row in list(lowered(model, rows)):
        assert row.lower is not None
        LOWERINGS[row.lower](builder, node)
    for value in dict.fromkeys(model.graph.outputs):
        builder.finish(value)
    tensors, launches, kept = fused(builder.tensors, builder.launches)
    spans = [(min(p[s].least for p in sizes), max(p[s].most for p in sizes)) for s in symbols]
    launches = [short(collapsed(launch), tensors, spans) for launch in launches]
    weights = [builder.weights[i] for i in kept]
    made = Plan(
        symbols=symbols,
        profiles=tuple(profile(tensors, launches, list(p.values())) for p in sizes),
        weights=tuple(entries(weights)),
        tensors=tuple(tensors),
        launches=tuple(launches),
        meta={"name": model.graph.name or "model", "scheme": request.scheme},
    )
    return made, weights


def entries(weights: Sequence[ir.Value]) -> list[Weight]:
    """The table of weights: each is read once for its sha256."""
    made, place = [], 0
    for value in weights:
        assert value.const_value is not None and value.shape is not None
        tensor = value.const_value
        shape = tuple(int(d) for d in tensor.shape)  # type: ignore[arg-type]
        digest = hashlib.sha256(content(value)).digest()
        made.append(Weight(value.name or "", dtype(value), shape, place, tensor.nbytes, digest))
        place += padded(tensor.nbytes)
        if tensor.nbytes >= RELEASE:
            release()
    return made


def content(value: ir.Value) -> bytes:
    """The bytes of a constant."""
    assert value.const_value is not None
    return value.const_value.tobytes()
