"""tapeout calibrate, and calibration data in an export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import tapeout
from tests.cli.conftest import Cli, small_model


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.npz"
    np.savez(path, x=np.random.default_rng(0).standard_normal((6, 3, 8, 8)).astype(np.float32))
    return path


def test_statistics_are_the_same_bytes_each_time(cli: Cli, model: Path, data: Path, tmp_path: Path) -> None:
    contents = set()
    for jobs in (1, 2):
        done = cli("calibrate", model, "--calibration", data, "-o", tmp_path / "s.json", "-j", jobs, "--json")
        assert done.code == 0, done.err
        assert done.json()["samples"] == 6 and done.json()["targets"]
        contents.add((tmp_path / "s.json").read_bytes())
    assert len(contents) == 1


def test_from_python_and_from_a_file_of_python(model: Path, data: Path, tmp_path: Path, cli: Cli) -> None:
    x = np.load(data)["x"]
    found = tapeout.calibrate(model, lambda: iter(x), target="tflite", output=tmp_path / "a.json")
    assert found.output == tmp_path / "a.json" and found.statistics.samples == 6
    (tmp_path / "frames.py").write_text(
        f"import numpy\ndef frames():\n    yield from numpy.load({str(data)!r})['x']\n"
    )
    done = cli(
        "calibrate", model, "--calibration", f"{tmp_path / 'frames.py'}:frames", "-o", tmp_path / "b.json"
    )
    assert done.code == 0, done.err
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--calibration", "none.npz", "-o", "s.json"), "does not exist"),
        (("--calibration", "data.npz", "-o", "s.txt"), "is no .json file"),
        (
            ("--calibration", "data.npz", "-o", "s.json", "--preprocess", "rgb"),
            "--preprocess is for a folder",
        ),
        (("--calibration", "data.npz", "-o", "s.json", "-t", "nowhere"), "no target 'nowhere'"),
        (("--calibration", "frames.py:frames", "-o", "s.json"), "frames.py' of --calibration"),
        (("--calibration", "broken.py:frames", "-o", "s.json"), "broken.py' does not run: ValueError: no"),
        (("--calibration", "nan.npz", "-o", "s.json"), "holds NaN"),
    ],
)
def test_bad_input_leaves_nothing(
    cli: Cli,
    model: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("raise ValueError('no')")
    np.savez(tmp_path / "nan.npz", x=np.full((6, 3, 8, 8), np.nan, np.float32))
    before = sorted(p.name for p in tmp_path.iterdir() if p.name != "__pycache__")
    done = cli("calibrate", model, *arguments)
    assert done.code == 2 and words in done.err
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "__pycache__") == before


def test_an_export_without_need_of_data_refuses_it(cli: Cli, model: Path, data: Path, tmp_path: Path) -> None:
    done = cli("export", model, "-o", tmp_path / "o.tflite", "--calibration", data)
    assert done.code == 2 and "nothing to calibrate" in done.err
    assert not (tmp_path / "o.tflite").exists()


def test_statistics_of_another_file_are_refused(cli: Cli, model: Path, data: Path, tmp_path: Path) -> None:
    from tapeout.calibrating import same_model
    from tapeout.compiler.calibration import Calibration
    from tapeout.compiler.ir.load import load
    from tapeout.compiler.target import Request

    assert cli("calibrate", model, "--calibration", data, "-o", tmp_path / "s.json").code == 0
    loaded = load(model)
    calibration = Calibration(tmp_path / "s.json", loaded)
    calibration.collected = calibration._loaded
    request = Request("int8", calibration=calibration)
    from tapeout.compiler.artifact import digest

    same_model(request, [digest(model)])
    other = small_model()
    other.graph.initializer[0].raw_data = bytes(len(other.graph.initializer[0].raw_data))
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(tapeout.TapeoutError, match="made from another model file"):
        same_model(request, [digest(tmp_path / "other.onnx")])


def test_artifacts_are_the_same_under_any_number_of_threads_and_from_statistics(
    cli: Cli, model: Path, data: Path, tmp_path: Path
) -> None:
    """Refinement reads the samples themselves, which statistics do not hold: it is off for the comparison."""
    assert cli("calibrate", model, "--calibration", data, "-t", "tflite", "-o", tmp_path / "s.json").code == 0

    def exported(source: Path, jobs: int, refine: str) -> bytes:
        place = tmp_path / "o.tflite"
        how = ["--quantize", "int8", "--calibration", source, "-j", jobs, "--option", f"refine={refine}"]
        done = cli("export", model, *how, "-o", place, "--no-verify")
        assert done.code == 0, done.err
        return place.read_bytes()

    plain = {exported(s, j, "off") for s in (data, tmp_path / "s.json") for j in (1, 2)}
    refined = {exported(data, j, "full") for j in (1, 2)}
    assert len(plain) == len(refined) == 1
    assert plain != refined


def test_a_static_scheme_without_data_says_what_there_is(cli: Cli, model: Path, tmp_path: Path) -> None:
    done = cli("export", model, "--quantize", "int8", "-o", tmp_path / "o.tflite")
    assert done.code == 2 and "needs calibration data" in done.err
    assert "--calibration random" in done.err and "w8" in done.err
    assert not (tmp_path / "o.tflite").exists()
