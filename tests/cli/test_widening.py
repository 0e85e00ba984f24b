"""A float16 export whose weights lose too much: those that need it stay wide, or it fails and says why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import tapeout
from tapeout.compiler import narrowing
from tests.cli.conftest import Cli


@pytest.fixture
def cancelling(tmp_path: Path) -> Path:
    """h = x W0; y = h W1 - h W2 with W2 within 0.1% of W1: what is left drowns in float16's rounding of both."""
    model = parser.parse_model("""<ir_version: 10, opset_import: ["" : 21]>
    m (float[N,32] x) => (float[N,8] y) { h = MatMul (x, w0) a = MatMul (h, w1) b = MatMul (h, w2) y = Sub (a, b) }""")
    rng = np.random.default_rng(0)
    w1 = rng.standard_normal((128, 8))
    weights = {
        "w0": rng.standard_normal((32, 128)),
        "w1": w1,
        "w2": w1 * (1 + 1e-3 * rng.standard_normal(w1.shape)),
    }
    for name, array in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    onnx.save(model, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_the_weights_that_need_it_stay_wide(cli: Cli, cancelling: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.tflite"
    done = cli("export", cancelling, "-o", out, "--quantize", "float16", "--json")
    assert done.code == 0, done.err
    report, manifest = done.json()["report"], done.json()["manifest"]
    assert report["narrowing"]["weights"] == 3 and len(report["narrowing"]["wide"]) == 2
    assert report["narrowing"]["before"] > 5 and report["narrowing"]["after"] < 0.85
    assert "2 of 3 weights (33% of their bytes) stay wide" in done.err
    assert report["verification"]["holds"]
    assert cli("verify", out, "--against", cancelling).code == 0
    assert cli("compare", cancelling, out).code == 0
    again = cli(
        "export", cancelling, "-o", tmp_path / "n.tflite", "--quantize", "float16", "--json",
        "--option", f"wide={manifest['options']['wide']}",
    )  # fmt: skip
    assert again.json()["manifest"]["artifact"]["sha256"] == manifest["artifact"]["sha256"]
    assert "narrowing" not in again.json()["report"]


def test_where_too_much_would_stay_wide_it_fails(
    cancelling: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(narrowing, "MOST", 0.1)
    with pytest.raises(tapeout.TapeoutError, match="33% of their bytes would have to stay float32") as raised:
        tapeout.export(cancelling, output=tmp_path / "m.tflite", quantize="float16")
    assert raised.value.exit_code == 5 and "float32" in (raised.value.hint or "")
    assert not list(tmp_path.glob("*.tflite"))
