"""How much faster models are with channels removed or layers factorized, dense and compressed in turn in one run.

    python benchmarks/compression_speed.py --assets ../shared/assets [--only 'ic01-*'] [--targets tflite,openvino]
                                           [--rounds 40] [--json FILE]

Both files are made by `tapeout export`, float32, and run at batch 1 on one thread: LiteRT with XNNPACK, OpenVINO's CPU
plugin. A round runs each a few times and takes its least; the share of the time that is saved is that of the median
round. It is to be at least 0.7 of the share of the operations that were removed. `1x4` is unstructured: products in
blocks of 1x4 of which a tenth is left, stored by `--option sparse=true`, which LiteRT's kernel skips. Exits 1 where the
goal is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from asset_data import inputs
from assets import SUFFIXES, TASKS
from command import export

GOAL = 0.7
REPEATS = 5


@dataclass(frozen=True)
class Case:
    """A model and what is done to it; `sizes` fix its inputs. `operations` is false where zeros stay in place."""

    name: str
    model: str
    options: str
    sizes: str = ""
    operations: bool = True
    targets: tuple[str, ...] = ("tflite", "openvino")


TOKENS = "--shape input_ids=1,32 --shape attention_mask=1,32"
CASES = (
    Case("ic01-channels-30", "ic01_resnet8", "--prune channels=0.3,multiple=16"),
    Case("ic01-channels-40", "ic01_resnet8", "--prune channels=0.4,multiple=16"),
    Case("vww-constant", "vww01_mobilenetv1", "--prune constant-channels"),
    Case("vww-channels-60", "vww01_mobilenetv1", "--prune channels=0.6,multiple=16"),
    Case("vww-svd-30", "vww01_mobilenetv1", "--factorize svd=0.3,multiple=16"),
    Case("ic01-svd-30", "ic01_resnet8", "--factorize svd=0.3,multiple=16"),
    Case("mobilenet-channels-30", "mobilenet_v1_025_224", "--prune channels=0.3,multiple=16"),
    Case("mobilenet-svd-30", "mobilenet_v1_025_224", "--factorize svd=0.3,multiple=16"),
    Case("yolox-channels-30", "yolox_nano", "--prune channels=0.3,multiple=16"),
    Case("minilm-channels-30", "minilm_l6", "--prune channels=0.3,multiple=16", TOKENS),
    Case("minilm-svd-30", "minilm_l6", "--factorize svd=0.3,multiple=16", TOKENS),
    Case("ad01-1x4", "ad01_autoencoder", "--prune magnitude=1x4:0.9 --option sparse=true", "", False, ("tflite",)),
)  # fmt: skip


def exported(model: Path, target: str, options: str, calibration: Path, out: Path) -> dict[str, Any]:
    """The JSON of an export, which is verified in the accuracy benchmark and not here."""
    given = ["--no-verify", *options.split()]
    if ("--prune" in options or "--factorize" in options) and "magnitude" not in options:
        given += ["--calibration", str(calibration)]
    return export(model, target, out, *given).must()


def litert(path: Path) -> Callable[[], float]:
    """Runs a TFLite file on random inputs, in milliseconds."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    for entry in interpreter.get_input_details():
        interpreter.resize_tensor_input(entry["index"], [abs(d) for d in entry["shape_signature"]])
    interpreter.allocate_tensors()
    for entry in interpreter.get_input_details():
        interpreter.set_tensor(entry["index"], drawn(entry["shape"], entry["dtype"]))

    def once() -> float:
        start = time.perf_counter()
        interpreter.invoke()
        return 1000 * (time.perf_counter() - start)

    return once


def openvino(path: Path) -> Callable[[], float]:
    """Runs an OpenVINO file on random inputs in float32, in milliseconds by the runtime's own clock."""
    import openvino as ov

    core = ov.Core()
    settings = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    model = core.read_model(str(path))
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    feed = {}
    for i, port in enumerate(model.inputs):
        shape = [d.get_length() if d.is_static else 1 for d in port.get_partial_shape()]
        feed[i] = drawn(shape, port.get_element_type().to_dtype())

    def once() -> float:
        request.infer(feed, share_inputs=True, share_outputs=True)
        return float(request.latency)

    return once


def drawn(shape: Sequence[int], dtype: Any) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return np.ones(shape, dtype)  # tokens, and a mask that hides none


OPEN = {"tflite": litert, "openvino": openvino}


def saved(dense: Callable[[], float], small: Callable[[], float], rounds: int) -> tuple[float, float]:
    """The share of the time that is saved, and the milliseconds of the dense one: of the median round."""
    shares, times = [], []
    for number in range(rounds + 1):
        best = [min(call() for _ in range(REPEATS)) for call in (dense, small)]
        if number:  # the first warms up
            shares.append(1 - best[1] / best[0])
            times.append(best[0])
    return statistics.median(shares), statistics.median(times)


def run(case: Case, assets: Path, target: str, rounds: int) -> dict[str, Any]:
    """What one case saves on one target."""
    source = assets / "models" / case.model / "model.onnx"
    with tempfile.TemporaryDirectory(prefix="tapeout-") as made:
        folder = Path(made)
        calibration = folder / "calibration.npz"
        np.savez(calibration, **inputs(assets, TASKS[case.model][1], source, None, "calib"))
        files = [folder / f"{name}{SUFFIXES[target]}" for name in ("dense", "small")]
        sizes = case.sizes
        exported(source, target, sizes, calibration, files[0])
        told = exported(source, target, f"{sizes} {case.options}", calibration, files[1])["report"][
            "compression"
        ]
        share, milliseconds = saved(*(OPEN[target](f) for f in files), rounds)
        removed = 1 - told[-1]["operations"] / told[0]["operations"]
        weights = [
            sum(f.with_suffix(s).stat().st_size for s in {f.suffix, ".bin"} if f.with_suffix(s).exists())
            for f in files
        ]
    return {
        "removed": removed, "saved": share, "milliseconds": milliseconds, "bytes": weights,
        "ratio": share / removed if removed else None,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--only", default="*", help="wildcards over the names of cases, with commas")
    parser.add_argument("--targets", default="tflite,openvino")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    missed = 0
    for case in CASES:
        if not any(fnmatchcase(case.name, pattern) for pattern in options.only.split(",")):
            continue
        for target in (t for t in options.targets.split(",") if t in case.targets):
            found = results[f"{case.name} {target}"] = run(
                case, options.assets.resolve(), target, options.rounds
            )
            held = found["saved"] >= (GOAL * found["removed"] if case.operations else 0)
            missed += not held
            print(
                f"{case.name:20} {target:8} {found['milliseconds']:8.3f} ms dense  operations removed "
                f"{found['removed']:6.1%}  time saved {found['saved']:6.1%}"
                + (f" = {found['ratio']:.2f} of them (goal {GOAL})" if case.operations else "")
                + f"  {found['bytes'][0] / 1e3:.0f} -> {found['bytes'][1] / 1e3:.0f} kB"
                + ("" if held else "  MISSED"),
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
