"""Writes a legalized graph as a plan."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import BinaryIO

import onnx_ir as ir

from tapeout.compiler.ir.save import RELEASE
from tapeout.sdk import Declaration, Request, lowered, release
from tapeout.targets.nvidia.fuse import fused
from tapeout.targets.nvidia.lower import LOWERINGS
from tapeout.targets.nvidia.lower.builder import Builder, dtype
from tapeout.targets.nvidia.memory import profile
from tapeout.targets.nvidia.plan.parts import Plan, Weight, padded
from tapeout.targets.nvidia.plan.write import write
from tapeout.targets.nvidia.sizes import sizes_of


def emit(model: ir.Model, sink: BinaryIO, request: Request, rows: Declaration) -> None:
    """Write the plan of `model` to `sink`, its weights one at a time. Raises UnsupportedError."""
    plan, weights = planned(model, request, rows)
    by_name = {v.name or "": v for v in weights}
    write(plan, sink, lambda weight: content(by_name[weight.name]))


def planned(model: ir.Model, request: Request, rows: Declaration) -> tuple[Plan, Sequence[ir.Value]]:
    """The plan of `model`, and the constants that are its weights."""
    ranges = sizes_of(model, request.options)
    builder = Builder(model, list(ranges))
    for node, row in list(lowered(model, rows)):
        assert row.lower is not None
        LOWERINGS[row.lower](builder, node)
    for value in dict.fromkeys(model.graph.outputs):
        builder.finish(value)
    tensors, launches, kept = fused(builder.tensors, builder.launches)
    weights = [builder.weights[i] for i in kept]
    made = Plan(
        symbols=tuple(ranges),
        profiles=(profile(tensors, launches, list(ranges.values())),),
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
