"""The real models in int8: every integer kernel within its row's bound, end to end no noisier than the graph."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tapeout.compiler import pipeline
from tapeout.compiler.calibration import Calibration
from tapeout.compiler.cluster_check import check_clusters
from tapeout.compiler.ir.load import load
from tapeout.compiler.target import Request
from tapeout.targets.tflite import TARGET
from tapeout.targets.tflite.run import LiteRT
from tests.asset_samples import samples
from tests.assets import model_names, model_path, needs_assets
from tests.targets.ethos_u.cases import draw


def feeds(model: Any, arrays: dict[str, Any]) -> list[dict[str, Any]]:
    ranks = {v.name: len(v.shape) for v in model.graph.inputs}
    count = len(next(iter(arrays.values())))
    return [
        {k: a[i] if a.ndim == ranks[k] + 1 else a[i : i + 1] for k, a in arrays.items()} for i in range(count)
    ]


@needs_assets
@pytest.mark.slow
@pytest.mark.parametrize("name", model_names())
def test_kernels_of_real_models_keep_their_bounds(name: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "calib.npz", **samples(name, 16, "calib"))
    model = load(model_path(name))
    drawn = feeds(model, samples(name, 2, "eval"))
    request = Request(
        "int8", calibration=Calibration(tmp_path / "calib.npz", model), options={"refine": "off"}
    )
    pipeline.run(model, TARGET.passes(request))
    path = tmp_path / "out.tflite"
    with path.open("wb") as sink:
        TARGET.emit(model, sink, request)
    plain = Request("int8")
    found = check_clusters(model, TARGET, plain, LiteRT(path, "builtin kernels"), drawn)
    assert len(found) >= 2
    assert [d.text() for d in found if not d.holds] == []


@pytest.mark.slow
def test_kernels_of_random_graphs_keep_their_bounds() -> None:
    """500 clusters drawn from what the rows take, each on both resolvers."""
    looked, wrong = 0, []
    for case in draw(560, seed=9):
        model = case.cluster.legalized()
        sink = io.BytesIO()
        TARGET.emit(model, sink, Request("int8"))
        runner = LiteRT(sink.getvalue(), "builtin kernels")
        found = check_clusters(model, TARGET, Request("int8"), runner, [case.cluster.feed])
        looked += bool(found)
        wrong += [f"{case.text}: {d.text()}" for d in found if not d.holds]
    assert wrong == [] and looked >= 400, looked


@needs_assets
@pytest.mark.slow
def test_the_manifest_says_what_was_quantized(tmp_path: Path) -> None:
    import tapeout

    np.savez(tmp_path / "calib.npz", **samples("kws01_dscnn", 16, "calib"))
    made = tapeout.export(
        model_path("kws01_dscnn"),
        quantize="int8",
        calibration=tmp_path / "calib.npz",
        output=tmp_path / "o.tflite",
    )
    outputs = json.loads(json.dumps(made.report["verification"]))["outputs"]
    assert all(o["ratio"] <= 1.1 or o["clusters_hold"] for o in outputs)
    weights = sum(int(np.prod(t.dims)) for t in onnx.load(model_path("kws01_dscnn")).graph.initializer)
    assert made.artifact.stat().st_size < 4 * weights
