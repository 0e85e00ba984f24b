"""Relative output error of weights in 4 bits, groups of 32, on data that nobody calibrated on: ours as a TFLite file on
LiteRT, NNCF's AWQ and ONNX Runtime's HQQ on ONNX Runtime, in one run.

    python benchmarks/weight_peers.py ../shared/assets [--models NAME,..] [--peer PYTHON] [--json FILE]

`--peer` (or TAPEOUT_PEER) is a Python with nncf 3.4, openvino, onnx, onnxruntime, onnx-ir and torch, which HQQ needs;
without it one is made in the temporary folder and the packages are installed there. Every model takes part of which
products by constant matrices hold a good part of the weights; the others are named with that reason. Only products are
stored in fewer bits, as the peers leave tables and recurrent weights alone; spectral front ends keep the 8 bits that
the scheme gives them. A peer that does not do a model is named
with its own words. Exits 1 where a peer is better.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from asset_data import inputs
from assets import TASKS
from command import export
from weight_only import Array, batches, by_litert, by_onnx

PACKAGES = ("nncf==3.4.0", "openvino", "onnxruntime", "onnx", "onnx-ir", "torch")
PEERS = ("awq", "hqq")
# A model takes part where products by matrices hold at least this share of its weights.
SHARE = 0.3
SAMPLES = 64


def products(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The MatMul and Gemm that multiply by a constant."""
    held = {t.name for t in model.graph.initializer}
    return [n for n in model.graph.node if n.op_type in ("MatMul", "Gemm") and held & set(n.input[:2])]


def share(model: onnx.ModelProto) -> float:
    """How much of the weights products multiply by."""
    sizes = {t.name: int(np.prod(t.dims)) for t in model.graph.initializer}
    read = {i for n in products(model) for i in n.input}
    return sum(s for n, s in sizes.items() if n in read) / max(sum(sizes.values()), 1)


def in_single(path: Path, made: Path) -> onnx.ModelProto:
    """The model with its weights as float32 initializers, which is what the peers look for."""
    model = onnx.load(path)
    held = {t.name: t for t in model.graph.initializer}
    for node in [n for n in model.graph.node if n.op_type == "Cast" and n.input[0] in held]:
        array = onnx.numpy_helper.to_array(held[node.input[0]])
        if array.dtype == np.float16 and node.attribute[0].i == onnx.TensorProto.FLOAT:
            tensor = onnx.numpy_helper.from_array(array.astype(np.float32), node.output[0])
            model.graph.initializer.append(tensor)
            model.graph.node.remove(node)
    read = {i for n in model.graph.node for i in n.input}
    for tensor in [t for t in model.graph.initializer if t.name not in read]:
        model.graph.initializer.remove(tensor)
    for i, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{i}"
    onnx.save(model, made)
    return model


def recipe(model: onnx.ModelProto) -> str:
    """Whatever else than products holds weights stays in floats; empty where nothing does."""
    held = {t.name for t in model.graph.initializer if len(t.dims) > 1}
    others = ("Gather", "LSTM", "GRU", "RNN", "Conv", "ConvTranspose")
    found = [n.name for n in model.graph.node if n.op_type in others and held & set(n.input)]
    names = json.dumps([n.replace("[", "[[]") for n in found])
    return f'[[rule]]\nnode = {names}\nscheme = "float32"\n' if found else ""


def error(expected: list[Array], found: list[Array]) -> float:
    """RMS of the difference over RMS of what is right."""
    gap = sum(float(((a - b).astype(np.float64) ** 2).sum()) for a, b in zip(expected, found, strict=True))
    return float((gap / sum(float((a.astype(np.float64) ** 2).sum()) for a in expected)) ** 0.5)


def peer_python(folder: Path) -> str:
    """A Python of its own with the peers."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
    return python


def measure(assets: Path, name: str, peer: str, folder: Path) -> dict[str, Any]:
    """Errors of one model by who made it, or why it takes no part."""
    source, model = next((assets / "models" / name).glob("*.onnx")), folder / "model.onnx"
    proto = in_single(source, model)
    if (part := share(proto)) < SHARE:
        return {"model": name, "skipped": f"products by matrices hold {part:.0%} of its weights"}
    data, calibration = TASKS[name][1], folder / "calibration.npz"
    np.savez(calibration, **inputs(assets, data, source, 128, "calib"))
    feeds = batches(inputs(assets, data, source, SAMPLES), 1)
    expected = by_onnx(model, feeds)
    script = Path(__file__).with_name("weight_peers_worker.py")
    command = [peer, str(script), str(model), str(calibration), str(folder)]
    log = subprocess.run(command, capture_output=True, text=True)
    found: dict[str, Any] = {"model": name}
    for who in PEERS:
        made, reason = folder / f"{who}.onnx", folder / f"{who}.error"
        if made.exists():
            found[who] = round(error(expected, by_onnx(made, feeds)), 5)
        else:
            found[who] = "skipped: " + (reason.read_text() if reason.exists() else log.stderr[-300:])
    rules, made = folder / "recipe.toml", folder / "ours.tflite"
    text = recipe(proto)
    rules.write_text(text)
    how = ("--quantize", "w4g32", "--calibration", calibration, *(("--recipe", rules) if text else ()))
    export(model, "tflite", made, *how, "--no-verify").must()
    found["tapeout"] = round(error(expected, by_litert(made, feeds)), 5)
    theirs = [found[k] for k in PEERS if isinstance(found[k], float)]
    found["best"] = all(found["tapeout"] <= v for v in theirs)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("assets", type=Path)
    parser.add_argument("--models", default=",".join(TASKS))
    parser.add_argument("--peer", default=os.environ.get("TAPEOUT_PEER"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(prefix="tapeout-") as place:
        peer = arguments.peer or peer_python(Path(place) / "peer")
        for name in arguments.models.split(","):
            folder = Path(place) / name
            folder.mkdir()
            results.append(measure(arguments.assets.resolve(), name, peer, folder))
            print(json.dumps(results[-1]), flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=1))
    measured = [r for r in results if "best" in r]
    sys.exit(0 if measured and all(r["best"] for r in measured) else 1)


if __name__ == "__main__":
    main()
