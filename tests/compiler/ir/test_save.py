"""Files that are written load as they were, whole or not at all, as one file or with the weights beside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from tapeout.compiler.errors import OutputError, ResourceError
from tapeout.compiler.ir import check, save
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.load import from_text, load
from tapeout.compiler.ir.origin import origin, set_origin

RNG = np.random.default_rng(5)
BIG = RNG.standard_normal((300, 200)).astype(np.float32)


def sample() -> ir.Model:
    """A model with a large lazy weight, a function, a made value, an origin and a layout."""
    model = from_text("""<ir_version: 10, opset_import: ["": 25, "tapeout": 1]>
        g (float[N,300] x, bool c) => (float[N,200] y) <float[300,200] w> {
            [mm] m = MatMul (x, w)
            [tw] t = tapeout.Twice (m)
            [if] y = If (c) < then_branch = a () => (float[N,200] p) { [neg] p = Neg (t) },
                              else_branch = b () => (float[N,200] q) { [abs] q = Abs (t) } >
        }
        <domain: "tapeout", opset_import: ["": 25]> Twice (a) => (b) { b = Add (a, a) }
    """.replace("<float[300,200] w>", "<float[1] w = {0}>"))  # fmt: skip
    old = model.graph.initializers["w"]
    new = g.add_lazy_constant(model.graph, BIG.shape, ir.DataType.FLOAT, lambda: BIG, "w")
    old.replace_all_uses_with(new)
    del model.graph.initializers["w"]
    node = model.graph[0]
    set_origin(node, ["mm", "other/name"])
    node.outputs[0].metadata_props["tapeout.layout"] = "m0:1,0"
    node.outputs[0].shape = ir.Shape(["N", 200])
    return model


def outputs(path: Path | bytes, c: bool) -> np.ndarray:
    ort.set_default_logger_severity(4)
    session = ort.InferenceSession(path if isinstance(path, bytes) else str(path))
    x = np.random.default_rng(6).standard_normal((4, 300)).astype(np.float32)
    return np.asarray(session.run(None, {"x": x, "c": np.array(c)})[0])


def expected(c: bool) -> np.ndarray:
    x = np.random.default_rng(6).standard_normal((4, 300)).astype(np.float32).astype(np.float64)
    t = 2 * x @ BIG.astype(np.float64)
    return np.asarray(-t if c else np.abs(t))


@pytest.mark.parametrize("split", [False, True])
def test_round_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: bool) -> None:
    if split:
        monkeypatch.setattr(save, "SPLIT", 1000)
    model = sample()
    path = tmp_path / "m.onnx"
    written = save.save(model, path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in written)
    assert len(written) == (2 if split else 1)
    assert (path.stat().st_size < 10_000) == split
    onnx.checker.check_model(str(path))
    for c in (True, False):
        np.testing.assert_allclose(outputs(path, c), expected(c), rtol=1e-3, atol=1e-3)
    again = load(path)
    assert check.faults(again) == []
    pairs = zip(
        ir.traversal.RecursiveGraphIterator(model.graph),
        ir.traversal.RecursiveGraphIterator(again.graph),
        strict=True,
    )
    for a, b in pairs:
        assert (a.name, a.op_type, a.domain, origin(a)) == (b.name, b.op_type, b.domain, origin(b))
        assert [v.name for v in a.outputs] == [v.name for v in b.outputs]
        assert [v and v.name for v in a.inputs] == [v and v.name for v in b.inputs]
    assert origin(again.graph[0]) == ("mm", "other/name")
    assert again.graph[0].outputs[0].metadata_props["tapeout.layout"] == "m0:1,0"
    assert list(again.functions) == list(model.functions)
    assert g.dims(again.graph[0].outputs[0]) == ("N", 200)
    content = save.to_bytes(again)
    save.save(again, tmp_path / "again.onnx")
    assert save.to_bytes(load(tmp_path / "again.onnx")) == content


def test_bytes_are_the_file(tmp_path: Path) -> None:
    model = sample()
    save.save(model, tmp_path / "m.onnx")
    a = onnx.load_from_string(save.to_bytes(model))
    b = onnx.load(tmp_path / "m.onnx")
    assert [onnx.numpy_helper.to_array(t).tobytes() for t in a.graph.initializer] == [
        onnx.numpy_helper.to_array(t).tobytes() for t in b.graph.initializer
    ]
    np.testing.assert_allclose(outputs(save.to_bytes(model), True), expected(True), rtol=1e-3, atol=1e-3)


def test_the_model_is_unchanged_by_saving(tmp_path: Path) -> None:
    model = sample()
    before = {n: v.const_value for n, v in model.graph.initializers.items()}
    save.save(model, tmp_path / "m.onnx")
    assert all(before[n] is v.const_value for n, v in model.graph.initializers.items())


def test_a_failed_write_leaves_what_stood_there(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"before")
    model = sample()

    def fail() -> np.ndarray:
        raise OSError(28, "No space left on device")

    name = next(n for n in model.graph.initializers if n.startswith("w~"))
    model.graph.initializers[name].const_value = ir.LazyTensor(
        lambda: ir.Tensor(fail()), dtype=ir.DataType.FLOAT, shape=ir.Shape(BIG.shape), name=name
    )
    with pytest.raises(OutputError, match="No space left"):
        save.save(model, path)
    assert path.read_bytes() == b"before" and [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    with pytest.raises(OutputError, match="cannot be written"):
        save.save(sample(), tmp_path / "absent" / "m.onnx")


def test_more_than_a_message_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save, "LARGEST", 1000)
    with pytest.raises(ResourceError):
        save.to_bytes(sample())
