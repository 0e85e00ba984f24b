"""tapeout calibrate MODEL --calibration DATA -o stats.json"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tapeout.commands import options as o


def register(app: typer.Typer) -> None:
    app.command("calibrate", help="Measure a model's tensors on data, once for many exports.")(calibrate)


def calibrate(
    model: o.ModelPath,
    calibration: Annotated[
        str,
        typer.Option("--calibration", metavar="DATA", help=o.CALIBRATION_HELP, show_default=False),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="STATS", help="The statistics file, .json.", show_default=False
        ),
    ],
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target", "-t", metavar="NAME", help="For which targets; default: all.", show_default=False
        ),
    ] = None,
    device: o.Device = None,
    quantize: o.Scheme = None,
    preprocess: o.Preprocess = None,
    shape: o.Shape = None,
    layout: o.Layout = None,
    outputs: o.Outputs = None,
    option: o.TargetOption = None,
    cache: o.Cache = None,
    jobs: o.Jobs = None,
    as_json: o.Json = False,
) -> None:
    from tapeout import api

    with o.progress(as_json) as notify:
        result = api.calibrate(
            model,
            calibration,
            target=target or None,
            device=device,
            quantize=quantize,
            output=output,
            preprocess=preprocess,
            shape=o.shapes(shape),
            layout=o.pairs(layout, "--layout", "NAME=NHWC"),
            outputs=o.names(outputs),
            options=o.pairs(option, "--option", "KEY=VALUE"),
            cache=cache,
            jobs=jobs,
            notify=notify,
        )
    found = result.statistics
    o.say(
        f"{output}: {len(found.tensors)} tensors on {found.samples} samples, for {', '.join(result.targets)}"
    )
    for note in found.notes:
        o.say(f"note: {note}")
    if as_json:
        o.print_json({
            "schema": "tapeout.calibrate/1",
            "output": str(output),
            "targets": list(result.targets),
            "tensors": len(found.tensors),
            "samples": found.samples,
            "data": found.data,
            "notes": list(found.notes),
        })  # fmt: skip
