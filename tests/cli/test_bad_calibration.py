"""Calibration data and recipes that are not fit: one clear message each, and nothing written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser

from tests.cli.conftest import Cli

RNG = np.random.default_rng(1)
GOOD = RNG.standard_normal((6, 3, 8, 8)).astype(np.float32)
NAN, INFINITE = GOOD.copy(), GOOD.copy()
NAN[2, 0, 0, 0], INFINITE[4, 1, 2, 3] = np.nan, np.inf

DATA: dict[str, tuple[dict[str, Any], str]] = {
    "names": ({"image": GOOD, "other": GOOD}, "no array for input 'x'"),
    "shapes": ({"x": GOOD[:, :2]}, "shape"),
    "ranks": ({"x": GOOD[..., 0]}, "shape"),
    "dtypes": ({"x": (GOOD * 10).astype(np.int32)}, "int32"),
    "nan": ({"x": NAN}, "NaN"),
    "infinity": ({"x": INFINITE}, "inf"),
    "few": ({"x": GOOD[:2]}, "holds 2 samples, at least 4"),
    "none": ({"x": GOOD[:0]}, "sample"),
    "constant": ({"x": np.full_like(GOOD, 0.5)}, "is constant"),
}
RULES = {
    "node": ('[[rule]]\nnode = "konv"\nscheme = "float32"\n', "matches nothing"),
    "operator": ('[[rule]]\nop = "Konv"\nscheme = "float32"\n', "matches nothing"),
    "tensor": ('[[rule]]\ntensor = "nothing"\nrange = "mse"\n', "matches nothing"),
    "empty range": ('[[rule]]\ntensor = "y"\nrange = [1.0, 1.0]\n', "is empty or infinite"),
    "infinite range": ('[[rule]]\ntensor = "y"\nrange = [0.0, inf]\n', "is empty or infinite"),
    "scheme": ('[[rule]]\nnode = "conv"\nscheme = "int9"\n', "unknown scheme 'int9'"),
    "key": ('[[rule]]\nnodes = "conv"\nscheme = "int8"\n', "unknown key 'nodes'"),
    "method": ('[[rule]]\nnode = "conv"\nrange = "minimax"\n', "unknown method 'minimax'"),
    "islands": ("islands = 1\n", "islands is 1"),
}


def refused(cli: Cli, folder: Path, words: str, *arguments: Any, code: int = 2) -> str:
    """The message of an export that is refused with one line (and a hint), and that writes nothing."""
    before = sorted(folder.rglob("*"))
    done = cli("export", *arguments, "--quantize", "int8", "-o", folder / "out.tflite")
    assert done.code == code, done.err
    (line,) = [text for text in done.err.splitlines() if text.startswith("error:")]
    assert words.lower() in line.lower(), line
    assert "Traceback" not in done.err and not done.out
    assert sorted(folder.rglob("*")) == before
    return line


@pytest.mark.parametrize("kind", DATA)
def test_data(cli: Cli, model: Path, tmp_path: Path, kind: str) -> None:
    arrays, words = DATA[kind]
    np.savez(tmp_path / "data.npz", **arrays)
    refused(cli, tmp_path, words, model, "--calibration", tmp_path / "data.npz")


@pytest.mark.parametrize("kind", RULES)
def test_rules(cli: Cli, model: Path, tmp_path: Path, kind: str) -> None:
    text, words = RULES[kind]
    np.savez(tmp_path / "data.npz", x=GOOD)
    (tmp_path / "recipe.toml").write_text(text)
    recipe = ("--recipe", tmp_path / "recipe.toml")
    refused(cli, tmp_path, words, model, "--calibration", tmp_path / "data.npz", *recipe)


INFINITE_LAYER = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[1,4] x) => (float[1,4] y)
<float[4,4] w = {1,2,3,4, 1,1,2,1, 1,2,1,2, 3,1,2,1}, float big = {1000.0}>
{ [up] u = Mul (x, big)  [exp] e = Exp (u)  [product] y = MatMul (e, w) }
"""
EMPTY_LAYER = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[1,4] x) => (float[1,4] y)
<float[4,4] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}, float far = {100.0}>
{ [less] d = Sub (x, far)  [gone] u = Relu (d)  [product] v = MatMul (u, w)  [sum] y = Add (v, x) }
"""


def test_a_layer_whose_range_is_infinite(cli: Cli, tmp_path: Path) -> None:
    onnx.save(parser.parse_model(INFINITE_LAYER), tmp_path / "m.onnx")
    np.savez(tmp_path / "data.npz", x=RNG.standard_normal((8, 1, 4)).astype(np.float32))
    line = refused(
        cli, tmp_path, "infinite range", tmp_path / "m.onnx", "--calibration", tmp_path / "data.npz"
    )
    assert "'product'" in line


def test_a_layer_whose_range_is_empty(cli: Cli, tmp_path: Path) -> None:
    onnx.save(parser.parse_model(EMPTY_LAYER), tmp_path / "m.onnx")
    np.savez(tmp_path / "data.npz", x=RNG.standard_normal((8, 1, 4)).astype(np.float32))
    refused(cli, tmp_path, "0 everywhere", tmp_path / "m.onnx", "--calibration", tmp_path / "data.npz")


FIRST_STATE = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N,4] x) => (float[N,4] y)
<float[4,4] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}>
{ [size] s = Shape (x)  [start] h = ConstantOfShape (s)  [gate] r = Sigmoid (x)  [reset] m = Mul (r, h)
  [product] v = MatMul (m, w)  [sum] y = Add (v, x) }
"""


def test_a_first_state_may_be_zero(cli: Cli, tmp_path: Path) -> None:
    """What is multiplied by it is 0 on any data: nothing is missing."""
    onnx.save(parser.parse_model(FIRST_STATE), tmp_path / "m.onnx")
    np.savez(tmp_path / "data.npz", x=RNG.standard_normal((8, 4)).astype(np.float32))
    place = tmp_path / "out.tflite"
    done = cli(
        "export",
        tmp_path / "m.onnx",
        "--calibration",
        tmp_path / "data.npz",
        "--quantize",
        "int8",
        "-o",
        place,
    )
    assert done.code == 0, done.err
