"""Arm's Ethos-U NPUs: what TFLite writes, narrowed to what Arm's compiler Vela places on the NPU, then compiled
by it. The first target that extends another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from tapeout.sdk import Finished, Quantity, Request, Runner, declarations, extension, target

PARENT = "tflite"
DEVICES = (
    "ethos-u55-128", "ethos-u55-32", "ethos-u55-64", "ethos-u55-256", "ethos-u65-256", "ethos-u65-512",
    "ethos-u85-128", "ethos-u85-256", "ethos-u85-512", "ethos-u85-1024", "ethos-u85-2048",
)  # fmt: skip


def _quantities() -> Sequence[Quantity]:
    from tapeout.targets.ethos_u.quantities import QUANTITIES

    return QUANTITIES


def _runners(artifact: Path, request: Request) -> Sequence[Runner]:
    """LiteRT on the CPU for what is emitted; for what Vela has compiled there is no runtime here."""
    from tapeout.targets.ethos_u.finish import COMMANDS

    if COMMANDS in artifact.read_bytes():
        return ()
    host = target(PARENT)
    return host.runners(artifact, replace(request, device=host.devices[0]))


def _finish(artifact: Path, model: ir.Model, request: Request) -> Finished:
    from tapeout.targets.ethos_u.finish import finish

    return finish(artifact, model, request)


declaration = declarations(Path(__file__).with_name("target.toml"), _quantities)

TARGET = extension(
    PARENT,
    name="ethos-u",
    suffix=".tflite",
    schemes=("int8", "int16x8"),
    devices=DEVICES,
    declaration=declaration,
    finish=_finish,
    runners=_runners,
    integer_borders=True,
)
