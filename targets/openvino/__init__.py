"""The OpenVINO target: `model.xml` and `model.bin` for Intel's CPUs, GPUs and NPUs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import onnx_ir as ir

from tapeout.sdk import Declaration, Pass, Request, Runner, Target, Timer

HERE = Path(__file__).parent


@functools.cache
def declaration(device: str) -> Declaration:
    """The rows that hold on `device`."""
    from tapeout.targets.openvino.quantities import QUANTITIES

    return Declaration.load(HERE / "target.toml", device=device, quantities=QUANTITIES)


def _passes(request: Request) -> tuple[Pass, ...]:
    from tapeout.targets.openvino.passes import passes

    return passes(request)


def _emit(model: ir.Model, sink: BinaryIO, request: Request, weights: BinaryIO) -> None:
    from tapeout.targets.openvino.emit import emit

    emit(model, sink, request, weights)


def _runners(artifact: Path, request: Request) -> Sequence[Runner]:
    from tapeout.targets.openvino.run import runners

    return runners(artifact, request)


def _inspect(artifact: Path) -> dict[str, Any]:
    from tapeout.targets.openvino.inspection import inspect

    return inspect(artifact)


def _place(output: Path | None, options: Mapping[str, str]) -> Path | None:
    if "server" not in options:
        return None
    from tapeout.targets.openvino.server import place, served

    model = served(options)
    return None if model is None else place(output or Path(), model)


def _also(place: Path, request: Request) -> dict[Path, Callable[[Path], bytes]]:
    if "server" not in request.options and "blob" not in request.options:
        return {}
    from tapeout.targets.openvino.further import also

    return also(place, request)


def _timers(artifact: Path, request: Request, hint: str | None) -> Sequence[Timer]:
    from tapeout.targets.openvino.timing import timers

    return timers(artifact, request, hint)


TARGET = Target(
    name="openvino",
    suffix=".xml",
    schemes=("float32", "float16", "int8", "w8", "w4", "w4g32", "w4g64", "w4g128", "nf4", "mxfp4"),
    devices=("cpu", "gpu", "npu"),
    declaration=declaration,
    passes=_passes,
    emit=_emit,
    runners=_runners,
    inspect=_inspect,
    parts=(".bin",),
    place=_place,
    also=_also,
    timers=_timers,
)
