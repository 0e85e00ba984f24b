"""tapeout verify ARTIFACT --against MODEL"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from tapeout.commands import options as o


def register(app: typer.Typer) -> None:
    app.command("verify", help="Check an artifact's numbers on the real runtime against its model.")(verify)


def verify(
    artifact: o.ArtifactPath,
    against: Annotated[
        Path,
        typer.Option(
            "--against", metavar="MODEL", help="The model, or another artifact.", show_default=False
        ),
    ],
    target: o.TargetOf = None,
    device: o.Device = None,
    data: o.DataPath = None,
    samples: o.Samples = 8,
    gate: o.Gate = None,
    jobs: o.Jobs = None,
    as_json: o.Json = False,
) -> None:
    from tapeout import api

    with o.progress(as_json) as notify:
        found = api.verify(
            artifact, against, target=target, device=device, data=data, samples=samples, gates=o.gates(gate),
            jobs=jobs, raising=False, notify=notify,
        )  # fmt: skip
    o.say(found.verification.table())
    if found.error is not None:
        raise found.error
    v = found.verification
    where = f"{', '.join(v.proven)}: {v.samples} samples ({v.data})"
    if gate or not any(math.isinf(e.tolerance) for e in v.entries):
        o.say(f"holds on {where}")
    else:
        o.say(
            f"no bound applies on {where}: it computes in integers, calibrated by another tool\n"
            "  hint: --gate sqnr=DB, cosine=C or argmax=SHARE with --data judges it"
        )
    if as_json:
        o.print_json({"schema": "tapeout.verify/1", **v.as_json()})
