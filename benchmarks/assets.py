"""Exports every real model and scores source and artifacts on their own task, in one run.

    python benchmarks/assets.py ../shared/assets [--target tflite] [--models NAME,..] [--schemes float32,float16]
                                                 [--json FILE]

Each export is verified on the model's own evaluation data (`--data`), within the tolerances of the command line.
Needs pillow and scipy for the scoring scripts that lie beside the models. A model passes where each figure of its
task is within 0.1 point (0.001 of a share, 0.1 of a dB or of a score) of the source's. Exits 1 where one does not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from asset_data import inputs
from command import export

HERE = Path(__file__).resolve().parent
SUFFIXES = {"tflite": ".tflite", "openvino": ".xml"}
# model: (scoring script, data set)
TASKS = {
    "ad01_autoencoder": ("eval_autoencoder", "ad01_logmel"),
    "basic_pitch": ("eval_notes", "pitch_vocadito10"),
    "deeplabv3_mnv2_dm05": ("eval_segment", "voc_caltech"),
    "espcn_x3": ("eval_sr", "sr_luma"),
    "ic01_resnet8": ("eval_classify", "ic01_caltech"),
    "kws01_dscnn": ("eval_classify", "kws01_mfcc"),
    "kws_gru": ("eval_classify", "speech_mfcc"),
    "kwt1": ("eval_classify", "speech_raw"),
    "minilm_l6": ("eval_embed", "banking77_minilm"),
    "mnist_lstm": ("eval_classify", "digits28"),
    "mobilenet_v1_025_224": ("eval_classify", "imagenet_caltech"),
    "silero_vad": ("eval_vad", "vad_streams"),
    "sww01_wakeword": ("eval_classify", "sww01_lfbe"),
    "ultraface_rfb320": ("eval_detect", "faces_caltech_rfb"),
    "vww01_mobilenetv1": ("eval_classify", "vww_caltech"),
    "yolox_nano": ("eval_detect", "coco_caltech"),
    "yunet_n": ("eval_detect", "faces_caltech_yunet"),
}
# Figures on a scale of their own: everything else is a share of one.
SCALES = {"psnr": 0.1, "mean_score": 0.1}
IGNORED = {"model", "n", "bicubic"}


def score(assets: Path, name: str, files: list[Path]) -> list[dict[str, Any]]:
    script, data = TASKS[name]
    wrapper = [str(HERE / "scoring.py"), str(assets / "eval")]
    done = subprocess.run(
        [sys.executable, *wrapper, f"{script}.py", *map(str, files), "--data", str(assets / "data" / data)],
        cwd=assets / "eval", capture_output=True, text=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{script} failed on {name}: {done.stderr[-800:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def differences(source: dict[str, Any], found: dict[str, Any]) -> dict[str, float]:
    """How far each figure is from the source's, in points (hundredths of a share, or tenths of its own unit)."""
    result = {}
    for key, value in source.items():
        if key in IGNORED or not isinstance(value, int | float):
            continue
        unit = next((SCALES[k] for k in SCALES if k in key.lower()), 0.001)
        result[key] = abs(found[key] - value) / unit
    return result


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("assets", type=Path)
    parser.add_argument("--target", choices=SUFFIXES, default="tflite")
    parser.add_argument("--models", default=",".join(TASKS))
    parser.add_argument("--schemes", default="float32,float16")
    parser.add_argument(
        "--samples", type=int, default=8, help="of the evaluation data that each export is verified on"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    assets, schemes = options.assets.resolve(), options.schemes.split(",")
    results, failed = {}, 0
    total = len(options.models.split(",")) * len(schemes)
    for name in options.models.split(","):
        source = assets / "models" / name / "model.onnx"
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "data.npz"
            np.savez(data, **inputs(assets, TASKS[name][1], source, options.samples))
            place = {s: Path(folder) / f"{name}_{s}{SUFFIXES[options.target]}" for s in schemes}
            runs = {
                s: export(source, options.target, place[s], "--quantize", s, "--data", data) for s in schemes
            }
            good = [s for s in schemes if runs[s].code == 0]
            files = [place[s] for s in good]
            sizes = [sum(p.stat().st_size for p in (f, f.with_suffix(".bin")) if p.exists()) for f in files]
            lines = score(assets, name, [source, *files])
        figures = {k: v for k, v in lines[0].items() if k not in IGNORED and isinstance(v, int | float)}
        print(f"{name}: {figures}")
        for s in schemes:
            if s not in good:
                failed += 1
                print(f"  {s:8} FAILED with exit code {runs[s].code}: {runs[s].said[-600:]}")
                continue
            k = good.index(s)
            far = differences(lines[0], lines[k + 1])
            worst = max(far.values(), default=0.0)
            failed += worst > 1
            error = (runs[s].answer.get("report") or {}).get("max_error")
            print(
                f"  {s:8} {'same' if worst <= 1 else 'DIFFERS'} on its task (worst {worst:.2f} of 0.1 point),"
                f" {sizes[k] / 1e3:.0f} kB of {source.stat().st_size / 1e3:.0f} kB, {runs[s].seconds:.1f} s"
                + (f", max error {error:.2g}" if isinstance(error, float) else "")
            )
            results[f"{name}:{s}"] = {
                "source": lines[0],
                "artifact": lines[k + 1],
                "points": far,
                "bytes": sizes[k],
            }
        sys.stdout.flush()
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    print(f"{total - failed} of {total} hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
