"""Plans for NVIDIA GPUs: how long they take to build, how large they are, and, where a GPU is here, how fast they run
beside torch, in one run.

    python benchmarks/nvidia.py resnet_50.onnx bert_base.onnx [--device sm_90] [--quantize float16] [--runs 200]

A model is built twice with one cache, cold and warm. Without a GPU the time of a run is that of the plan's cost model,
and the table says so. Peers need torch with CUDA and onnx2torch; what is missing is left out of the table.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import tapeout
from tapeout.compiler.data import random_inputs
from tapeout.compiler.errors import TapeoutError, VendorToolError
from tapeout.compiler.ir.load import load
from tapeout.compiler.reference import Reference

Arrays = dict[str, np.ndarray[Any, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--device", default="sm_90")
    parser.add_argument("--quantize", default="float16")
    parser.add_argument("--runs", type=int, default=200)
    asked = parser.parse_args()
    print("| model | cold s | warm s | MB of weights | kB of kernels | launches | ms | error |")
    print("|---|---|---|---|---|---|---|---|")
    for model in asked.models:
        with tempfile.TemporaryDirectory() as folder:
            try:
                print(row(model, asked, Path(folder)), flush=True)
            except TapeoutError as error:
                print(f"| {model.stem} | {error.message} |", flush=True)


def row(model: Path, asked: argparse.Namespace, folder: Path) -> str:
    """One line of the table."""
    plan, seconds = folder / "x.plan", []
    for _ in range(2):
        start = time.perf_counter()
        tapeout.export(
            model, "nvidia", device=asked.device, quantize=asked.quantize, output=plan, verify=False,
            options={"cache": str(folder / "cache")},
        )  # fmt: skip
        seconds.append(time.perf_counter() - start)
    facts = tapeout.inspect(plan)
    kernels = facts["bytes"] - facts["weight_bytes"]
    launches = sum(facts["operations"].values())
    speed, error = measured(plan, model, asked.runs)
    if speed is None:
        predicted = sum(tactic["microseconds"] for tactic in facts["tactics"]) / 1e3
        shown = f"{predicted:.2f} (cost model)"
    else:
        shown = f"{speed:.3f}" + "".join(
            f"; {name} {ms:.3f}" for name, ms in peers(model, asked.runs).items()
        )
    return (
        f"| {model.stem} | {seconds[0]:.1f} | {seconds[1]:.1f} | {facts['weight_bytes'] / 1e6:.1f} | "
        f"{kernels / 1e3:.0f} | {launches} | {shown} | {error} |"
    )


def measured(plan: Path, model: Path, runs: int) -> tuple[float | None, str]:
    """The median of a run on the GPU in milliseconds, and its error; None where no GPU is here."""
    from tapeout.targets.nvidia.cuda import Engine
    from tapeout.targets.nvidia.plan.read import PlanFile

    try:
        engine = Engine(PlanFile(plan))
    except VendorToolError:
        return None, "-"
    feed = random_inputs(load(model), samples=1, batch=1)[0]
    found = engine.run(feed)
    with Reference(str(model)) as reference:
        right = reference.run(feed)
    worst = max(
        float(np.abs(found[n].astype(np.float64) - a).max() / max(np.abs(a).max(), 1e-30))
        for n, a in right.items()
    )
    return statistics.median(engine.measure(feed, runs)), f"{worst:.1e}"


def peers(model: Path, runs: int) -> dict[str, float]:
    """Medians of torch in milliseconds, eager and compiled with CUDA graphs, float16, inputs on the GPU."""
    if not (importlib.util.find_spec("torch") and importlib.util.find_spec("onnx2torch")):
        return {}
    import torch
    from onnx2torch import convert

    if not torch.cuda.is_available():
        return {}
    module = convert(onnx.load(model)).eval().half().cuda()
    feed = random_inputs(load(model), samples=1, batch=1)[0]
    inputs = [torch.from_numpy(a).cuda() for a in feed.values()]
    inputs = [x.half() if x.is_floating_point() else x for x in inputs]
    found = {}
    with torch.inference_mode():
        for name, contender in (
            ("torch", module),
            ("torch.compile", torch.compile(module, mode="max-autotune")),
        ):
            times = []
            for run in range(runs + 10):
                torch.cuda.synchronize()
                start = time.perf_counter()
                contender(*inputs)
                torch.cuda.synchronize()
                if run >= 10:
                    times.append((time.perf_counter() - start) * 1e3)
            found[name] = statistics.median(times)
    return found


if __name__ == "__main__":
    main()
