"""Static int8 and int4 weights for OpenVINO against NNCF's of the same models and calibration data, in one run.

    python benchmarks/openvino_against_nncf.py --assets ../shared/assets --peer PYTHON [--parts int8,int4]
                                               [--models NAME,..] [--shapes FOLDER] [--json FILE]

`--peer` is a Python with nncf 3.4, openvino, onnx and torch (NNCF imports it); `--shapes` a folder that
benchmarks/models.py has filled, whose models are timed on random data only. Ours is what the command line makes:
`--quantize int8 --calibration DATA`, `--quantize w4g128 --calibration DATA`; theirs `nncf.quantize` and
`nncf.compress_weights(INT4_SYM, group_size=128, ratio=1)`. Latencies are taken by turns, on one thread, at the
precision that the plugin takes by itself; figures are those of the scripts beside the models on evaluation data.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from asset_data import inputs
from assets import TASKS, score
from quantization import FIGURES

HERE = Path(__file__).parent
# Models whose weights are worth four bits.
LANGUAGE = ("minilm_l6", "bert_base")
TURNS = 150
SCHEMES = {"int8": "int8", "int4": "w4g128"}


def ours(part: str, model: Path, data: Path, out: Path) -> str | None:
    """Exports as a user would; the last words where that fails."""
    command = [sys.executable, "-m", "tapeout", "export", str(model), "--target", "openvino", "-o", str(out)]
    command += ["--quantize", SCHEMES[part], "--calibration", str(data)]
    return _run(command, out)


def theirs(peer: str, part: str, model: Path, data: Path, out: Path) -> str | None:
    return _run([peer, str(HERE / "openvino_peer.py"), part, str(model), str(data), str(out)], out)


def _run(command: list[str], out: Path) -> str | None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0 and out.is_file():
        return None
    return " ".join((done.stderr or done.stdout).split())[-300:]


def size(file: Path) -> int:
    return file.stat().st_size + file.with_suffix(".bin").stat().st_size


def latencies(files: list[Path], sample: dict[str, Any]) -> list[float]:
    """The least milliseconds of each file over many turns, which other work on the machine disturbs least."""
    import openvino

    core = openvino.Core()
    requests = []
    for file in files:
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1}
        compiled = core.compile_model(str(file), "CPU", settings)
        requests.append(compiled.create_infer_request())
    for request in requests:
        for _ in range(3):
            request.infer(sample)
    times: list[list[float]] = [[] for _ in files]
    for _ in range(TURNS):
        for place, request in enumerate(requests):
            start = time.perf_counter()
            request.infer(sample)
            times[place].append(1000 * (time.perf_counter() - start))
    return [min(t) for t in times]


def first(data: Path, model: Path) -> dict[str, Any]:
    """One sample of the calibration data as the model takes it."""
    import onnx

    found = {}
    arrays = dict(np.load(data))
    for value in onnx.load(model, load_external_data=False).graph.input:
        if value.name in arrays:
            part = arrays[value.name][0]
            found[value.name] = part if part.ndim == len(value.type.tensor_type.shape.dim) else part[None]
    return found


def drawn(model: Path, out: Path) -> None:
    """Random calibration data for a model without any: pictures, or words with nothing masked."""
    import onnx

    rng = np.random.default_rng(0)
    arrays = {}
    for value in onnx.load(model, load_external_data=False).graph.input:
        dims = [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            arrays[value.name] = rng.standard_normal((16, *dims[1:])).astype(np.float32)
        else:
            words = rng.integers(1000, 20000, (16, *dims[1:]))
            arrays[value.name] = np.ones_like(words) if "mask" in value.name else words
    np.savez(out, **arrays)


def compare(
    part: str, name: str, model: Path, data: Path, options: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """One model both ways."""
    files = {who: folder / f"{name}_{part}_{who}.xml" for who in ("ours", "nncf")}
    failed = {
        "ours": ours(part, model, data, files["ours"]),
        "nncf": theirs(options.peer, part, model, data, files["nncf"]),
    }
    made = [w for w in files if failed[w] is None]
    found: dict[str, Any] = {"failed": {w: why for w, why in failed.items() if why is not None}}
    if made:
        found["ms"] = dict(zip(made, latencies([files[w] for w in made], first(data, model)), strict=True))
        found["bytes"] = {w: size(files[w]) for w in made}
    if name in TASKS and made:
        lines = score(options.assets.resolve(), name, [model, *(files[w] for w in made)])
        key = next(k for k in FIGURES if k in lines[0])
        found["figure"] = {"key": key, "float": lines[0][key]}
        found["figure"] |= {w: line[key] for w, line in zip(made, lines[1:], strict=True)}
        for extra in ("cos_to_first", "pixel_agreement_with_first"):
            if extra in lines[-1]:
                found[extra] = {w: line[extra] for w, line in zip(made, lines[1:], strict=True)}
    return found


def told(part: str, name: str, found: dict[str, Any]) -> str:
    """A line for people."""
    words = [f"{part} {name:22}"]
    for key, form in (("ms", ".3f"), ("bytes", ",d")):
        both = found.get(key, {})
        words.append(
            f"{key} " + " / ".join(f"{both[w]:{form}}" if w in both else "-" for w in ("ours", "nncf"))
        )
        if len(both) == 2:
            words.append(f"= {both['ours'] / both['nncf']:.3f}")
    figure = found.get("figure")
    if figure:
        pair = " / ".join(f"{figure[w]:.4f}" if w in figure else "-" for w in ("ours", "nncf"))
        words.append(f"{figure['key']} {figure['float']:.4f} -> {pair}")
    if "cos_to_first" in found:
        words.append("cosine " + " / ".join(f"{v:.5f}" for v in found["cos_to_first"].values()))
    words += [f"{w} FAILED: {why[-160:]}" for w, why in found["failed"].items()]
    return "  ".join(words)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--parts", default="int8,int4")
    parser.add_argument("--models", default=",".join(TASKS))
    parser.add_argument("--shapes", type=Path)
    parser.add_argument("--keep", type=Path, help="a folder for the files that were made")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as made:
        folder = options.keep or Path(made)
        folder.mkdir(exist_ok=True)
        models = {n: options.assets / "models" / n / "model.onnx" for n in options.models.split(",") if n}
        models |= {p.stem: p for p in sorted(options.shapes.glob("*.onnx"))} if options.shapes else {}
        for part in options.parts.split(","):
            for name, model in models.items():
                if part == "int4" and name not in LANGUAGE:
                    continue
                data = Path(made) / f"{name}.npz"
                if name in TASKS:
                    np.savez(data, **inputs(options.assets.resolve(), TASKS[name][1], model, None, "calib"))
                else:
                    drawn(model, data)
                found = results[f"{part} {name}"] = compare(part, name, model, data, options, folder)
                print(told(part, name, found), flush=True)
    ratios = {k: f["ms"]["ours"] / f["ms"]["nncf"] for k, f in results.items() if len(f.get("ms", {})) == 2}
    if ratios:
        print(f"latency of ours over NNCF's: {', '.join(f'{k} {v:.2f}' for k, v in ratios.items())}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    return 1 if any("ours" in f["failed"] for f in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
