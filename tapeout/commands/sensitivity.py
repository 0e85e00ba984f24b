"""tapeout sensitivity MODEL --calibration DATA"""

from __future__ import annotations

from math import isinf
from typing import TYPE_CHECKING, Annotated

import typer

from tapeout.commands import options as o

if TYPE_CHECKING:
    from tapeout.sensitivity import Sensitivity

WIDTH = 56  # of a name; beyond, its beginning is left out


def register(app: typer.Typer) -> None:
    app.command("sensitivity", help="Rank layers by what their quantization costs at the outputs.")(
        sensitivity
    )


def sensitivity(
    model: o.ModelPath,
    calibration: Annotated[
        str,
        typer.Option("--calibration", metavar="DATA", help=o.CALIBRATION_HELP, show_default=False),
    ],
    target: o.TargetName = "tflite",
    device: o.Device = None,
    quantize: o.Scheme = None,
    preprocess: o.Preprocess = None,
    shape: o.Shape = None,
    layout: o.Layout = None,
    outputs: o.Outputs = None,
    option: o.TargetOption = None,
    top: Annotated[int, typer.Option("--top", min=1, metavar="N", help="Show so many layers.")] = 30,
    jobs: o.Jobs = None,
    as_json: o.Json = False,
) -> None:
    from tapeout import api

    with o.progress(as_json) as notify:
        found = api.sensitivity(
            model,
            calibration,
            target,
            device=device,
            quantize=quantize,
            preprocess=preprocess,
            shape=o.shapes(shape),
            layout=o.pairs(layout, "--layout", "NAME=NHWC"),
            outputs=o.names(outputs),
            options=o.pairs(option, "--option", "KEY=VALUE"),
            jobs=jobs,
            notify=notify,
        )
    if as_json:
        o.print_json({"schema": "tapeout.sensitivity/1", **found.as_json()})
    else:
        print(text(found, top))


def text(found: Sensitivity, top: int) -> str:
    """The ranked table."""
    rows = [
        (str(i), _end(r.layer), r.op, _db(r.alone), _db(r.accumulated), f"{r.macs:,}", o.bytes_text(r.bytes))
        for i, r in enumerate(found.rows[:top], 1)
    ]
    head = ("", "layer", "operator", "alone", "with all before", "MACs", "weights")
    widths = [max(len(row[k]) for row in (head, *rows)) for k in range(len(head))]
    lines = [
        f"{found.scheme} for {found.target}, {found.samples} samples: the outputs keep {_db(found.whole)} with all "
        f"{len(found.rows)} layers"
    ]
    for row in (head, *rows):
        left = [row[k].ljust(widths[k]) for k in (0, 1, 2)]
        lines.append("  ".join([*left, *(row[k].rjust(widths[k]) for k in range(3, len(head)))]).rstrip())
    if len(found.rows) > top:
        lines.append(f"{len(found.rows) - top} more add less (--top, or --json for all)")
    return "\n".join(lines)


def _db(error: float) -> str:
    from tapeout.sensitivity import decibels

    found = decibels(error)
    return "exact" if isinf(found) else f"{found:.1f} dB"


def _end(name: str) -> str:
    return name if len(name) <= WIDTH else "..." + name[len(name) - WIDTH + 3 :]
