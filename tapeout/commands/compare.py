"""tapeout compare MODEL ARTIFACT"""

from __future__ import annotations

from typing import Annotated

import typer

from tapeout.commands import options as o


def register(app: typer.Typer) -> None:
    app.command("compare", help="Compare an artifact with its model layer by layer, through fusions.")(
        compare
    )


def compare(
    model: o.ModelPath,
    artifact: o.ArtifactPath,
    target: o.TargetOf = None,
    device: o.Device = None,
    data: o.DataPath = None,
    sample: Annotated[
        int, typer.Option("--sample", min=0, metavar="N", help="Which sample of the data.")
    ] = 0,
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="Rows of the table.")] = 20,
    jobs: o.Jobs = None,
    as_json: o.Json = False,
) -> None:
    from tapeout import api
    from tapeout.compiler.verification import number

    with o.progress(as_json) as notify:
        found = api.compare(
            model, artifact, target=target, device=device, data=data, sample=sample, jobs=jobs, notify=notify
        )
    if as_json:
        o.print_json({"schema": "tapeout.compare/1", **found.as_json()})
        return
    print(found.table(limit))
    first, worst, furthest = found.first, found.worst, found.furthest
    print(
        f"\n{len(found.layers)} tensors on {found.runtime}; {found.hidden} source tensors lie inside fusions"
    )
    if worst is not None and furthest is not None:
        print(
            f"largest error of one part: {number(worst.local or 0.0)} at '{worst.tensor}'; "
            f"largest accumulated error: {number(furthest.accumulated.relative)} at '{furthest.tensor}'"
        )
    if not found.judged:
        print("integers: no bound is put on a single part; 'tapeout verify' judges the outputs")
    elif first is None:
        print("no part deviates beyond rounding")
    else:
        print(f"first deviation: '{first.tensor}', node {', '.join(first.nodes)}")
