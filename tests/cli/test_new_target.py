"""A new target's package: written whole, passes the kit's first levels at once, serves as a target by its folder
and when it is installed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tapeout.cli import run
from tapeout.compiler.errors import UsageError
from tapeout.scaffold import FILES, new_target

LEVELS = ("load", "generated", "refused", "graphs", "damaged")
MODEL = """
<ir_version: 10, opset_import: ["" : 25]>
agraph (float[2,3] x) => (float[2,4] y) <float[3,4] w, float[4] b> {
    [matrix] m = MatMul (x, w)
    [bias] s = Add (m, b)
    [act] y = Relu (s)
}"""


def model(path: Path) -> Path:
    made = onnx.parser.parse_model(MODEL)
    rng = np.random.default_rng(3)
    for name, shape in (("w", (3, 4)), ("b", (4,))):
        array = rng.normal(size=shape).astype(np.float32)
        made.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(made, path)
    return path


def test_the_minimal_target_is_small(tmp_path: Path) -> None:
    files = new_target("acme", tmp_path / "acme")
    target = [f for f in files if "src" in f.parts]
    assert len(target) == 3 and sum(len(f.read_text().splitlines()) for f in target) <= 150
    assert len(files) == len(FILES)
    assert not [f for f in files if re.search(r"@[A-Z]+@", f.read_text())]


@pytest.mark.slow
def test_one_command_from_nothing_to_the_first_levels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["new-target", "first-light", "--check", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["check"]["ok"] and set(found["check"]["levels"]) == set(LEVELS)
    assert found["check"]["levels"]["generated"] == {"pass": 60}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["first-light"]


@pytest.mark.slow
def test_by_its_folder_and_installed_it_exports_and_verifies(tmp_path: Path) -> None:
    new_target("acme", tmp_path / "acme")
    site, source = tmp_path / "site", model(tmp_path / "m.onnx")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-build-isolation",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*pip, "--target", str(site), str(tmp_path / "acme")], check=True, capture_output=True)
    for name, more in (("./acme", {}), ("acme", {"PYTHONPATH": str(site)})):
        command = [
            sys.executable,
            "-m",
            "tapeout",
            "export",
            "m.onnx",
            "--target",
            name,
            "-o",
            "m.acme",
            "--json",
        ]
        done = subprocess.run(
            command, cwd=tmp_path, env={"PATH": "/usr/bin:/bin", **more}, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        assert "NumPy" in done.stderr.decode() and (tmp_path / "m.acme").stat().st_size > 64
        for made in tmp_path.glob("m.acme*"):
            made.unlink()
    assert source.exists()


@pytest.mark.parametrize("name", ["Acme", "a b", "9th", "a--b", "-a", "a_b", "x" * 41, "é", "../x", ""])
def test_a_name_that_is_none_is_one_message(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["new-target", "-o", str(tmp_path / "new"), "--", name]) == 2
    assert "is no name for a target" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="installed already"):
        new_target("tflite", tmp_path / "new")
    (tmp_path / "old").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        new_target("acme", tmp_path / "old")
    assert [p.name for p in tmp_path.iterdir()] == ["old"]


def test_a_folder_without_a_place_and_a_full_disk_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["new-target", "acme", "-o", str(tmp_path / "no" / "acme")]) == 10
    assert "cannot write" in capsys.readouterr().err

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tapeout.scaffold.os.rename", full)
    assert run(["new-target", "acme", "-o", str(tmp_path / "acme")]) == 10
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no target in"),
        ("[project", "cannot be read"),
        ("[project]\nname = 'x'\n", "has 0 entry points"),
        ("project = 3\n", "cannot be read"),
    ],
)
def test_a_folder_that_is_no_target_is_one_message(
    text: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "pyproject.toml").write_text(text)
    assert run(["conformance", str(tmp_path), "--level", "load"]) == 2
    assert said in capsys.readouterr().err
