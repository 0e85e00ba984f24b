"""tapeout explain MODEL --target NAME"""

from __future__ import annotations

from typing import Annotated

import typer

from tapeout.commands import options as o


def register(app: typer.Typer) -> None:
    app.command("explain", help="What would go where on a target, and why not; writes nothing.")(explain)


def explain(
    model: o.ModelPath,
    target: o.TargetName = "tflite",
    device: o.Device = None,
    quantize: o.Scheme = None,
    shape: o.Shape = None,
    layout: o.Layout = None,
    outputs: o.Outputs = None,
    option: o.TargetOption = None,
    calibration: o.CalibrationData = None,
    fallback: Annotated[
        str,
        typer.Option(
            "--fallback", metavar="error|host", help="As for export: what is refused goes to the CPU."
        ),
    ] = "error",
    try_fixes: Annotated[
        bool, typer.Option("--try-fixes", help="Try what a pass or an option could make of what is refused.")
    ] = False,
    as_json: o.Json = False,
) -> None:
    from tapeout import api

    with o.progress(as_json) as notify:
        found = api.explain(
            model,
            target,
            device=device,
            quantize=quantize,
            shape=o.shapes(shape),
            layout=o.pairs(layout, "--layout", "NAME=NHWC"),
            outputs=o.names(outputs),
            options=o.pairs(option, "--option", "KEY=VALUE"),
            calibration=calibration,
            fallback=fallback,
            try_fixes=try_fixes,
            notify=notify,
        )
    if as_json:
        o.print_json({"schema": "tapeout.explain/1", **found.as_json()})
    else:
        print(found.text)
