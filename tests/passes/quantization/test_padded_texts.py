"""Weights are fitted to the positions of a text that count, whatever lies where it is padded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tapeout.compiler import pipeline
from tapeout.compiler.calibration import Calibration
from tapeout.compiler.reference import Reference
from tapeout.compiler.target import Request
from tapeout.passes.quantization import weight_gptq
from tapeout.targets.tflite import TARGET
from tests.passtext import imported, parse

Array = np.ndarray[Any, Any]
LENGTH, WIDTH, READ = 64, 64, 16
TEXT = f"""agraph (float[1,{LENGTH},{WIDTH}] x, float[1,1,1,{LENGTH}] mask) => (float[1,{LENGTH},{WIDTH}] y)
  <float[{WIDTH},{WIDTH}] w, int64[4] heads = {{1,1,{LENGTH},{WIDTH}}}, int64[3] flat = {{1,{LENGTH},{WIDTH}}}>
{{ q = Reshape (x, heads)
   k = Transpose <perm=[0,1,3,2]> (q)
   s = MatMul (q, k)
   m = Add (s, mask)
   p = Softmax <axis=-1> (m)
   a = MatMul (p, q)
   b = Reshape (a, flat)
   c = Add (b, x)
   y = MatMul (c, w) }}"""


def texts(rng: np.random.Generator, count: int) -> dict[str, Array]:
    """Words that vary in few directions, and padding that varies in all of them."""
    few = np.random.default_rng(7).standard_normal((6, WIDTH)) / 8
    x = rng.standard_normal((count, LENGTH, WIDTH)) / 4
    x[:, :READ] = rng.standard_normal((count, READ, 6)) @ few
    mask = np.where(np.arange(LENGTH) < READ, 0.0, -1e4) * np.ones((count, 1, 1, 1))
    return {"x": x.astype(np.float32), "mask": mask.astype(np.float32)}


def error(data: Path) -> float:
    """RMS of the error at the positions that count, by that of the output."""
    dense = imported(parse(TEXT))
    model = dense.clone()
    pipeline.run(model, TARGET.passes(Request("w3", calibration=Calibration(data, model))))
    given = texts(np.random.default_rng(99), 8)
    feeds = [{k: v[i : i + 1] for k, v in given.items()} for i in range(8)]
    found = []
    for each in (dense, model):
        with Reference(each) as reference:
            name = each.graph.outputs[0].name or ""
            found.append(np.concatenate([reference.run(f, [name])[name][:, :READ] for f in feeds]))
    return float(np.linalg.norm(found[1] - found[0]) / np.linalg.norm(found[0]))


def test_padding_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "texts.npz", **texts(np.random.default_rng(1), 60))
    counted = error(tmp_path / "texts.npz")
    monkeypatch.setattr(weight_gptq, "attended", lambda *_: [])
    every = error(tmp_path / "texts.npz")
    assert counted < 0.7 * every
