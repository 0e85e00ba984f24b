"""A plugin that is at fault is named and contained: exit code 8, and other targets are unaffected."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import tapeout
from tapeout.compiler import containment
from tapeout.compiler.errors import TapeoutError, UnsupportedError, UsageError, VendorToolError
from tapeout.compiler.foreign import Ported
from tapeout.compiler.target import loadable, target
from tests.passtext import parse
from tests.sdk.plugin import TOML, install

Install = Callable[..., Path]
MODEL = """agraph (float[2,3] x) => (float[2,3] y) <float[3] b = {1.0, -2.0, 3.0}>
{ [a] c = Add (x, b) [r] y = Relu (c) }"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs packages for one test."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))

    def make(extra: str = "", **how: str) -> Path:
        made = install(folder, extra, **how)
        importlib.invalidate_caches()
        return made

    yield make
    for name in [m for m in sys.modules if m.split(".")[0].endswith("_target")]:
        del sys.modules[name]


def export(name: str, folder: Path, **how: object) -> tapeout.Export:
    return tapeout.export(parse(MODEL), name, output=folder / f"out.{name}", **how)  # type: ignore[arg-type]


def refused(name: str, folder: Path, **how: object) -> TapeoutError:
    with pytest.raises(TapeoutError) as caught:
        export(name, folder, **how)
    assert list(folder.glob("*out*")) == [], "nothing is left behind"
    error = caught.value
    assert (error.exit_code, isinstance(error, VendorToolError)) == (8, True), str(error)
    assert f"'{name}'" in error.message or f"{name}_target" in error.message
    return error


def test_a_sound_plugin_is_proven(plugin: Install, tmp_path: Path) -> None:
    plugin()
    found = export("acme", tmp_path)
    assert found.report["verification"]["holds"] and found.report["proof"]["proven"] == ["NumPy on cpu"]
    assert [t.name for t in loadable()[0]].count("acme") == 1


IMPORTING = {
    "an exception": (
        "raise RuntimeError('no licence found')",
        "its import failed: RuntimeError: no licence found",
    ),
    "an exit": ("raise SystemExit(3)", "its import failed: SystemExit: 3"),
    "a module that is missing": ("import acme_sdk_that_is_not_here", "ModuleNotFoundError"),
    "no target": ("TARGET = 7", "it is a int, expected a Target"),
    "another name": (
        "import dataclasses\nTARGET = dataclasses.replace(TARGET, name='else')",
        "its name is 'else', its entry point's 'acme'",
    ),
    "no devices": (
        "import dataclasses\nTARGET = dataclasses.replace(TARGET, devices=())",
        "its devices are ()",
    ),
}


@pytest.mark.parametrize("case", IMPORTING)
def test_a_plugin_that_does_not_import(case: str, plugin: Install, tmp_path: Path) -> None:
    code, says = IMPORTING[case]
    plugin(code)
    error = refused("acme", tmp_path)
    assert says in error.message and "of package 'acme-target' (acme_target:TARGET)" in error.message
    # What others do that look at every target:
    assert "tflite" in [t.name for t in loadable()[0]]
    assert target("tflite").devices
    with pytest.raises(UsageError, match="no device 'nothing'") as caught:
        export("tflite", tmp_path, device="nothing")
    assert says in str(caught.value.hint)
    assert tapeout.export(parse(MODEL), "tflite", output=tmp_path / "a.tflite").report["verification"][
        "holds"
    ]
    assert tapeout.inspect(tmp_path / "a.tflite")["kind"] == "tflite"


DECLARING = {
    "api = 7\n": "version 7 of the plugin interface",
    TOML.replace("op.Relu", "op.Rely"): "unknown operator 'Rely'",
    TOML.replace("lower =", "lowr =", 1): "unknown key 'lowr'",
    TOML + 'ports.Z = {dtype = "float32"}\n': "unknown port 'Z'",
    TOML + 'quantity."stride.max" = {max = 2': "is not valid TOML",
}


@pytest.mark.parametrize("text", DECLARING, ids=list(DECLARING.values()))
def test_a_declaration_that_is_not_understood(text: str, plugin: Install, tmp_path: Path) -> None:
    plugin(toml=text)
    error = refused("acme", tmp_path)
    assert DECLARING[text] in error.message and "target.toml" in error.message


BREAK = """
import dataclasses
def broken(*_):
    {code}
TARGET = dataclasses.replace(TARGET, {field}=broken)
"""


@pytest.mark.parametrize(
    ("field", "part"), [("passes", "its tuple of passes"), ("emit", "its emitter"), ("runners", "its runner")]
)
def test_what_a_plugin_raises(field: str, part: str, plugin: Install, tmp_path: Path) -> None:
    plugin(BREAK.format(field=field, code="return {}['missing']"))
    error = refused("acme", tmp_path)
    assert f"{part} failed: KeyError: 'missing' (__init__.py, line" in error.message


def test_what_a_pass_of_a_plugin_raises(plugin: Install, tmp_path: Path) -> None:
    plugin(BREAK.format(field="passes", code="def fold(model): return 1 / 0\n    return (fold,)"))
    assert "its pass 'fold' failed: ZeroDivisionError" in refused("acme", tmp_path).message


def test_a_pass_that_breaks_the_graph(plugin: Install, tmp_path: Path) -> None:
    code = """
    def cut(model):
        for node in model.graph:
            node.metadata_props.clear()
        return sdk.Changes(1)
    return (cut,)"""
    plugin(BREAK.format(field="passes", code=textwrap.dedent(code).replace("\n", "\n    ").strip()))
    assert "the graph is not valid after its pass 'cut'" in refused("acme", tmp_path).message


def test_a_runner_that_raises_while_it_runs(plugin: Install, tmp_path: Path) -> None:
    plugin("def run(self, inputs): raise ValueError('board is off')\nRunner.run = run")
    assert "its runner failed: ValueError: board is off" in refused("acme", tmp_path).message


def test_what_a_runner_can_do_besides_is_kept_and_held(plugin: Install, tmp_path: Path) -> None:
    """`reset` of one that keeps state, and what one says of its artifact."""
    plugin("""
    class Stateful(Runner):
        quantized = False
        count = 0
        def ports(self): return [], []
        def names(self): return ["y"]
        def reset(self): return self.missing
    import dataclasses
    TARGET = dataclasses.replace(TARGET, runners=lambda path, request: [Stateful(path)])
    """)
    made = export("acme", tmp_path)
    (runner,) = target("acme").runners(made.artifact, None)  # type: ignore[arg-type]
    assert isinstance(runner, Ported) and runner.names() == ["y"]
    with pytest.raises(VendorToolError, match="its runner failed: AttributeError"):
        runner.reset()  # type: ignore[attr-defined]


def test_what_a_plugin_says_on_purpose_goes_through(plugin: Install, tmp_path: Path) -> None:
    plugin(BREAK.format(field="emit", code="raise sdk.UnsupportedError('too large for acme')"))
    with pytest.raises(UnsupportedError, match=r"^too large for acme$"):
        export("acme", tmp_path)


WRITES = {
    "opens": "open({place!r}, 'w').write('x')",
    "opens and hides it": "import contextlib\n    with contextlib.suppress(Exception): open({place!r}, 'w')",
    "makes a folder": "import os; os.mkdir({place!r})",
    "renames": "import os, tempfile; os.rename(tempfile.mkstemp()[1], {place!r})",
}


@pytest.mark.parametrize("how", WRITES)
def test_writing_elsewhere(
    how: str, plugin: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))  # tests themselves lie in the system's
    place = tmp_path / "elsewhere"
    plugin(BREAK.format(field="emit", code=WRITES[how].format(place=str(place))))
    error = refused("acme", tmp_path)
    assert "its emitter writes" in error.message and str(place) in error.message
    assert not place.exists()


def test_an_artifact_that_is_a_folder_is_written_there(
    plugin: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    text = """
    import dataclasses
    plain = emit
    def inside(model, folder, request):
        with open(Path(folder, {name!r}), "wb") as sink:
            plain(model, sink, request)
    TARGET = dataclasses.replace(TARGET, emit=inside, folder="main.json", runners=lambda path, request:
        runners(Path(path, "main.json"), request))
    """
    plugin(text.format(name="main.json"))
    assert (export("acme", tmp_path).artifact / "main.json").is_file()


def test_the_temporary_folder_is_everybodys(plugin: Install, tmp_path: Path) -> None:
    plugin("""
    import dataclasses, tempfile
    plain = emit
    def busy(model, sink, request):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "scratch").write_text("x")
        plain(model, sink, request)
    TARGET = dataclasses.replace(TARGET, emit=busy)
    """)
    assert export("acme", tmp_path).artifact.exists()


@pytest.mark.parametrize("code", ["while True: pass", "import time; time.sleep(60)"])
@pytest.mark.parametrize("field", ["emit", "passes"])
def test_a_plugin_that_hangs(
    field: str, code: str, plugin: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(containment.LIMIT, "0.2")
    plugin(BREAK.format(field=field, code=code))
    start = time.perf_counter()
    assert "did not finish within 0.2 s" in refused("acme", tmp_path).message
    assert time.perf_counter() - start < 10


def test_a_plugin_that_hangs_and_catches_everything(
    plugin: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(containment.LIMIT, "0.2")
    plugin("""
    import dataclasses
    def stubborn(*_):
        try:
            while True: pass
        except BaseException:
            while True: pass
    TARGET = dataclasses.replace(TARGET, emit=stubborn)
    """)
    assert "did not finish" in refused("acme", tmp_path).message


def test_a_plugin_that_hangs_while_it_is_imported(
    plugin: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(containment.LIMIT, "0.2")
    plugin("while True: pass")
    assert "its import did not finish" in refused("acme", tmp_path).message
    assert "tflite" in [t.name for t in loadable()[0]]


def test_hanging_beside_the_main_thread(
    plugin: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    monkeypatch.setenv(containment.LIMIT, "0.2")
    plugin(BREAK.format(field="emit", code="while True: pass"))
    found: list[TapeoutError] = []
    thread = threading.Thread(target=lambda: found.append(refused("acme", tmp_path)))
    thread.start()
    thread.join(30)
    assert "did not finish" in found[0].message


def test_two_packages_of_one_name(plugin: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin()
    other = tmp_path / "other"
    info = other / "impostor-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: impostor\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[tapeout.targets]\nacme = acme_target:TARGET\ntflite = acme_target:TARGET\n"
    )
    monkeypatch.syspath_prepend(str(other))
    importlib.invalidate_caches()
    with pytest.raises(VendorToolError, match="several packages: acme-target, impostor"):
        target("acme")
    assert target("tflite").suffix == ".tflite", "a built-in name is ours"


@pytest.mark.slow
def test_on_the_command_line(plugin: Install, tmp_path: Path) -> None:
    """Native code that does not come back ends the process, with its exit code and its JSON."""
    from onnx import save

    folder = plugin(BREAK.format(field="emit", code="import ctypes; ctypes.CDLL(None).sleep(600)")).parent
    save(parse(MODEL), tmp_path / "m.onnx")
    code = f"""
import sys
sys.path.insert(0, {str(folder)!r})
from tapeout.compiler import containment
containment.GRACE = 0.5
from tapeout.cli import run
sys.exit(run(["export", {str(tmp_path / "m.onnx")!r}, "-t", "acme", "-o", {str(tmp_path / "out.acme")!r}, "--json"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={containment.LIMIT: "3"},
    )
    assert done.returncode == 8, done.stderr
    error = json.loads(done.stdout)["error"]
    assert (error["code"], error["kind"]) == (8, "vendor_tool") and "its emitter did not finish" in error[
        "message"
    ]
    assert list(tmp_path.glob("*out*")) + list(tmp_path.glob(".*out*")) == []


def test_a_named_pattern_is_taken_where_its_parts_are_refused(plugin: Install, tmp_path: Path) -> None:
    toml = TOML.replace('[[op.Add]]\nlower = "add"', '[[op."acme::BiasTanh"]]\nlower = "bias_tanh"').replace(
        'name = "acme"', 'name = "acme"\nfunctions = "functions.txt"'
    )
    package = plugin('KERNELS["bias_tanh"] = lambda x, b: np.tanh(x + b)', toml=toml)
    (package / "functions.txt").write_text(
        '<domain: "acme", opset_import: ["" : 25]> BiasTanh (x, b) => (y) { s = Add (x, b) y = Tanh (s) }'
    )
    text = MODEL.replace("Relu (c)", "Tanh (c)")
    made = tapeout.export(parse(text), "acme", output=tmp_path / "out.acme")
    assert made.manifest["placement"] == {"bias_tanh": 1} and made.report["verification"]["holds"]
    steps = json.loads(made.artifact.read_text())["steps"]
    assert steps == [["bias_tanh", ["x", "b"], "y"]]
    alone = tapeout.explain(parse(MODEL.replace("Relu (c)", "Tanh (x)")), "acme")
    assert [line.name for line in alone.refused] == ["r"]
    feed = {"x": np.ones((2, 3), np.float32)}
    (runner,) = target("acme").runners(made.artifact, None)  # type: ignore[arg-type]
    np.testing.assert_allclose(runner.run(feed)["y"], np.tanh(feed["x"] + [1, -2, 3]), rtol=1e-6)


def test_a_row_for_a_function_that_is_not_there(plugin: Install, tmp_path: Path) -> None:
    toml = TOML.replace('name = "acme"', 'name = "acme"\nfunctions = "f.txt"') + '[[op."acme::BiasTan"]]\n'
    package = plugin(toml=toml)
    (package / "f.txt").write_text(
        '<domain: "acme", opset_import: ["" : 25]> BiasTanh (x, b) => (y) { s = Add (x, b) y = Tanh (s) }'
    )
    error = refused("acme", tmp_path)
    assert "unknown function 'acme::BiasTan'" in error.message and "acme::BiasTanh" in str(error.hint)


def test_the_first_temporary_folder_of_a_process_may_be_a_plugins() -> None:
    code = (
        "import tempfile; from tapeout.compiler.containment import contained\n"
        "with contained('x', 'y', 5): tempfile.TemporaryDirectory().cleanup()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
