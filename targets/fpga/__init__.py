"""The FPGA target: circuits in Verilog, verified cycle by cycle against the quantized graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from tapeout.sdk import Pass, Quantity, Request, Runner, Target, Timer, declarations


def _quantities() -> Iterable[Quantity]:
    from tapeout.targets.fpga.quantities import QUANTITIES

    return QUANTITIES


declaration = declarations(Path(__file__).with_name("target.toml"), _quantities)


def _passes(request: Request) -> tuple[Pass, ...]:
    from tapeout.targets.fpga.passes import passes

    return passes(request)


def _emit(model: ir.Model, folder: Path, request: Request) -> None:
    from tapeout.targets.fpga.emit import emit

    emit(model, folder, request)


def _runners(artifact: Path, request: Request) -> Sequence[Runner]:
    from tapeout.targets.fpga.run import runners

    return runners(artifact, request)


def _inspect(artifact: Path) -> dict[str, Any]:
    from tapeout.targets.fpga.run import inspect

    return inspect(artifact)


def _timers(artifact: Path, request: Request, hint: str | None) -> Sequence[Timer]:
    from tapeout.targets.fpga.timing import timers

    return timers(artifact, request, hint)


TARGET = Target(
    name="fpga",
    suffix=".fpga",
    schemes=("int8", "int8-fixed"),
    devices=("xc7z020", "xc7a100t", "xcu250", "ecp5-85"),
    declaration=declaration,
    passes=_passes,
    emit=_emit,
    runners=_runners,
    inspect=_inspect,
    folder="circuit.json",
    integer_borders=True,
    timers=_timers,
)
