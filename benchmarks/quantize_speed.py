"""Times static int8 as a whole process against NNCF on OpenVINO and ONNX Runtime's quantize_static, in one run.

    python benchmarks/quantize_speed.py MODELS [--peer-python PY] [--samples 32] [--runs 3] [--json FILE]

MODELS is the folder that `benchmarks/models.py` writes to. The peers are the packages nncf and openvino, and
onnxruntime, of `--peer-python` (else of TAPEOUT_PEER_PYTHON); where one is missing it is left out, and said so. All
calibrate on the same samples and have default options; ours runs with them too, and proves its file on top. Seconds
are of the whole process, CPU seconds of all its threads, memory is its largest resident set.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

# The goals on 2 idle cores: seconds, megabytes.
GOALS: dict[str, tuple[float, float | None]] = {"resnet_50": (5.0, 700), "mobilenet_v2": (2.2, None)}

NNCF = """
import sys
import nncf, numpy as np, openvino as ov
source, data, out = sys.argv[1:]
core = ov.Core()
model = core.read_model(source)
arrays = np.load(data)
name = arrays.files[0]
made = nncf.quantize(model, nncf.Dataset([{name: x[None]} for x in arrays[name]]), subset_size=len(arrays[name]))
ov.save_model(made, out + ".xml")
"""
ORT = """
import sys
import numpy as np
from onnxruntime import quantization as q
source, data, out = sys.argv[1:]
arrays = np.load(data)
name = arrays.files[0]
class Reader(q.CalibrationDataReader):
    def __init__(self): self.samples = iter([{name: x[None]} for x in arrays[name]])
    def get_next(self): return next(self.samples, None)
q.quantize_static(source, out + ".onnx", Reader(), quant_format=q.QuantFormat.QDQ, per_channel=True)
"""
PEERS = {"nncf": (NNCF, "import nncf, openvino"), "onnxruntime": (ORT, "import onnxruntime, onnx")}


def measure(command: list[str], folder: Path) -> tuple[float, float, float]:
    """Seconds, CPU seconds and peak megabytes of one process. Raises SystemExit where it fails."""
    log = folder / "log"
    with log.open("w") as said:
        start = time.perf_counter()
        # Compiled modules are kept, as an installed package has them: the warm-up writes ours.
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:4])}: {log.read_text()[-800:]}")
    return seconds, usage.ru_utime + usage.ru_stime, _megabytes(usage)


def _megabytes(usage: resource.struct_rusage) -> float:
    return usage.ru_maxrss / 1024


def peers(python: str | None) -> dict[str, list[str]]:
    """The commands of the peers that are there."""
    found = {}
    for name, (script, imports) in PEERS.items():
        if python is None or subprocess.run([python, "-c", imports], capture_output=True).returncode:
            print(
                f"{name} is left out: {'no --peer-python' if python is None else 'it does not import there'}"
            )
            continue
        found[name] = [python, "-c", script]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path)
    parser.add_argument("--peer-python", default=os.environ.get("TAPEOUT_PEER_PYTHON"))
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default=",".join(GOALS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    beside = peers(options.peer_python)
    results: dict[str, Any] = {}
    for name in options.only.split(","):
        source, (goal, most) = (options.models / f"{name}.onnx").resolve(), GOALS[name]
        taken: dict[str, list[tuple[float, float, float]]] = {}
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            graph = onnx.load(source, load_external_data=False).graph
            value = graph.input[0]
            shape = [d.dim_value or 1 for d in value.type.tensor_type.shape.dim][1:]
            drawn = np.random.default_rng(0).standard_normal((options.samples, *shape))
            np.savez(folder / "data.npz", **{value.name: drawn.astype(np.float32)})
            for run in range(options.runs + 1):  # the first is a warm-up
                for who in ("tapeout", *beside):
                    work = folder / "work"
                    shutil.rmtree(work, ignore_errors=True)
                    work.mkdir()
                    paths = [str(source), str(folder / "data.npz"), str(work / name)]
                    command = [*beside[who], *paths] if who in beside else [
                        *(sys.executable, "-m", "tapeout", "export", paths[0], "--quantize", "int8"),
                        *("--calibration", paths[1], "-o", paths[2] + ".tflite"),
                    ]  # fmt: skip
                    figure = measure(command, work)
                    if run or not options.runs:
                        taken.setdefault(who, []).append(figure)
        results[name] = {
            who: dict(
                zip(
                    ("seconds", "cpu_seconds", "megabytes"),
                    map(statistics.median, zip(*f, strict=True)),
                    strict=True,
                )
            )
            for who, f in taken.items()
        }
        parts = [
            f"{who} {r['seconds']:.2f} s ({r['cpu_seconds']:.1f} s of CPU), {r['megabytes']:.0f} MB"
            for who, r in results[name].items()
        ]
        print(f"{name}: {'; '.join(parts)}; goal {goal} s" + (f", {most:.0f} MB" if most else ""), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
