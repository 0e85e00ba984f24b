"""Cross-layer equalization and AdaRound: exact in real numbers, nearer to the source on real models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tapeout.compiler.calibration import Calibration
from tapeout.compiler.ir.load import from_proto, load
from tapeout.passes.quantization.attended import attended, counting
from tapeout.passes.quantization.equalization import Equalize
from tapeout.passes.quantization.layers import Fit, Problem
from tapeout.passes.quantization.refined import Refined, distances
from tapeout.passes.quantization.rounding import AdaRound
from tests.asset_samples import samples
from tests.assets import model_path, needs_assets
from tests.passes.quantization.test_islands import prepared
from tests.targets.tflite.networks import F, Net

Array = np.ndarray[Any, Any]


def chain() -> onnx.ModelProto:
    """Convolutions with Relu between: to a depthwise one, to a full one, to a residual sum."""
    n = Net(5)
    wide = (n.rng.standard_normal((12, 3, 3, 3)) * np.geomspace(0.02, 2, 12)[:, None, None, None]).astype(
        np.float32
    )
    y = n("Relu", n("Conv", "x", n.const(wide, np.float32), n.weight(12, scale=0.02), pads=[1] * 4))
    y = n("Relu", n.conv(y, 12, 12, group=12))
    y = n("Relu", n.conv(y, 12, 8, 1))
    return n.model({"x": (F, [1, 3, 10, 10])}, n("Add", n.conv(y, 8, 8), y))


def drawn(count: int, seed: int) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((1, 3, 10, 10)).astype(np.float32)} for _ in range(count)]


def test_equalization_changes_no_number_and_brings_integers_nearer() -> None:
    source = from_proto(chain())
    model, refined = prepared(source, Calibration(lambda: drawn(24, 1), source))
    quantize = refined.quantize
    plain, real = model.clone(), model.clone()
    equalize = Equalize(quantize.measured())
    assert equalize(real).count == 2  # what the sum reads too is left alone
    assert distances(model, (real,), drawn(4, 2))[0] < 1e-10
    seen = Calibration(lambda: drawn(24, 1), real).statistics(real)
    for name, said in equalize.known.items():
        if (known := seen[name]) is not None:
            assert [said.min, said.max] == pytest.approx([known.min, known.max], rel=1e-4)
    quantized = real.clone()
    replace(quantize, measured=equalize.result)(quantized)
    quantize(plain)
    before, after = distances(model, (plain, quantized), drawn(8, 3))
    assert after < 0.9 * before


def test_adaround_rounds_up_or_down_and_keeps_outputs() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((40, 40)) / 6
    rows = np.rint(np.maximum(rng.standard_normal((600, 40)) @ mixing, 0) * 500)
    weight = rng.standard_normal((6, 40))
    scale = np.abs(weight).max(1) / 7
    nearest = np.clip(np.rint(weight / scale[:, None]), -7, 7)
    problem = Problem(weight, nearest, scale, 7, rows[:400], rows[:400], np.zeros(400, bool))
    (made,) = AdaRound().offer(problem)
    assert np.abs(made.codes - weight / scale[:, None]).max() <= 1
    unseen = rows[400:] - rows[400:].mean(0)

    def error(codes: Array) -> float:
        return float(((unseen @ (codes * scale[:, None] - weight).T) ** 2).sum())

    assert error(made.codes) < 0.85 * error(nearest)
    wide = problem._replace(weight=np.ones((4, 2000)), scale=np.ones(4))
    assert list(AdaRound().offer(wide)) == []


def test_positions_that_nothing_attends_to_do_not_count() -> None:
    n = Net(6)
    scores = n("Add", n("MatMul", "x", n("Transpose", "x", perm=[0, 1, 3, 2])), "mask")
    proto = n.model(
        {"x": (F, [1, 2, 6, 4]), "mask": (F, [1, 1, 1, 6])}, n("MatMul", n("Softmax", scores, axis=-1), "x")
    )
    rng = np.random.default_rng(1)
    mask = np.array([0, 0, 0, -1e4, -1e4, -1e4], np.float32).reshape(1, 1, 1, 6)
    (read,) = attended(
        from_proto(proto), [{"x": rng.standard_normal((1, 2, 6, 4)).astype(np.float32), "mask": mask}]
    )
    assert read.tolist() == [[True, True, True, True, False, False]]
    x = rng.standard_normal((1, 6, 5)).astype(np.float32)
    assert np.array_equal(counting(x, read), x[0, :4])
    assert counting(x[:, :5], read).shape == (1, 5, 5)


def real(name: str, folder: Path, calib: int, count: int) -> tuple[ir.Model, Refined, Calibration, Any]:
    np.savez(folder / "calib.npz", **samples(name, calib, "calib"))
    source = load(model_path(name))
    calibration = Calibration(folder / "calib.npz", source)
    model, refined = prepared(source, calibration)
    given = samples(name, count, "eval")
    feeds = [{k: a[i : i + 1] for k, a in given.items()} for i in range(count)]
    return model, refined, calibration, feeds


@needs_assets
@pytest.mark.slow
def test_equalization_on_a_real_model(tmp_path: Path) -> None:
    model, refined, _, feeds = real("espcn_x3", tmp_path, 32, 12)
    quantize = refined.quantize
    plain, equal = model.clone(), model.clone()
    quantize(plain)
    equalize = Equalize(quantize.measured())
    assert equalize(equal).count > 0
    replace(quantize, measured=equalize.result)(equal)
    before, after = distances(model, (plain, equal), feeds)
    print(f"error {before:.5f} -> {after:.5f}")
    assert after < 0.3 * before


@needs_assets
@pytest.mark.slow
def test_adaround_on_a_real_model(tmp_path: Path) -> None:
    model, refined, calibration, feeds = real("espcn_x3", tmp_path, 32, 12)
    plain = model.clone()
    refined.quantize(plain)
    rounded = plain.clone()
    Fit(model, rounded, list(calibration.feeds()), (AdaRound(work=3e6),)).run()
    before, after = distances(model, (plain, rounded), feeds)
    print(f"error {before:.5f} -> {after:.5f}")
    assert after < 0.5 * before
