"""The evaluation data beside a real model as an .npz with arrays named after the inputs, for `--data`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def inputs(assets: Path, data: str, model: Path, limit: int | None, split: str = "eval") -> dict[str, Array]:
    """At most `limit` samples of `split` ("eval" or "calib") for each input of `model`, samples along the first
    axis, in the model's own shape."""
    sys.path.insert(0, str(assets / "eval"))
    sys.dont_write_bytecode = True
    import images
    import onnxruntime as ort
    import runner

    folder = assets / "data" / data
    described = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"]).get_inputs()
    meta = json.loads((folder / "meta.json").read_text()) if (folder / "meta.json").exists() else {}
    if "bundle" in meta:
        arrays = [images.load_set(str(folder), split, limit)["x"]]
    elif (folder / "streams.npz").exists():
        arrays = _frames(np.load(folder / "streams.npz"), model, limit, split)
    else:
        found = runner.load(str(folder / f"{split}.npz"))
        if "ids" in found:
            arrays = [found["ids"].astype(np.int64), found["mask"].astype(np.int64)]
        elif "lr" in found:
            arrays = [found["lr"][:, None].astype(np.float32) / 255]
        elif data.startswith("pitch") and split == "eval":
            arrays = [found["x"].astype(np.float32)[..., None] / 32768]
        else:
            arrays = [found["x"]]
    result = {}
    for value, array in zip(described, arrays, strict=True):
        array = array[:limit]
        if array.ndim == len(value.shape) + 1:
            result[value.name] = array  # samples of a model with a fixed batch
            continue
        tail = [
            d if isinstance(d, int) else s for d, s in zip(value.shape[1:], array.shape[1:], strict=False)
        ]
        array = array.reshape(len(array), *tail)
        result[value.name] = array.astype(np.int64) if "int64" in value.type else array.astype(np.float32)
    return result


def _frames(streams: Any, model: Path, limit: int | None, split: str) -> list[Array]:
    """Frames of the first stream with the state that the model itself has carried up to each."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    samples = streams[f"{split}_x0"].astype(np.float32) / 32768
    state, context = np.zeros((2, 1, 128), np.float32), np.zeros(64, np.float32)
    step = 10 if split == "eval" else 3
    frames, states = [], []
    for k in range(len(samples) // 512):
        frame = np.concatenate([context, samples[k * 512 : (k + 1) * 512]])[None]
        if k % step == 0:
            frames.append(frame)
            states.append(state)
        _, state = session.run(None, {"input": frame, "state": state})
        context = frame[0, -64:]
    return [np.concatenate(frames[:limit]), np.stack(states[:limit])]
