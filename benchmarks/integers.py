"""What int8 leaves wide, how noisy it is and how fast: every real model on LiteRT, in one run.

    python benchmarks/integers.py --assets ../shared/assets [--models NAME,..] [--scheme int8] [--option refine=off]
                                  [--samples 400] [--runs 30] [--json FILE]

For each model: operators, the mean bits of its tensors' elements, the multiply-accumulates at each width, bytes of
activations wider than 8 bits, conversions between integers and floats, RMS(device - float) over RMS(IR - float) on
evaluation samples (worst output and resolver), and the median time of a run against that of the float file, both on
the faster resolver with one thread and in turns. Exits 1 where the noise is beyond 1.1, more than by the chance of its
samples, or int8 is slower than float.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from asset_data import inputs
from assets import TASKS

from tapeout.calibrating import Samples, with_calibration
from tapeout.compiler.calibration import Calibration
from tapeout.compiler.errors import TapeoutError
from tapeout.compiler.ir.load import load
from tapeout.compiler.operations import operations
from tapeout.compiler.reference import Reference
from tapeout.quantizing import quantized
from tapeout.road import Wish, choose, legalize, placement, prepare, refuse
from tapeout.targets.tflite.run import RESOLVERS, LiteRT

NOISE = 1.1
# Operations that all samples of a model together may come to, and the fewest samples.
WORK, FEWEST = 2e10, 16
# Draws of samples that show how far chance moves a figure.
DRAWS = 500


Feed = dict[str, Any]


@dataclass
class Made:
    """A file, the graph that it was made of, and what the report says."""

    file: Path
    graph: ir.Model
    report: dict[str, Any]
    operators: int


def made_of(source: Path, scheme: str, data: Path | None, out: Path, options: dict[str, str]) -> Made:
    """The road of an export, without its proof."""
    target, request = choose("tflite", None, scheme, options)
    prepared = prepare(source, Wish())
    request = with_calibration(request, None if data is None else Samples(data), prepared)
    _, acceptance = legalize(prepared.model, target, request)
    refuse(acceptance, target)
    with out.open("wb") as sink:
        target.emit(prepared.model, sink, request)
    _, report = quantized(prepared.model, request)
    return Made(out, prepared.model, report or {}, sum(placement(acceptance).values()))


def noise(source: Path, made: Made, feeds: list[Feed]) -> tuple[float, float, float]:
    """RMS(device - source) over RMS(graph - source), of the worst output on the worse resolver; and between which
    values it lies in 90% of draws of as many samples from these, for a few samples may carry most of the error."""
    runners = [LiteRT(made.file, resolver) for resolver in RESOLVERS]
    with Reference(source) as reference:
        names = reference.outputs()
        right = [reference.run(f) for f in feeds]
    with Reference(made.graph) as reference:
        own = [reference.run(f) for f in feeds]
    found = [[r.run(f) for f in feeds] for r in runners]
    worst = (0.0, 0.0, 0.0)
    rng = np.random.default_rng(0)
    for name in names:
        if right[0][name].dtype.kind != "f":
            continue
        graph = powers(own, right, name)
        for each in found:
            device = powers(each, right, name)
            drawn = [rng.integers(0, len(feeds), len(feeds)) for _ in range(DRAWS)]
            ratios = [float(np.sqrt(device[i].sum() / max(graph[i].sum(), 1e-30))) for i in drawn]
            ratio = float(np.sqrt(device.sum() / max(graph.sum(), 1e-30)))
            worst = max(worst, (ratio, *(float(q) for q in np.percentile(ratios, [5, 95]))))
    return worst


def powers(found: list[Any], right: list[Any], name: str) -> Any:
    """The squared error of each sample."""
    return np.array(
        [
            float(((f[name].astype(np.float64) - r[name]) ** 2).sum())
            for f, r in zip(found, right, strict=True)
        ]
    )


def times(files: list[Path], feed: dict[str, Any], runs: int) -> list[float]:
    """Median seconds of a run of each file, in turns, on the resolver where it is faster."""
    opened = [[LiteRT(f, r, threads=1) for r in RESOLVERS] for f in files]
    taken: list[list[list[float]]] = [[[] for _ in runners] for runners in opened]
    for run in range(runs + 1):
        for i, runners in enumerate(opened):
            for k, runner in enumerate(runners):
                start = time.perf_counter()
                runner.run(feed)
                if run:
                    taken[i][k].append(time.perf_counter() - start)
    return [min(statistics.median(t) for t in each) for each in taken]


def bits(report: dict[str, Any]) -> float:
    """The mean bits of what is stored, weights and activations, by their elements."""
    total = elements = 0.0
    for table in ("weights", "activations"):
        for kind, entry in report[table].items():
            width = int("".join(c for c in kind if c.isdigit()) or 32)
            total += 8 * entry["bytes"]
            elements += 8 * entry["bytes"] / width
    return total / max(elements, 1.0)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--models", default=",".join(TASKS))
    parser.add_argument("--scheme", default="int8")
    parser.add_argument("--option", action="append", default=[])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--samples", type=int, default=400, help="of the evaluation data, at most")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    assets = options.assets.resolve()
    chosen = dict(text.split("=", 1) for text in options.option)
    results: dict[str, Any] = {}
    missed = 0
    for name in options.models.split(","):
        source = assets / "models" / name / "model.onnx"
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "calibration.npz"
            np.savez(data, **inputs(assets, TASKS[name][1], source, 64, "calib"))
            held = Path(folder) / "held.npz"
            np.savez(held, **inputs(assets, TASKS[name][1], source, options.samples, "eval"))
            files = [Path(folder) / f"{name}_{s}.tflite" for s in ("float32", options.scheme)]
            try:
                made_of(source, "float32", None, files[0], {})
                made = made_of(source, options.scheme, data, files[1], chosen)
            except TapeoutError as error:
                missed += 1
                print(f"{name:22} FAILED: {str(error)[:300]}", flush=True)
                continue
            feeds = samples(source, held)
            work = sum(operations(n, 1) or 0 for n in made.graph.graph)
            feeds = feeds[: max(FEWEST, int(WORK // max(work, 1)))]
            ratio, low, high = noise(source, made, feeds)
            seconds = times(files, feeds[0], options.runs)
        report = made.report
        macs = report["macs"]
        kinds = {
            k: n / max(macs["total"], 1) for k, n in macs.items() if k not in ("total", "wider_than_8_bits")
        }
        holds = low <= NOISE and seconds[1] <= seconds[0]
        missed += not holds
        results[name] = {
            "operators": made.operators,
            "bits": round(bits(report), 2),
            "macs": {k: round(v, 4) for k, v in kinds.items()},
            "wide_activation_bytes": report["wide_activation_bytes"],
            "boundaries": report["boundaries"],
            "noise": [ratio, low, high],
            "milliseconds": [round(1000 * s, 3) for s in seconds],
        }
        shares = ", ".join(f"{k} {100 * v:.1f}%" for k, v in kinds.items())
        print(
            f"{name:22} {results[name]['operators']:4} operators, {results[name]['bits']:5.2f} bits, MACs {shares}; "
            f"{report['wide_activation_bytes'] / 1e3:.0f} kB wide, "
            + ", ".join(f"{n} {k}" for k, n in report["boundaries"].items())
            + f"; noise {ratio:.2f} ({low:.2f} to {high:.2f})"
            f"; {1000 * seconds[1]:.2f} ms, float {1000 * seconds[0]:.2f} ms" + ("" if holds else "  MISSED"),
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    return 1 if missed else 0


def samples(source: Path, data: Path) -> list[Feed]:
    """Data as the model takes it, sample by sample."""
    return [dict(f) for f in Calibration(data, load(source)).feeds()]


if __name__ == "__main__":
    sys.exit(main())
