"""Which front end a model gets, pickles refused, and the check of a conversion against its original."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tapeout import TapeoutError, export
from tapeout.compiler.errors import AccuracyError, UnsupportedError, UsageError
from tapeout.compiler.frontends.imported import Imported, check
from tapeout.compiler.frontends.importing import importing

LINEAR = """
<ir_version: 10, opset_import: ["" : 21]>
dense (float[N,4] x) => (float[N,3] y)
<float[4,3] w = {0.1, -0.2, 0.3, 0.4, 0.5, -0.6, 0.7, 0.8, 0.9, -1.0, 1.1, 1.2}, float[3] b = {0.5, -0.25, 2.0}>
{
   [product] p = MatMul (x, w)
   [sum] y = Add (p, b)
}
"""


def linear(folder: Path) -> Imported:
    path = folder / "model.onnx"
    onnx.save(onnx.parser.parse_model(LINEAR), path)
    return Imported(path, "a framework 1.0", (), {"product": "encoder.dense", "sum": "encoder.dense"})


def original(x: Any, bias: float = 0.5) -> dict[str, Any]:
    w = np.array([0.1, -0.2, 0.3, 0.4, 0.5, -0.6, 0.7, 0.8, 0.9, -1.0, 1.1, 1.2], np.float32).reshape(4, 3)
    return {"y": (x @ w + np.array([bias, -0.25, 2.0], np.float32)).astype(np.float32)}


class Runs:
    """Would leave a file behind if it were unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize(
    "name", ["w.pt", "w.pth", "w.bin", "w.ckpt", "w.pkl", "model.anything", "model.onnx"]
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_is_refused_and_not_read(name: str, protocol: int, tmp_path: Path) -> None:
    path, mark = tmp_path / name, tmp_path / "ran"
    path.write_bytes(pickle.dumps(Runs(mark), protocol=protocol))
    with pytest.raises(TapeoutError) as found:
        export(path, output=tmp_path / "o.tflite")
    assert not mark.exists()
    assert found.value.exit_code in (3, 4)
    if name != "model.onnx":
        assert "pickle" in found.value.message and "torch.export.save" in (found.value.hint or "")


def test_weights_alone_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(UnsupportedError, match="holds weights and no model"):
        export(path)


def test_an_archive_without_a_known_name_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    path.write_bytes(b"PK\x03\x04" + bytes(64))
    with pytest.raises(UsageError, match=r"\.pt2"):
        export(path)


def test_example_inputs_belong_to_torch(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="example_inputs"):
        export(linear(tmp_path).path, example_inputs=(1,))


def test_onnx_passes_through(tmp_path: Path) -> None:
    path = linear(tmp_path).path
    with importing(path) as found:
        assert found == path


def test_origins_are_modules(tmp_path: Path) -> None:
    nodes = list(linear(tmp_path).load().graph)
    assert {n.metadata_props["tapeout.origin"] for n in nodes} == {"encoder.dense"}


def test_nodes_of_inlined_functions_follow_their_call(tmp_path: Path) -> None:
    found = Imported(tmp_path, "", (), {"call": "block.0"})
    assert [found._module(n) for n in ("call/inner", "call/a/b", "other/inner")] == [
        "block.0",
        "block.0",
        "other/inner",
    ]


def test_a_conversion_that_holds(tmp_path: Path) -> None:
    error = check(linear(tmp_path), lambda feed: original(feed["x"]))
    assert error is not None and error < 1e-6


def test_a_lost_bias_is_found(tmp_path: Path) -> None:
    with pytest.raises(AccuracyError, match=r"a framework 1\.0 changed the model: output 'y' is off by"):
        check(linear(tmp_path), lambda feed: original(feed["x"], bias=0.0))


def test_a_small_change_is_found_as_well(tmp_path: Path) -> None:
    with pytest.raises(AccuracyError, match=r"of the largest value, 1\.0+e-05 is allowed"):
        check(linear(tmp_path), lambda feed: original(feed["x"], bias=0.5002))


def test_another_shape_is_found(tmp_path: Path) -> None:
    with pytest.raises(AccuracyError, match="shape"):
        check(linear(tmp_path), lambda feed: {"y": original(feed["x"])["y"][None]})


def test_the_check_runs_on_the_users_data(tmp_path: Path) -> None:
    seen = []

    def run(feed: Any) -> Any:
        seen.append(feed["x"])
        return original(feed["x"])

    data = np.random.default_rng(3).standard_normal((2, 4)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=data)
    check(linear(tmp_path), run, tmp_path / "d.npz")
    np.testing.assert_array_equal(np.concatenate(seen), data)
