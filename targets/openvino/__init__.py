"""The OpenVINO target: `model.xml` and `model.bin` for Intel's CPUs, GPUs and NPUs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import onnx_ir as ir

from tapeout.sdk import Declaration, Pass, Request, Runner, Target

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


TARGET = Target(
    name="openvino",
    suffix=".xml",
    schemes=("float32", "float16", "w8", "w4", "w4g32", "w4g64", "w4g128"),
    devices=("cpu", "gpu", "npu"),
    declaration=declaration,
    passes=_passes,
    emit=_emit,
    runners=_runners,
    inspect=_inspect,
    parts=(".bin",),
)
