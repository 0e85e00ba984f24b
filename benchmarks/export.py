"""Times `tapeout export` as a whole process against onnx2tf, in turns, in one run.

    python benchmarks/export.py OUT [--runs 5] [--model-python PY] [--peer-python PY] [--no-peer]

Makes two environments under OUT: one that writes the models (torch and transformers, benchmarks/models.py), one for the
peer, onnx2tf 2.6.9, which needs Python 3.12. Prints median seconds, peak memory (largest resident set of the process)
and the ratio of each pair, as text and OUT/export.json. Verification is off, since the peer has none.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PEER = "onnx2tf==2.6.9"
# The goals on 2 cores: seconds, megabytes.
GOALS: dict[str, tuple[float, float | None]] = {
    "mobilenet_v2": (1.2, None),
    "resnet_50": (1.8, 450),
    "vit_small": (2.0, None),
    "bert_base": (4.0, 900),
}


def environment(folder: Path, python: str, *requirements: str) -> Path:
    """A virtual environment with `requirements`, made once; the path of its bin folder."""
    stamp = folder / ".stamp"
    if not stamp.exists() or stamp.read_text() != repr(requirements):
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
        constraints = str(HERE.parent / "constraints.txt")
        pins = ["-c", constraints] if "torch" in " ".join(requirements) else []
        subprocess.run([str(folder / "bin/pip"), "install", "--quiet", *pins, *requirements], check=True)
        stamp.write_text(repr(requirements))
    return folder / "bin"


def measure(command: list[str], cwd: Path) -> tuple[float, float, int]:
    """Seconds, peak megabytes and exit code of one process."""
    with open(os.devnull, "w") as null:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=cwd, stdout=null, stderr=null)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    return seconds, usage.ru_maxrss / 1024, process.returncode


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--models", default=",".join(GOALS))
    parser.add_argument("--model-python", default=sys.executable)
    parser.add_argument("--peer-python", default="python3.12")
    parser.add_argument("--no-peer", action="store_true")
    options = parser.parse_args()
    out = options.out.resolve()
    models = out / "models"
    if not all((models / f"{name}.onnx").exists() for name in GOALS):
        env = environment(
            out / "env-models", options.model_python, "-r", str(HERE / "requirements-models.txt")
        )
        subprocess.run([str(env / "python"), str(HERE / "models.py"), str(models)], check=True)
    peer = None if options.no_peer else environment(out / "env-peer", options.peer_python, PEER)
    results: dict[str, Any] = {}
    for name in options.models.split(","):
        source, (goal_s, goal_mb) = models / f"{name}.onnx", GOALS[name]
        work = out / "work"
        commands = {
            "tapeout": [str(Path(sys.executable).parent / "tapeout"), "export", str(source), "--target", "tflite",
                        "--no-verify", "-o", str(work / f"{name}.tflite")],
        }  # fmt: skip
        if peer is not None:
            commands["onnx2tf"] = [str(peer / "onnx2tf"), "-i", str(source), "-o", str(work / "peer"), "-n"]
        taken: dict[str, list[tuple[float, float, int]]] = {who: [] for who in commands}
        for run in range(options.runs + 1):  # the first is a warm-up
            for who, command in commands.items():
                shutil.rmtree(work, ignore_errors=True)
                work.mkdir()
                figure = measure(command, work)
                if run:
                    taken[who].append(figure)
        row: dict[str, Any] = {}
        for who, figures in taken.items():
            row[who] = {
                "seconds": statistics.median(f[0] for f in figures),
                "min_seconds": min(f[0] for f in figures),
                "peak_mb": statistics.median(f[1] for f in figures),
                "exit_codes": sorted({f[2] for f in figures}),
            }
        if peer is not None:
            pairs = list(zip(taken["tapeout"], taken["onnx2tf"], strict=True))
            row["time_ratio"] = statistics.median(a[0] / b[0] for a, b in pairs)
            row["memory_ratio"] = statistics.median(a[1] / b[1] for a, b in pairs)
        results[name] = row
        ours = row["tapeout"]
        text = f"{name}: {ours['seconds']:.2f} s (goal {goal_s}), {ours['peak_mb']:.0f} MB" + (
            f" (goal {goal_mb:.0f})" if goal_mb else ""
        )
        if peer is not None:
            theirs = row["onnx2tf"]
            text += (
                f"; onnx2tf {theirs['seconds']:.2f} s, {theirs['peak_mb']:.0f} MB;"
                f" ratio {row['time_ratio']:.2f} of its time, {row['memory_ratio']:.2f} of its memory"
            )
        print(
            text + f"; exit codes {[r['exit_codes'] for r in row.values() if isinstance(r, dict)]}",
            flush=True,
        )
    (out / "export.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
