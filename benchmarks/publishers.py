"""Our int8 files beside those that the publishers of the models made of the same weights, in one run.

    python benchmarks/publishers.py --assets ../shared/assets [--models NAME,..] [--device ethos-u55-128] [--json FILE]

Inputs and outputs are integers, as in the publishers' files: `tapeout export MODEL --target tflite --quantize int8
--dtype NAME=int8 ..`. Both are scored by the scripts beside the models on evaluation data. Where Arm's Vela is
installed it compiles the publisher's file, and `--device` ours: operators on the NPU, cycles. A model passes where it
is at most 0.5 point below the publisher's file, all its operators are on the NPU, and its cycles are at or below the
publisher's. Exits 1 where one does not.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from asset_data import inputs
from assets import TASKS, score
from command import export

# The five of MLPerf Tiny.
MODELS = ("ic01_resnet8", "vww01_mobilenetv1", "kws01_dscnn", "sww01_wakeword", "ad01_autoencoder")
FIGURES = ("wake_auc", "top1", "accuracy", "auc")
MAY_LOSE = 0.005


def exported(model: Path, calibration: Path, out: Path, device: str | None = None) -> dict[str, Any]:
    """The manifest of the int8 file. A device has integers for inputs and outputs by itself."""
    graph = onnx.load(model, load_external_data=False).graph
    held = {t.name for t in graph.initializer}
    names = [v.name for v in (*graph.input, *graph.output) if v.name not in held]
    border = [f"--dtype={name}=int8" for name in names] if device is None else ["--device", device]
    made = export(model, "tflite", out, "--quantize", "int8", "--calibration", calibration, *border)
    found: dict[str, Any] = made.must()["manifest"]
    return found


def placed(file: Path, device: str) -> tuple[int, int, int] | None:
    """Operators on the NPU, on the CPU, and cycles, by Vela; None where it is not installed."""
    from tapeout.compiler.errors import TapeoutError
    from tapeout.targets.ethos_u.finish import compile_file

    try:
        made = compile_file(file, device)
    except TapeoutError as error:
        print(f"  Vela: {error.message}", flush=True)
        return None
    return len(made.on("NPU")), len(made.on("CPU")), int(float(made.summary["cycles_total"]))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--device", default="ethos-u55-128")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    assets = options.assets.resolve()
    results: dict[str, Any] = {}
    missed = 0
    for name in options.models.split(","):
        folder = assets / "models" / name
        theirs = folder / "reference_int8.tflite"
        with tempfile.TemporaryDirectory() as made:
            data, ours = Path(made) / "calibration.npz", Path(made) / f"{name}.tflite"
            np.savez(data, **inputs(assets, TASKS[name][1], folder / "model.onnx", None, "calib"))
            said = exported(folder / "model.onnx", data, ours)["quantization"]
            lines = score(assets, name, [folder / "model.onnx", theirs, ours])
            vela = placed(theirs, options.device)
            facts = None
            if vela is not None:
                npu_file = Path(made) / "npu.tflite"
                facts = exported(folder / "model.onnx", data, npu_file, options.device)["finished"]
            sizes = [f.stat().st_size for f in (theirs, ours)]
        key = next(k for k in FIGURES if k in lines[0])
        real, publisher, own = (float(line[key]) for line in lines)
        whole = not said["float"] and not any(said["boundaries"][k] for k in ("quantize", "dequantize"))
        holds = publisher - own <= MAY_LOSE and whole
        text = (
            f"{name:18} {key:9} float {real:.4f}, publisher {publisher:.4f}, ours {own:.4f} "
            f"({100 * (own - publisher):+.2f} points); {sizes[0] / 1e3:.0f} kB, {sizes[1] / 1e3:.0f} kB; "
            f"{'all in int8' if whole else 'NOT all in int8'}"
        )
        if vela is not None and facts is not None:
            npu, cpu, cycles = *(facts["placement"][k] for k in ("npu", "cpu")), facts["cycles"]["total"]
            holds = holds and cpu == 0 and cycles <= vela[2]
            text += f"; on the NPU {npu} of {npu + cpu} operators (publisher's file {vela[0]} of {vela[0] + vela[1]})"
            text += f", cycles {cycles}, publisher's {vela[2]}"
        print(text + ("" if holds else "  MISSED"), flush=True)
        missed += not holds
        results[name] = {
            "figure": key,
            "float": real,
            "publisher": publisher,
            "ours": own,
            "vela": vela,
            "finished": facts,
        }
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
