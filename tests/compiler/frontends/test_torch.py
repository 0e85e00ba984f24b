"""torch modules and programs on their way to TFLite: the numbers of torch, the names of modules."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tapeout
from tapeout.compiler.errors import InvalidModelError, TapeoutError, UnsupportedError, UsageError

pytestmark = pytest.mark.slow


def litert(path: Path, **inputs: Any) -> dict[str, Any]:
    from ai_edge_litert.interpreter import Interpreter

    return dict(Interpreter(str(path)).get_signature_runner()(**inputs))


def network(torch: Any) -> Any:
    """Convolution, batch statistics far from their first values, a residual sum, a head."""
    nn = torch.nn

    class Block(nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

        def forward(self, x: Any) -> Any:
            return x + torch.relu(self.norm(self.conv(x)))

    class Net(nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, 8, 3, stride=2, padding=1)
            self.blocks = nn.Sequential(Block(), Block())
            self.head = nn.Linear(8, 3)

        def forward(self, x: Any) -> Any:
            x = self.blocks(self.stem(x)).mean((2, 3))
            return {"logits": self.head(x), "pooled": x}

    torch.manual_seed(5)
    model = Net()
    for _ in range(3):
        model(3 + 2 * torch.randn(4, 1, 16, 16))
    return model.eval()


def test_a_module_gives_the_numbers_of_torch(torch: Any, tmp_path: Path) -> None:
    model, x = network(torch), torch.randn(3, 1, 16, 16)
    done = tapeout.export(
        model, output=tmp_path / "o.tflite", example_inputs=(x[:2],), dynamic_shapes={"x": {0: "N"}}
    )
    interface = done.manifest["interface"]
    assert interface["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["N", 1, 16, 16]}]
    assert [o["name"] for o in interface["outputs"]] == ["logits", "pooled"]
    assert done.report["source"]["framework"].startswith("torch 2.13")
    assert done.report["source"]["conversion_error"] < 1e-5
    with torch.no_grad():
        expected = model(x)
    found = litert(done.artifact, x=x.numpy())
    for name in ("logits", "pooled"):
        np.testing.assert_allclose(found[name], expected[name].numpy(), rtol=0, atol=1e-5)


def test_reports_name_modules(torch: Any) -> None:
    told = tapeout.explain(network(torch), example_inputs=(torch.randn(2, 1, 16, 16),))
    sources = {s for line in told.lines for s in line.sources}
    assert {"stem", "blocks.0.conv", "blocks.1.norm", "head"} <= sources
    assert sources <= {
        "Net",
        "stem",
        "head",
        *(f"blocks.{i}{p}" for i in "01" for p in ("", ".conv", ".norm")),
    }


def test_refusals_name_modules(torch: Any) -> None:
    class Odd(torch.nn.Module):  # type: ignore[name-defined, misc]
        def forward(self, x: Any) -> Any:
            return torch.linalg.det(x)

    class Net(torch.nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.strange = Odd()

        def forward(self, x: Any) -> Any:
            return self.strange(x) + 1

    with pytest.raises(UnsupportedError) as found:
        tapeout.export(Net().eval(), example_inputs=(torch.randn(4, 4),))
    assert "'strange'" in found.value.message


def test_keywords_nesting_and_integers(torch: Any, tmp_path: Path) -> None:
    class Net(torch.nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(20, 6)

        def forward(self, ids: Any, more: Any, scale: float) -> Any:
            a, b = more
            return self.table(ids) * scale + a, b.transpose(0, 1)

    model = Net().eval()
    given = {"ids": torch.tensor([[3, 7]]), "more": (torch.randn(1, 2, 6), torch.randn(2, 5)), "scale": 0.5}
    done = tapeout.export(model, output=tmp_path / "o.tflite", example_inputs=given)
    names = [i["name"] for i in done.manifest["interface"]["inputs"]]
    assert len(names) == 3
    arrays = [given["ids"], *given["more"]]
    found = litert(done.artifact, **{n: a.numpy() for n, a in zip(names, arrays, strict=True)})
    for entry, wanted in zip(done.manifest["interface"]["outputs"], model(**given), strict=True):
        np.testing.assert_allclose(found[entry["name"]], wanted.detach().numpy(), rtol=0, atol=1e-6)


def test_a_program_in_memory(torch: Any, tmp_path: Path) -> None:
    model, x = network(torch), torch.randn(2, 1, 16, 16)
    done = tapeout.export(torch.export.export(model, (x,)), output=tmp_path / "o.tflite")
    np.testing.assert_allclose(
        litert(done.artifact, x=x.numpy())["logits"], model(x)["logits"].detach().numpy(), rtol=0, atol=1e-5
    )


def test_training_mode_is_refused(torch: Any) -> None:
    model = network(torch)
    model.blocks[1].train()
    with pytest.raises(UsageError, match=r"'blocks.1' is in training mode"):
        tapeout.export(model, example_inputs=(torch.randn(2, 1, 16, 16),))


def test_example_inputs_are_needed(torch: Any) -> None:
    with pytest.raises(UsageError, match="example_inputs are needed"):
        tapeout.export(network(torch))


def test_what_torch_cannot_trace_is_said(torch: Any) -> None:
    class Net(torch.nn.Module):  # type: ignore[name-defined, misc]
        def forward(self, x: Any) -> Any:
            return x + 1 if x.sum() > 0 else x - 1

    with pytest.raises(UnsupportedError, match=r"torch\.export cannot trace Net"):
        tapeout.export(Net().eval(), example_inputs=(torch.randn(3),))


def test_torchscript_is_refused(torch: Any) -> None:
    with pytest.warns(), pytest.raises(UnsupportedError, match="TorchScript"):
        tapeout.export(
            torch.jit.trace(torch.nn.Linear(2, 2), torch.randn(1, 2)), example_inputs=(torch.randn(1, 2),)
        )


# --- files ------------------------------------------------------------------------------------------------


@pytest.fixture
def program(torch: Any, tmp_path: Path) -> Path:
    path = tmp_path / "net.pt2"
    x = torch.randn(2, 1, 16, 16)
    batch = torch.export.Dim("N")
    torch.export.save(torch.export.export(network(torch), (x,), dynamic_shapes={"x": {0: batch}}), path)
    return path


def rewritten(path: Path, change: Callable[[str, bytes], bytes]) -> Path:
    made = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(made, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, change(info.filename, old.read(info)))
    path.write_bytes(made.getvalue())
    return path


@pytest.mark.slow
def test_a_program_file_gives_the_numbers_of_torch(torch: Any, program: Path, tmp_path: Path) -> None:
    done = tapeout.export(program, output=tmp_path / "o.tflite", depfile=tmp_path / "d")
    assert [i["name"] for i in done.manifest["inputs"]] == ["net.pt2"]
    assert str(program) in (tmp_path / "d").read_text()
    x = torch.randn(5, 1, 16, 16)
    expected = network(torch)(x)["logits"].detach().numpy()
    np.testing.assert_allclose(litert(done.artifact, x=x.numpy())["logits"], expected, rtol=0, atol=1e-5)
    again = tapeout.export(program, output=tmp_path / "p.tflite", verify=False)
    assert again.artifact.read_bytes() == done.artifact.read_bytes()
    assert tapeout.verify(done.artifact, program).verification.holds


@pytest.mark.slow
def test_example_inputs_in_a_file_are_never_unpickled(torch: Any, program: Path, tmp_path: Path) -> None:
    import pickle

    mark = tmp_path / "ran"

    class Runs:
        def __reduce__(self) -> Any:
            return Path.touch, (mark,)

    made = io.BytesIO()
    torch.save((Runs(),), made, pickle_module=pickle)
    rewritten(program, lambda name, data: made.getvalue() if "sample_inputs" in name else data)
    tapeout.export(program, output=tmp_path / "o.tflite", verify=False)
    assert not mark.exists()


@pytest.mark.slow
@pytest.mark.parametrize(("major", "minor"), [(99, 0), (7, 0), (8, 9999)])
def test_another_torch_is_named(program: Path, major: int, minor: int) -> None:
    def change(name: str, data: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return data
        graph = json.loads(data)
        graph["schema_version"], graph["torch_version"] = {"major": major, "minor": minor}, "9.9.9"
        return json.dumps(graph).encode()

    with pytest.raises(
        InvalidModelError, match=r"written by torch 9\.9\.9 .* torch 2\.13\.\S+ is installed"
    ) as found:
        tapeout.explain(rewritten(program, change))
    assert "save it again" in (found.value.hint or "")


@pytest.mark.slow
def test_a_program_that_does_not_load_says_why(program: Path) -> None:
    def change(name: str, data: bytes) -> bytes:
        return data.replace(b"torch.ops.aten.relu.default", b"torch.ops.aten.relooo.default")

    with pytest.raises(TapeoutError) as found:
        tapeout.explain(rewritten(program, change))
    assert found.value.exit_code in (3, 4) and str(program) in found.value.message


def test_torch_missing_is_said(
    monkeypatch: pytest.MonkeyPatch, torch: Any, program: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setenv("TAPEOUT_TORCH_PYTHON", str(bare))
    with pytest.raises(TapeoutError, match="torch is needed to read this model") as found:
        tapeout.explain(program)
    assert found.value.exit_code == 8 and "tapeout[torch]" in (found.value.hint or "")
    monkeypatch.setenv("TAPEOUT_TORCH_PYTHON", str(tmp_path / "nowhere"))
    with pytest.raises(TapeoutError, match="does not start"):
        tapeout.explain(program)
