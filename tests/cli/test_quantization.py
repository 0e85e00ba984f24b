"""--recipe and --dtype on the command line, and what the manifest and the report say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tapeout
from tests.cli.conftest import Cli, spoiled


def data(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    np.savez(folder / "calib.npz", x=rng.standard_normal((6, 3, 8, 8)).astype(np.float32))
    return folder / "calib.npz"


def test_recipe_and_dtype(cli: Cli, model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('scheme = "int8"\n[[rule]]\nop = "Conv"\nrange = "mse"\n')
    done = cli(
        "export", model, "--recipe", recipe, "--calibration", data(tmp_path), "--dtype", "x=int8",
        "-o", tmp_path / "m.tflite", "--no-verify", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    manifest, report = done.json()["manifest"], done.json()["report"]
    assert manifest["scheme"] == "int8"
    said = manifest["quantization"]
    assert said["recipe"]["rule"] == [{"op": "Conv", "range": "mse"}]
    assert said["interface"]["x"]["scale"] > 0
    assert said["macs"]["int8"] == said["macs"]["total"] > 0
    assert report["quantization"]["bits"]["x"] == 8
    assert "multiply-accumulates: 100% int8; " in done.err and "of activations wider than 8 bits" in done.err
    in_file = tapeout.inspect(tmp_path / "m.tflite")["subgraphs"][0]["operators"]
    assert sum(manifest["placement"].values()) == sum(in_file.values())


def test_what_does_not_fit(cli: Cli, model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[rule]]\nnode = "nothing*"\nscheme = "float32"\n')
    calibration = ("--calibration", data(tmp_path), "-o", tmp_path / "m.tflite", "--no-verify")
    for more, words in (
        (("--recipe", recipe), "states no scheme"),
        (("--recipe", recipe, "--quantize", "int8"), "matches nothing"),
        (("--dtype", "q=int8", "--quantize", "int8"), "no input or output 'q'"),
        (("--dtype", "x=int8"), "does not compute in integers"),
    ):
        done = cli("export", model, *more, *calibration)
        assert done.code == 2 and words in done.err, done.err
    assert not (tmp_path / "m.tflite").exists()


@pytest.mark.parametrize("target", ["tflite", "openvino"])
def test_integers_are_verified_and_compared_layer_by_layer(
    cli: Cli, model: Path, tmp_path: Path, target: str
) -> None:
    calibration, path = data(tmp_path), tmp_path / f"m{'.xml' if target == 'openvino' else '.tflite'}"
    border = ("--dtype", "x=int8") if target == "tflite" else ()
    given = ("--target", target, "--quantize", "int8", "--calibration", calibration, *border)
    done = cli("export", model, *given, "--shape", "x=1,3,8,8", "-o", path)
    assert done.code == 0, done.err
    done = cli("verify", path, "--against", model, "--data", calibration)
    assert done.code == 0 and "holds" in done.err and "SQNR >= 3 dB" in done.err, done.err
    done = cli("compare", model, path, "--data", calibration)
    assert done.code == 0 and "no bound is put on a single part" in done.out, done.out + done.err
    layers = {
        f["tensor"]: f for f in cli("compare", model, path, "--data", calibration, "--json").json()["layers"]
    }
    assert set(layers) >= {"y", "z"}
    # Rounded to 255 steps, of weights rounded to 255 steps.
    assert all(layer["local"] < 0.02 for layer in layers.values()), layers
    # Another convolution than the artifact's: the part that is wrong shows it, what follows does not.
    found = cli("compare", spoiled(tmp_path / "wrong.onnx"), path, "--data", calibration, "--json").json()
    assert found["worst"]["nodes"][0] == "conv" and found["worst"]["local"] > 0.05
