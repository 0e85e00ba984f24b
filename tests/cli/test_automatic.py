"""`tapeout sensitivity` and `--quantize auto`: on a network whose right answer is known, and on a real model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from tests.asset_samples import samples
from tests.assets import model_path, needs_assets
from tests.cli.conftest import Cli

pytestmark = pytest.mark.slow

# Each product is exact from some precision on and far from it below: 4 bits, 8 bits, float16.
NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
three (float[N,96] x) => (float[N,96] y)
{
   [four] a = MatMul (x, w4)
   [r0] ra = Relu (a)
   [eight] b = MatMul (ra, w8)
   [r1] rb = Relu (b)
   [half] y = MatMul (rb, w16)
}
"""
EXACT = {"four": "w4", "eight": "w8", "half": "float16"}


@pytest.fixture
def three(tmp_path: Path) -> tuple[Path, Path]:
    """The network and calibration data for it."""
    rng = np.random.default_rng(5)
    model = parser.parse_model(NETWORK)
    for name, most in {"w4": 7, "w8": 127}.items():
        codes = rng.integers(-most, most + 1, (96, 96)).astype(np.float32)
        codes[0] = most  # every channel reaches the last code
        model.graph.initializer.append(numpy_helper.from_array(codes / np.float32(16 * most), name))
    half = rng.standard_normal((96, 96)).astype(np.float16).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(half, "w16"))
    onnx.save(model, tmp_path / "three.onnx")
    np.savez(tmp_path / "calib.npz", x=rng.standard_normal((24, 96)).astype(np.float32))
    return tmp_path / "three.onnx", tmp_path / "calib.npz"


def test_each_layer_gets_the_fewest_bits_that_are_exact(
    cli: Cli, three: tuple[Path, Path], tmp_path: Path
) -> None:
    model, data = three
    out = tmp_path / "m.tflite"
    done = cli(
        "export",
        model,
        "--quantize",
        "auto",
        "--max-drop",
        "1e-6",
        "--calibration",
        data,
        "-o",
        out,
        "--json",
    )
    assert done.code == 0, done.err
    found = done.json()["report"]["auto"]
    assert {r["layer"]: r["scheme"] for r in found["layers"]} == EXACT
    assert found["drop"] <= 1e-6
    bits = 4 / 8 + 8 / 8 + 16 / 8
    assert out.stat().st_size < 1.5 * bits * 96 * 96
    manifest = json.loads((tmp_path / "m.tflite.manifest.json").read_text())
    stated = {r["node"][0]: r["scheme"] for r in manifest["quantization"]["recipe"]["rule"]}
    assert stated == {k: v for k, v in EXACT.items() if v != manifest["scheme"]}


def test_more_may_be_lost_for_less_size(cli: Cli, three: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = three
    costs = []
    for most in ("60dB", "20dB"):
        done = cli(
            *(
                "export",
                model,
                "--quantize",
                "auto",
                "--max-drop",
                most,
                "--calibration",
                data,
                "--no-verify",
            ),
            *("-o", tmp_path / "m.tflite", "--json"),
        )
        assert done.code == 0, done.err
        found = done.json()["report"]["auto"]
        assert found["drop"] <= found["max_drop"]
        costs.append(found["cost"])
    assert costs[1] < costs[0]


def test_a_rule_of_the_user_wins(cli: Cli, three: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = three
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[rule]]\nnode = "four"\nscheme = "float32"\n')
    done = cli(
        *("export", model, "--quantize", "auto", "--max-drop", "1e-6", "--calibration", data, "--no-verify"),
        *("--recipe", recipe, "-o", tmp_path / "m.tflite", "--json"),
    )
    assert done.code == 0, done.err
    rules = done.json()["manifest"]["quantization"]["recipe"]["rule"]
    assert rules[-1] == {"node": "four", "scheme": "float32"}
    assert done.json()["manifest"]["artifact"]["bytes"] > 4 * 96 * 96


def test_layers_are_ranked(cli: Cli, three: tuple[Path, Path]) -> None:
    model, data = three
    done = cli("sensitivity", model, "--calibration", data, "--quantize", "w4", "--json")
    assert done.code == 0, done.err
    rows = done.json()["rows"]
    assert [r["alone"] for r in rows] == sorted((r["alone"] for r in rows), reverse=True)
    by_name = {r["layer"]: r for r in rows}
    assert by_name["four"]["alone"] < 1e-9 < 1e-3 < by_name["eight"]["alone"]
    assert by_name["four"]["accumulated"] < by_name["eight"]["accumulated"] < by_name["half"]["accumulated"]
    assert done.json()["whole"] == by_name["half"]["accumulated"]
    table = cli("sensitivity", model, "--calibration", data, "--quantize", "w4", "--top", "2").out
    assert "1 more add less" in table and "accumulated" not in table and "exact" not in table


def test_what_does_not_fit(cli: Cli, three: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = three
    out = tmp_path / "m.tflite"
    for more, words in (
        (("--quantize", "auto"), "there is no calibration data"),
        (("--quantize", "int8", "--calibration", data, "--max-drop", "0.1"), "--max-drop is for the search"),
        (("--quantize", "auto", "--calibration", data, "--max-drop", "some"), "expected a share"),
        (("--quantize", "auto", "--calibration", data, "--max-drop", "0"), "expected a share"),
        (("--quantize", "auto", "--calibration", data, "--option", "objective=price"), "size, latency"),
    ):
        done = cli("export", model, "-o", out, *more)
        assert done.code == 2 and words in done.err, done.err
    done = cli("sensitivity", model, "--calibration", data, "--quantize", "float32")
    assert done.code == 2 and "rounds nothing" in done.err
    assert not out.exists()


@needs_assets
@pytest.mark.slow
@pytest.mark.parametrize("objective", ["size", "latency"])
def test_a_real_model(cli: Cli, tmp_path: Path, objective: str) -> None:
    np.savez(tmp_path / "calib.npz", **samples("ic01_resnet8", 48, "calib"))
    done = cli(
        *("export", model_path("ic01_resnet8"), "--quantize", "auto", "--max-drop", "0.01", "--calibration"),
        *(
            tmp_path / "calib.npz",
            "--option",
            f"objective={objective}",
            "-o",
            tmp_path / "m.tflite",
            "--json",
        ),
    )
    assert done.code == 0, done.err
    found = done.json()["report"]["auto"]
    assert found["drop"] <= 0.01
    kinds = {r["scheme"] for r in found["layers"]}
    if objective == "size":
        # Less than 8 bits everywhere, and some layer does not bear 4.
        assert found["cost"] < sum(r["cost"]["w8"] for r in found["layers"])
        assert {"w4", "w8"} <= kinds
    else:
        assert found["cost"] < found["seconds"]["float32"] and "int8" in kinds
