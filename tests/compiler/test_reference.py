"""Reference execution: outputs, inner values, fallbacks, parts of a graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from tapeout.compiler.errors import InvalidModelError, UsageError
from tapeout.compiler.ir.load import from_proto
from tapeout.compiler.reference import Reference, spread
from tapeout.compiler.regions import Regions, captured

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
chain (float[N,4] x) => (float[N,4] y)
{ a = MatMul (x, w) b = Relu (a) c = Add (b, x) d = Sigmoid (c) y = Mul (d, b) }"""


def chain() -> onnx.ModelProto:
    model = parser.parse_model(TEXT)
    w = np.random.default_rng(4).standard_normal((4, 4)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(w, "w"))
    return model


def by_hand(x: np.ndarray) -> dict[str, np.ndarray]:
    w = numpy_helper.to_array(chain().graph.initializer[0]).astype(np.float64)
    a = x.astype(np.float64) @ w
    b = np.maximum(a, 0)
    c = b + x
    d = 1 / (1 + np.exp(-c))
    return {"a": a, "b": b, "c": c, "d": d, "y": d * b}


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(8).standard_normal((3, 4)).astype(np.float32)


@pytest.mark.parametrize("kind", ["path", "proto", "ir", "external"])
def test_every_form_of_a_model_gives_every_value(kind: str, x: np.ndarray, tmp_path: Path) -> None:
    model: object = chain()
    if kind == "ir":
        model = from_proto(chain())
    elif kind != "proto":
        options = {"save_as_external_data": True, "size_threshold": 0} if kind == "external" else {}
        onnx.save(chain(), tmp_path / "m.onnx", **options)
        model = tmp_path / "m.onnx"
    with Reference(model) as reference:  # type: ignore[arg-type]
        expected = by_hand(x)
        assert list(reference.run({"x": x})) == ["y"]
        found: dict[str, np.ndarray] = {}
        for part in reference.batches({"x": x}, reference.names()):
            found |= part
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)
        with pytest.raises(UsageError, match="nothing"):
            reference.run({"x": x}, ["nothing"])
        with pytest.raises(InvalidModelError):
            reference.run({"x": x[:, :3]})


def test_what_ort_has_no_kernel_for_runs_slowly(x: np.ndarray) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    m (bfloat16[3,4] x) => (bfloat16[3,4] y) { y = Sigmoid (x) }"""
    import ml_dtypes

    with Reference(parser.parse_model(text)) as reference:
        found = reference.run({"x": x.astype(ml_dtypes.bfloat16)})["y"]
    np.testing.assert_allclose(found.astype(np.float64), 1 / (1 + np.exp(-x.astype(np.float64))), atol=2e-2)


def test_damaged_models(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"hello")
    with Reference(tmp_path / "m.onnx") as reference, pytest.raises(InvalidModelError):
        reference.run({})


def test_spread_is_small_and_not_negative(x: np.ndarray) -> None:
    found = spread(chain(), [{"x": x}])
    assert set(found) == {"y"} and 0 <= found["y"] < 1e-5


def test_a_region_shows_its_own_error_only(x: np.ndarray) -> None:
    values = {k: v.astype(np.float32) for k, v in by_hand(x).items()} | {"x": x}
    values["b"] = values["b"] + np.float32(0.5)  # what a wrong device would have computed
    values["c"] = values["b"] + x
    values["d"] = (1 / (1 + np.exp(-values["c"]))).astype(np.float32)
    values["y"] = values["d"] * values["b"]
    regions = Regions(chain(), ["x", "b", "d", "y"])
    assert regions.targets() == ["b", "d", "y"]
    assert regions.region("d") == ([2, 3], ["b", "x"])
    errors = {
        name: float(np.abs(found - value).max())
        for name, found, value in regions.run(regions.targets(), lambda names: {n: values[n] for n in names})
        if found is not None
    }
    assert errors["b"] == pytest.approx(0.5, abs=1e-5)
    assert errors["d"] < 1e-5 and errors["y"] < 1e-5


def test_a_region_that_does_not_run_stands_alone(x: np.ndarray) -> None:
    values = {k: v.astype(np.float32) for k, v in by_hand(x).items()} | {"x": x}
    values["b"] = values["b"][:, :3]  # of the wrong shape: c and y cannot be computed from it
    regions = Regions(chain(), ["x", "b", "c", "d", "y"])
    found = {
        n: f is not None
        for n, f, _ in regions.run(regions.targets(), lambda names: {n: values[n] for n in names})
    }
    assert found == {"b": True, "c": False, "d": True, "y": False}


def test_subgraphs_capture() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    m (bool c, float[2] x, float[2] z) => (float[2] y)
    { t = Neg (x)
      y = If (c) <then_branch = a () => (float[2] p) { p = Add (t, z) },
        else_branch = b () => (float[2] q) { q = Neg (t) }> }"""
    model = parser.parse_model(text)
    assert captured(model.graph.node[1]) == {"t", "z"}
    regions = Regions(model, ["c", "x", "z", "t", "y"])
    assert set(regions.region("y")[1]) == {"c", "t", "z"}
    values = {"c": np.array(True), "x": np.ones(2, np.float32), "z": np.full(2, 3, np.float32)}
    values["t"] = -values["x"] * 2
    values["y"] = values["t"] + values["z"]
    found = {n: f for n, f, _ in regions.run(["y"], lambda names: {n: values[n] for n in names})}
    np.testing.assert_array_equal(found["y"], values["y"])
