"""tapeout bench ARTIFACT"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tapeout.commands import options as o


def register(app: typer.Typer) -> None:
    app.command("bench", help="Measure an artifact's latency on its runtimes.")(bench)


def bench(
    artifact: o.ArtifactPath,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against", metavar="MODEL", help="Time the ONNX file in ONNX Runtime too.", show_default=False
        ),
    ] = None,
    target: o.TargetOf = None,
    device: o.Device = None,
    data: o.DataPath = None,
    runs: Annotated[
        int, typer.Option("--runs", min=1, metavar="N", help="Timed runs after the warm-up.")
    ] = 50,
    max_latency: Annotated[
        float | None,
        typer.Option(
            "--max-latency",
            metavar="MS",
            help="Fail where every runtime's median is above.",
            show_default=False,
        ),
    ] = None,
    hint: Annotated[
        str | None,
        typer.Option(
            "--hint", metavar="latency|throughput", help="What the runtime is told.", show_default=False
        ),
    ] = None,
    option: o.TargetOption = None,
    jobs: o.Jobs = None,
    as_json: o.Json = False,
) -> None:
    from tapeout import api
    from tapeout.compiler.errors import BudgetError
    from tapeout.compiler.verification import text_table

    found = api.bench(
        artifact, against=against, target=target, device=device, data=data, runs=runs, jobs=jobs, hint=hint,
        options=o.pairs(option, "--option", "KEY=VALUE"),
    )  # fmt: skip
    best = min(t.median for t in found if t.ratio is None or not t.reference)
    if max_latency is not None and best > max_latency:
        raise BudgetError(f"the fastest runtime takes {best:.3f} ms, at most {max_latency:g} ms are allowed")
    if as_json:
        o.print_json({"schema": "tapeout.bench/1", "runs": [t.as_json() for t in found]})
        return
    rows = [("runtime", "threads", "median ms", "min ms", "per second", "against ORT")]
    rows += [
        (
            t.runtime,
            str(t.threads or "-"),
            f"{t.median:.3f}",
            f"{t.least:.3f}",
            f"{1000 / t.median if t.rate is None else t.rate:.1f}",
            "-" if t.ratio is None else f"{t.ratio:.2f} x",
        )
        for t in found
    ]
    compared = any(t.ratio is not None for t in found)
    print(text_table([row if compared else row[:-1] for row in rows]))
