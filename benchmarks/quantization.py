"""Quantizes every real model from its calibration data and holds the files to bounds, in one run.

    python benchmarks/quantization.py --assets ../shared/assets [--target tflite] [--models NAME,..] [--scheme int8]
                                      [--json FILE]

The command is the same for all models: `tapeout export MODEL --target TARGET --quantize int8 --calibration DATA`.
Figures are those of the scripts beside the models, on evaluation data that calibration has not seen: float file,
quantized file, the points lost and the points allowed, agreement with the float file where a bound is stated,
the share of the multiply-accumulates that stays wider, seconds. Exits 1 where a model misses a bound.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from asset_data import inputs
from assets import SUFFIXES, TASKS, score
from command import export
from scoring import open_session

# The figure of each task that counts, in shares of one; dB for `psnr`.
FIGURES = ("psnr", "mAP@[.5:.95]", "mAP@0.4", "wake_auc", "top1", "accuracy", "auc", "dominant", "frame_f1")
# Those of them that count single decisions.
DECISIONS = ("top1", "accuracy", "dominant")
# Least agreement with the float file, by what the scripts call it or by the arg max of the first output.
AGREEMENT = {
    "mobilenet_v1_025_224": 0.83, "ic01_resnet8": 0.95, "vww01_mobilenetv1": 0.98, "kws01_dscnn": 0.98,
    "kwt1": 0.96, "deeplabv3_mnv2_dm05": 0.98, "minilm_l6": 0.99, "basic_pitch": 0.995,
}  # fmt: skip
ALLOWED = {"espcn_x3": 0.05, "yolox_nano": 0.010}


def agreement(assets: Path, name: str, lines: list[dict[str, Any]], files: list[Path]) -> float | None:
    """How far the quantized file says the same as the float one; None where nothing is asked."""
    found = lines[1]
    for key in ("pixel_agreement_with_first", "cos_to_first"):
        if key in found:
            return float(found[key])
    pearsons = [v for k, v in found.items() if k.startswith("pearson_")]
    if pearsons:
        return float(min(pearsons))
    if name not in AGREEMENT:
        return None
    sys.path.insert(0, str(assets / "eval"))
    import onnxruntime
    import runner

    onnxruntime.InferenceSession = open_session
    given = inputs(assets, TASKS[name][1], files[0], None)
    first, second = (
        runner.Model(str(f))
        .predict(*given.values())[0]
        .reshape(len(next(iter(given.values()))), -1)
        .argmax(1)
        for f in files
    )
    return float(np.mean(first == second))


def allowed(name: str, key: str, loss: float, count: int) -> float:
    """The loss that a model may have: a point, or two paired standard errors where single decisions are counted.
    Of `count` decisions at least as many changed as were lost in the balance, so that the paired standard error is
    at least the root of that number over `count`: nothing has to be assumed of the others."""
    if name in ALLOWED:
        return ALLOWED[name]
    if key == "psnr":
        return 0.05
    lost = round(max(loss, 0.0) * count)
    return max(0.01, 2 * math.sqrt(lost) / count) if key in DECISIONS else 0.01


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--target", choices=SUFFIXES, default="tflite")
    parser.add_argument("--models", default=",".join(TASKS))
    parser.add_argument("--scheme", default="int8")
    parser.add_argument("--keep", type=Path, help="a folder for the files that were made")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    assets = options.assets.resolve()
    results: dict[str, Any] = {}
    losses: list[float] = []
    missed = 0
    for name in options.models.split(","):
        source = assets / "models" / name / "model.onnx"
        with tempfile.TemporaryDirectory() as made:
            folder = options.keep or Path(made)
            folder.mkdir(exist_ok=True)
            data, out = (
                Path(made) / "calibration.npz",
                folder / f"{name}_{options.scheme}{SUFFIXES[options.target]}",
            )
            np.savez(data, **inputs(assets, TASKS[name][1], source, None, "calib"))
            run = export(source, options.target, out, "--quantize", options.scheme, "--calibration", data)
            if run.code:
                missed += 1
                print(
                    f"{name:22} FAILED with exit code {run.code}: {run.said[-400:]}",
                    flush=True,
                )
                continue
            lines = score(assets, name, [source, out])
            agrees = agreement(assets, name, lines, [source, out])
            size = sum(f.stat().st_size for f in (out, out.with_suffix(".bin")) if f.exists())
        key = next(k for k in FIGURES if k in lines[0])
        count = int(lines[0].get("n", lines[0].get("frames", 1)))
        loss = lines[0][key] - lines[1][key]
        may = allowed(name, key, loss, count)
        held = loss <= may and (agrees is None or agrees >= AGREEMENT.get(name, 0))
        missed += not held
        if key != "psnr":
            losses.append(100 * loss)
        found = ((run.answer.get("manifest") or {}).get("quantization")) or {}
        macs = found.get("macs", {})
        front = found.get("spectral_macs", 0) / max(macs.get("total", 0), 1)
        wide = macs.get("wider_than_8_bits", 0.0) - front
        print(
            f"{name:22} {key:13} {lines[0][key]:8.4f} -> {lines[1][key]:8.4f} (loss {100 * loss:6.2f}, may"
            f" {100 * may:5.2f})  {'' if agrees is None else f'agrees {agrees:.4f}':14} {size / 1e3:8.0f} kB"
            f" {run.seconds:6.1f} s  wide {100 * wide:.1f}%"
            f"{f' and spectral front end {100 * front:.1f}%' if front else ''}{'' if held else '  MISSED'}",
            flush=True,
        )
        results[name] = {
            "source": lines[0],
            "artifact": lines[1],
            "agreement": agrees,
            "seconds": run.seconds,
        }
    if losses:
        print(f"mean loss {sum(losses) / len(losses):.2f} points over {len(losses)} models; {missed} missed")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
