"""Weight-only schemes on a real model: how near the outputs stay, file size and time, in one run.

    python benchmarks/weight_only.py ../shared/assets [--models minilm_l6] [--schemes w8,w4g32] [--json FILE]

Each file is made by `tapeout export MODEL --target tflite --quantize SCHEME --calibration DATA` from the `calib`
data, and run on LiteRT on its `eval` data, which calibration has not seen. Printed for each: the mean over the samples
of the cosine between the first output and the float model's in ONNX Runtime, the bytes of the file, the seconds of the
whole command (`--verify` lets it verify too). Exits 1 where a sentence model misses a bound below.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from asset_data import inputs
from assets import TASKS
from command import export

Array = np.ndarray[Any, Any]
Feed = dict[str, Array]

# What sentence embeddings must reach: the cosine at least, the file's megabytes at most.
BOUNDS: dict[str, tuple[float, float]] = {
    "w8": (0.999, 24.0),
    "int8-dynamic": (0.998, 24.0),
    "w4g32": (0.99, 14.5),
    "w3g32": (0.98, 14.5),
}
SCHEMES = (*BOUNDS, "w4g64", "w4", "w3")
BATCH = 16


def by_onnx(path: Path, feeds: Sequence[Feed]) -> list[Array]:
    """The first output for each sample in ONNX Runtime, optimizations off."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [session.run(None, feed)[0] for feed in feeds]


def by_litert(path: Path, feeds: Sequence[Feed]) -> list[Array]:
    """The first output for each sample on LiteRT."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=2)
    runner = interpreter.get_signature_runner()
    name = next(iter(json.loads(Path(f"{path}.manifest.json").read_text())["interface"]["outputs"]))["name"]
    return [runner(**feed)[name] for feed in feeds]


def batches(given: dict[str, Array], size: int) -> list[Feed]:
    count = len(next(iter(given.values())))
    return [{k: v[i : i + size] for k, v in given.items()} for i in range(0, count, size)]


def cosine(wanted: Sequence[Array], found: Sequence[Array]) -> float:
    """The mean over samples of the cosine between two lists of batches."""
    a, b = (np.concatenate([x.reshape(len(x), -1) for x in xs]).astype(np.float64) for xs in (wanted, found))
    each = (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-30)
    return float(each.mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("assets", type=Path)
    parser.add_argument("--models", default="minilm_l6")
    parser.add_argument("--schemes", default=",".join(SCHEMES))
    parser.add_argument("--samples", type=int, help="of the evaluation data (default: all)")
    parser.add_argument("--verify", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    assets, results, missed = arguments.assets.resolve(), [], 0
    for name in arguments.models.split(","):
        model = next((assets / "models" / name).glob("*.onnx"))
        task, data = TASKS[name]
        feeds = batches(inputs(assets, data, model, arguments.samples), BATCH)
        wanted = by_onnx(model, feeds)
        with tempfile.TemporaryDirectory(prefix="tapeout-") as place:
            calibration = Path(place) / "calibration.npz"
            np.savez(calibration, **inputs(assets, data, model, None, "calib"))
            for scheme in arguments.schemes.split(","):
                made = Path(place) / f"{scheme}.tflite"
                how = ("--quantize", scheme, "--calibration", calibration)
                run = export(model, "tflite", made, *how, *(() if arguments.verify else ("--no-verify",)))
                run.must()
                found: dict[str, Any] = {"model": name, "scheme": scheme}
                found |= {"cosine": round(cosine(wanted, by_litert(made, feeds)), 5)}
                found |= {"megabytes": round(made.stat().st_size / 1e6, 2), "seconds": round(run.seconds, 1)}
                if task == "eval_embed" and scheme in BOUNDS:
                    least, most = BOUNDS[scheme]
                    found["held"] = found["cosine"] >= least and found["megabytes"] <= most
                    missed += not found["held"]
                results.append(found)
                print(json.dumps(found), flush=True)
                made.unlink()
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=1))
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
