"""Noise is held against the graph's, kernels against their rows' bounds: what is wrong is found."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tapeout.compiler.cluster_check import check_clusters, cut_clusters
from tapeout.compiler.integer_verification import LEAST, Grid, Question, verify_quantized
from tapeout.compiler.ir.save import to_bytes
from tapeout.compiler.reference import Reference
from tapeout.compiler.target import Request
from tapeout.targets.tflite import TARGET
from tapeout.targets.tflite.run import LiteRT
from tests.targets.tflite.integers import Array, Cluster

RNG = np.random.default_rng(3)
REQUEST = Request("int8")


def cluster() -> Cluster:
    codes = RNG.integers(-127, 128, (8, 6, 3, 3)).astype(np.int8)
    scales = RNG.uniform(0.002, 0.01, 8).astype(np.float32)
    bias = RNG.integers(-3000, 3000, 8).astype(np.int32)
    weights: dict[str, tuple[Array, Any]] = {"w": (codes, scales), "b": (bias, np.float32(0))}
    return Cluster("t = Conv (a, w, b) y = Relu (t)", {"a": (2, 6, 9, 9)}, weights)


def emitted(model: Any) -> bytes:
    sink = io.BytesIO()
    TARGET.emit(model, sink, REQUEST)
    return sink.getvalue()


def test_a_cluster_is_cut_out_with_integers_in_and_out() -> None:
    (cut,) = cut_clusters(cluster().legalized(), TARGET.declaration("cpu"))
    assert [n.op_type for n in cut.model.graph] == [
        "DequantizeLinear", "DequantizeLinear", "DequantizeLinear", "ConvNHWC", "Relu", "QuantizeLinear",
    ]  # fmt: skip
    assert [str(v.dtype) for v in (*cut.model.graph.inputs, *cut.model.graph.outputs)] == ["INT8", "INT8"]


def test_kernels_keep_their_bounds() -> None:
    given = cluster()
    model = given.legalized()
    found = check_clusters(model, TARGET, REQUEST, LiteRT(emitted(model), "builtin kernels"), [given.feed])
    assert len(found) == 2 and all(d.holds for d in found), [d.text() for d in found]
    assert all(d.elements == 2 * 8 * 7 * 7 for d in found)


def test_a_kernel_that_computes_something_else_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bias in the wrong unit is taken by the runtime in silence."""
    from tapeout.targets.tflite.lower import convolution

    given = cluster()
    model = given.legalized()
    right = LiteRT(emitted(model), "builtin kernels")
    monkeypatch.setattr(
        convolution,
        "integer_bias",
        lambda b, x, w, bias: b.constant(np.full(8, 4000, np.int32), "bias", fresh=True),
    )
    found = check_clusters(model, TARGET, REQUEST, right, [given.feed])
    assert found and not any(d.holds for d in found)
    assert "CONV_2D" in found[0].text() and "at most 1" in found[0].text()


def question(graph: Any, noise: float = 0.0) -> tuple[Question, Any]:
    """The graph in float as source, quantized as graph, and a device with more noise than it."""
    rng = np.random.default_rng(0)
    samples = [{"aq": rng.integers(-128, 128, (2, 6, 9, 9)).astype(np.int8)} for _ in range(6)]
    real = cluster_model.model(integers=False)
    grids = {"y": Grid(cluster_model.result[0], cluster_model.result[1], np.dtype(np.int8))}  # type: ignore[index]

    class Device:
        runtime, device = "device", "cpu"

        def run(self, inputs: Any) -> dict[str, Array]:
            found = Renamed(Reference(graph)).run(inputs)["y"].astype(np.int64)
            return {
                "y": np.clip(found + np.rint(rng.normal(0, noise, found.shape)), -128, 127).astype(np.int8)
            }

    return Question(Reference(real), Renamed(Reference(graph)), samples, ["y"], grids, least=LEAST), Device()  # type: ignore[arg-type]


cluster_model = cluster()


class Renamed:
    """The integer output under the source's name."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference

    def run(self, inputs: Any, names: Any = None) -> dict[str, Array]:
        (value,) = self._reference.run(inputs).values()
        return {"y": value}

    def close(self) -> None:
        self._reference.close()


@pytest.mark.parametrize(("noise", "holds"), [(0.0, True), (0.05, True), (2.0, False)])
def test_noise_is_held_against_the_graph(noise: float, holds: bool) -> None:
    graph = cluster_model.model()
    asked, device = question(graph, noise)
    result = verify_quantized(asked, [device])
    (entry,) = result.entries
    assert result.samples == 6 and entry.holds is holds, entry
    assert ("times as far from the source" in entry.describe()) is not holds  # type: ignore[attr-defined]


def test_what_keeps_nothing_of_the_source_fails(tmp_path: Path) -> None:
    graph = cluster_model.model()
    asked, device = question(graph, 200.0)
    (entry,) = verify_quantized(asked, [device]).entries
    assert entry.far and entry.noisy and entry.difference.sqnr < LEAST  # type: ignore[attr-defined]


def test_grids() -> None:
    grid = Grid(0.5, -3, np.dtype(np.int8))
    real = np.float32([-1000, -0.26, 0, 0.24, 1, 1000])
    assert grid.codes(real).tolist() == [-128, -4, -3, -3, -1, 127]
    assert grid.real(grid.codes(real)).tolist() == [-62.5, -0.5, 0, 0, 1, 65]
    assert len(to_bytes(cluster_model.model())) > 0
