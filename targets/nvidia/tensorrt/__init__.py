"""The hand-over to TensorRT 11: a strongly typed ONNX file, and scripts that build an engine of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir

from tapeout.sdk import Pass, Quantity, Request, Runner, Target, declarations


def _quantities() -> tuple[Quantity, ...]:
    from tapeout.targets.nvidia.tensorrt.quantities import QUANTITIES

    return QUANTITIES


declaration = declarations(Path(__file__).with_name("target.toml"), _quantities)


def _passes(request: Request) -> tuple[Pass, ...]:
    from tapeout.targets.nvidia.tensorrt.passes import passes

    return passes(request)


def _emit(model: ir.Model, sink: BinaryIO, request: Request) -> None:
    from tapeout.targets.nvidia.tensorrt.emit import emit

    emit(model, sink, declaration(request.device))


def _runners(artifact: Path, request: Request) -> Sequence[Runner]:
    from tapeout.targets.nvidia.tensorrt.run import runners

    return runners(artifact, request)


def _also(place: Path, request: Request) -> dict[Path, Callable[[Path], bytes]]:
    from tapeout.targets.nvidia.tensorrt.scripts import also

    return also(place, request)


TARGET = Target(
    name="tensorrt",
    suffix=".trt.onnx",
    schemes=("float32", "float16", "bfloat16", "int8"),
    devices=("gpu",),
    declaration=declaration,
    passes=_passes,
    emit=_emit,
    runners=_runners,
    also=_also,
)
