"""NVIDIA GPUs: plans, the engines of our own, and the hand-over to TensorRT (in `tensorrt`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import onnx_ir as ir

from tapeout.sdk import Pass, Quantity, Request, Runner, Target, Timer, declarations


def _quantities() -> tuple[Quantity, ...]:
    from tapeout.targets.nvidia.quantities import QUANTITIES

    return QUANTITIES


declaration = declarations(Path(__file__).with_name("target.toml"), _quantities)


def _passes(request: Request) -> tuple[Pass, ...]:
    from tapeout.targets.nvidia.passes import passes

    return passes(request)


def _emit(model: ir.Model, sink: BinaryIO, request: Request) -> None:
    from tapeout.targets.nvidia.emit import emit

    emit(model, sink, request, declaration(request.device))


def _runners(artifact: Path, request: Request) -> Sequence[Runner]:
    from tapeout.targets.nvidia.run import runners

    return runners(artifact, request)


def _inspect(artifact: Path) -> dict[str, Any]:
    from tapeout.targets.nvidia.plan.edit import describe
    from tapeout.targets.nvidia.plan.read import PlanFile

    return describe(PlanFile(artifact))


def _timers(artifact: Path, request: Request, hint: str | None) -> Sequence[Timer]:
    from tapeout.targets.nvidia.run import timers

    return timers(artifact, request, hint)


TARGET = Target(
    name="nvidia",
    suffix=".plan",
    schemes=("float32", "float16", "bfloat16"),
    devices=("sm_80", "sm_87", "sm_89", "sm_90", "cpu"),
    declaration=declaration,
    passes=_passes,
    emit=_emit,
    runners=_runners,
    inspect=_inspect,
    timers=_timers,
)
