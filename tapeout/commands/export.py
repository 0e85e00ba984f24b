"""tapeout export MODEL --target NAME -o OUT"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tapeout.commands import options as o

if TYPE_CHECKING:
    from tapeout.api import Export


def register(app: typer.Typer) -> None:
    app.command("export", help="Turn a model into an artifact for a target, checked against the source.")(
        export
    )


def export(
    model: o.ModelPath,
    target: o.TargetName = "tflite",
    device: o.Device = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT", help="The artifact.", show_default=False)
    ] = None,
    quantize: o.Scheme = None,
    shape: o.Shape = None,
    layout: o.Layout = None,
    outputs: o.Outputs = None,
    option: o.TargetOption = None,
    calibration: o.CalibrationData = None,
    preprocess: o.Preprocess = None,
    cache: o.Cache = None,
    prune: Annotated[
        list[str] | None,
        typer.Option(
            "--prune",
            metavar="METHOD=AMOUNT",
            help="sparsegpt=0.5, wanda=2:4, channels=0.3,multiple=16 (of the operations); may be given again.",
            show_default=False,
        ),
    ] = None,
    factorize: Annotated[
        list[str] | None,
        typer.Option(
            "--factorize",
            metavar="METHOD=SHARE",
            help="svd=0.3,multiple=16 (of the operations); may be given again.",
            show_default=False,
        ),
    ] = None,
    recipe: o.RecipeFile = None,
    max_drop: Annotated[
        str | None,
        typer.Option(
            "--max-drop",
            metavar="SHARE",
            help="With --quantize auto: what the outputs may lose of their variance: 0.01, or 20dB.",
            show_default=False,
        ),
    ] = None,
    dtype: o.Dtype = None,
    data: o.DataPath = None,
    gate: o.Gate = None,
    max_size: Annotated[
        str | None, typer.Option("--max-size", metavar="N", help="Fail above this size.", show_default=False)
    ] = None,
    require_proof: Annotated[
        bool, typer.Option("--require-proof", help="Fail where no runtime could prove it.")
    ] = False,
    fallback: Annotated[
        str, typer.Option("--fallback", metavar="error|host", help="What a device refuses goes to the CPU.")
    ] = "error",
    max_fallback: Annotated[
        float | None,
        typer.Option("--max-fallback", metavar="PCT", help="At most so much of it.", show_default=False),
    ] = None,
    smallest_island: Annotated[
        int, typer.Option("--smallest-island", metavar="N", help="Fewer operators than N go to the CPU too.")
    ] = 1,
    largest_transfer: Annotated[
        str | None,
        typer.Option(
            "--largest-transfer",
            metavar="SIZE",
            help="What would exchange more with the device goes to the CPU too.",
            show_default=False,
        ),
    ] = None,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Write without checking the numbers.")
    ] = False,
    keep_rejected: Annotated[
        bool, typer.Option("--keep-rejected", help="Leave OUT.rejected where the check fails.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Stop before writing; say what would be written.")
    ] = False,
    depfile: Annotated[
        Path | None,
        typer.Option("--depfile", metavar="F", help="List the files read, for make.", show_default=False),
    ] = None,
    jobs: o.Jobs = None,
    as_json: o.Json = False,
) -> None:
    from tapeout import api

    with o.progress(as_json) as notify:
        result = api.export(
            model,
            target,
            device=device,
            output=output,
            quantize=quantize,
            shape=o.shapes(shape),
            layout=o.pairs(layout, "--layout", "NAME=NHWC"),
            outputs=o.names(outputs),
            options=o.pairs(option, "--option", "KEY=VALUE"),
            calibration=calibration,
            preprocess=preprocess,
            cache=cache,
            prune=prune or (),
            factorize=factorize or (),
            recipe=recipe,
            max_drop=o.drop(max_drop),
            dtype=o.pairs(dtype, "--dtype", "NAME=int8"),
            data=data,
            gates=o.gates(gate),
            max_size=o.size(max_size),
            verify=not no_verify,
            require_proof=require_proof,
            fallback=fallback,
            max_fallback=max_fallback,
            smallest_island=smallest_island,
            largest_transfer=o.size(largest_transfer, "--largest-transfer"),
            keep_rejected=keep_rejected,
            dry_run=dry_run,
            depfile=depfile,
            jobs=jobs,
            notify=notify,
        )
    o.say(summary(model, result, dry_run))
    if as_json:
        o.print_json({
            "schema": "tapeout.export/1",
            "artifact": str(result.artifact),
            "outputs": [str(p) for p in result.outputs],
            "dry_run": dry_run,
            "manifest": result.manifest,
            "report": result.report,
        })  # fmt: skip


def summary(model: Path, result: Export, dry_run: bool) -> str:
    """What was done, in a few lines."""
    from tapeout.compiler.verification import number

    manifest, report = result.manifest, result.report
    source = report["source"]
    operators = sum(manifest["placement"].values())
    lines = [f"{model.name}: {source['nodes']} nodes, {o.bytes_text(source['weights'])} of weights"]
    if "compression" in report:
        from tapeout.compression_report import lines as compression

        lines += compression(report["compression"], report.get("zeros"))
    if dry_run:
        lines.append(f"would write {', '.join(map(str, result.outputs))}")
    else:
        size = sum(p["bytes"] for p in (manifest["artifact"], *manifest["artifact"].get("parts", ())))
        made = f"{manifest['target']} ({manifest['scheme']}), {operators} operators"
        lines.append(f"{result.artifact}: {made}, {o.bytes_text(size)}")
    quantization = manifest.get("quantization")
    if quantization and quantization["macs"]["total"]:
        lines.append(_widths(quantization))
    found = report.get("auto")
    if found:
        lines.append(_searched(found))
    if report.get("coverage"):
        lines.append(report["coverage"])
    narrowing = report.get("narrowing")
    if narrowing:
        lines.append(narrowing["summary"])
    checked = report.get("verification")
    if checked and checked["outputs"]:
        worst = max(checked["outputs"], key=lambda e: e["relative"])
        how = f"{checked['samples']} samples ({checked['data']})"
        lines.append(f"verified on {', '.join(checked['proven'])}: {how}")
        if "ratio" in worst:
            lines.append(
                _integers(checked["outputs"], "compressed model" if "compression" in report else "source")
            )
        else:
            lines.append(
                f"largest error {number(worst['relative'])} of the largest value, "
                f"{number(worst['tolerance'])} allowed, at '{worst['output']}'"
            )
        if report["proof"]["unproven"] and not report.get("finished"):
            lines.append(f"unproven: nothing here is an {manifest['device']}")
    elif not dry_run:
        lines.append(f"unproven: it was not run on any runtime for {manifest['target']} {manifest['device']}")
    finished = report.get("finished")
    if finished:
        lines.append(f"{finished['summary']}; unproven: nothing here is an {manifest['device']}")
    left = report.get("fallback", {})
    if left.get("operators"):
        parts = left.get("parts")
        how = (
            f" in {parts} parts, {o.bytes_text(left['transfer_bytes'])} to and from the device"
            if parts
            else ""
        )
        lines.append(f"left to the CPU: {len(left['operators'])} operators ({left['percent']}%){how}")
    seconds = report["seconds"]
    lines.append(
        f"{sum(seconds.values()):.2f} s (" + ", ".join(f"{k} {v:.2f}" for k, v in seconds.items()) + ")"
    )
    return "\n".join(lines)


def _widths(found: dict[str, Any]) -> str:
    """At which widths it multiplies, and what that costs in conversions."""
    total = found["macs"]["total"]
    kinds = {k: n for k, n in found["macs"].items() if k not in ("total", "wider_than_8_bits")}
    shares = ", ".join(f"{100 * n / total:.3g}% {k}" for k, n in sorted(kinds.items(), key=lambda i: -i[1]))
    between = sum(found["boundaries"].values())
    front = found["spectral_macs"]
    shares += f" (spectral front end {100 * front / total:.3g}%)" if front else ""
    return (
        f"multiply-accumulates: {shares}; {o.bytes_text(found['wide_activation_bytes'])} of activations wider than "
        f"8 bits, {between} conversion{'s' * (between != 1)}"
    )


def _searched(found: dict[str, Any]) -> str:
    """What the search of precisions chose."""
    counts: dict[str, int] = {}
    for layer in found["layers"]:
        counts[layer["scheme"]] = counts.get(layer["scheme"], 0) + 1
    schemes = ", ".join(f"{n} {s}" for s, n in sorted(counts.items(), key=lambda item: -item[1]))
    return (
        f"layers by {found['objective']}: {schemes}; the outputs lose {found['drop']:.2g} of their variance on samples "
        f"held out, {found['max_drop']:.2g} allowed"
    )


def _integers(outputs: list[dict[str, Any]], source: str) -> str:
    """What the proof says of an artifact that computes in integers, against what it was made of."""
    least = min(outputs, key=lambda e: e["sqnr"])
    noisy = max(outputs, key=lambda e: e["ratio"])
    why = "" if not noisy["clusters_hold"] else " (every kernel keeps its bound)"
    return (
        f"SQNR to the {source} {least['sqnr']:.1f} dB at '{least['output']}'; "
        f"noise {noisy['ratio']:.2f} times the quantized graph's at '{noisy['output']}'{why}"
    )
