"""Arm's Ethos-U NPUs: what TFLite writes, narrowed to what Arm's compiler Vela places on the NPU, then compiled
by it. The first target that extends another."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir

from tapeout.compiler.declaration import Declaration
from tapeout.compiler.pipeline import Pass
from tapeout.compiler.target import Finished, Request, Runner, Target, target

HERE = Path(__file__).parent
PARENT = "tflite"
DEVICES = (
    "ethos-u55-128", "ethos-u55-32", "ethos-u55-64", "ethos-u55-256", "ethos-u65-256", "ethos-u65-512",
    "ethos-u85-128", "ethos-u85-256", "ethos-u85-512", "ethos-u85-1024", "ethos-u85-2048",
)  # fmt: skip


@functools.cache
def declaration(device: str) -> Declaration:
    """What the NPU takes of what TFLite takes."""
    from tapeout.targets.ethos_u.quantities import QUANTITIES

    return Declaration.load(HERE / "target.toml", device=device, quantities=QUANTITIES)


def plain(request: Request) -> Request:
    """The request as TFLite gets it."""
    return replace(request, device=target(PARENT).devices[0])


def _passes(request: Request) -> tuple[Pass, ...]:
    """TFLite's own; its quantizer asks the NPU's rows first, and the host's where the NPU takes nothing."""
    rows = declaration(request.device).with_host()
    return tuple(_narrowed(step, rows) for step in target(PARENT).passes(plain(request)))


def _narrowed(step: Pass, rows: Declaration) -> Pass:
    from tapeout.passes.quantization import Quantize

    if isinstance(step, Quantize):
        return replace(step, declaration=rows)
    inner = getattr(step, "quantize", None)  # what refines the quantization holds it
    return replace(step, quantize=_narrowed(inner, rows)) if isinstance(inner, Quantize) else step  # type: ignore[type-var]


def _emit(model: ir.Model, sink: BinaryIO, request: Request) -> None:
    target(PARENT).emit(model, sink, plain(request))


def _runners(artifact: Path, request: Request) -> Sequence[Runner]:
    """LiteRT on the CPU for what is emitted; for what Vela has compiled there is no runtime here."""
    from tapeout.targets.ethos_u.finish import COMMANDS

    if COMMANDS in artifact.read_bytes():
        return ()
    return target(PARENT).runners(artifact, plain(request))


def _finish(artifact: Path, model: ir.Model, request: Request) -> Finished:
    from tapeout.targets.ethos_u.finish import finish

    return finish(artifact, model, request)


TARGET = Target(
    name="ethos-u",
    suffix=".tflite",
    schemes=("int8", "int16x8"),
    devices=DEVICES,
    declaration=declaration,
    passes=_passes,
    emit=_emit,
    runners=_runners,
    extends=PARENT,
    finish=_finish,
    integer_borders=True,
)
