"""The TFLite target: float models for LiteRT, written by its own FlatBuffer writer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import onnx_ir as ir

from tapeout.sdk import Pass, Quantity, Request, Runner, Target, declarations


def _quantities() -> Sequence[Quantity]:
    from tapeout.targets.tflite.quantities import QUANTITIES

    return QUANTITIES


declaration = declarations(Path(__file__).with_name("target.toml"), _quantities)  # the rows of a device


def _passes(request: Request) -> tuple[Pass, ...]:
    from tapeout.targets.tflite.passes import passes

    return passes(request)


def _emit(model: ir.Model, sink: BinaryIO, request: Request) -> None:
    from tapeout.targets.tflite.emit import emit

    emit(model, sink, request)


def _runners(artifact: Path, request: Request) -> Sequence[Runner]:
    from tapeout.targets.tflite.run import runners

    return runners(artifact, request)


def _inspect(artifact: Path) -> dict[str, Any]:
    from tapeout.targets.tflite.inspection import inspect

    return inspect(artifact)


TARGET = Target(
    name="tflite",
    suffix=".tflite",
    schemes=(
        *("float32", "float16", "int8", "int16x8", "int8-fixed", "int8-dynamic"),
        *("w8", "w4", "w4g32", "w4g64", "w3", "w3g32", "w2"),
    ),
    devices=("cpu",),
    declaration=declaration,
    passes=_passes,
    emit=_emit,
    runners=_runners,
    inspect=_inspect,
    packs="sparse",
)
