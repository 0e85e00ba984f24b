"""The FlatBuffer writer: LiteRT reads its files from path and bytes, and so do the bindings."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from ai_edge_litert import schema_py_generated as s

from tapeout.compiler.errors import InternalError, InvalidModelError, UsageError
from tapeout.compiler.target import Request
from tapeout.targets.tflite import TARGET, writer
from tapeout.targets.tflite.inspection import inspect
from tapeout.targets.tflite.run import RESOLVERS, LiteRT, runners
from tapeout.targets.tflite.versions import RELEASES, RULES, minimum_runtime
from tests.targets.tflite.road import emitted, legalized

RNG = np.random.default_rng(3)
WEIGHT = RNG.standard_normal((3, 5)).astype(np.float32)
X = RNG.standard_normal((2, 5)).astype(np.float32)


def product(weight: writer.Data | None = None, version: int = 5) -> writer.File:
    file = writer.File("a test")
    graph = writer.Subgraph("main", inputs=[0], outputs=[2])
    file.subgraphs.append(graph)
    file.buffers += [b"", WEIGHT.tobytes() if weight is None else weight]
    graph.tensors = [
        writer.Tensor("x", (2, 5), s.TensorType.FLOAT32),
        writer.Tensor("w", (3, 5), s.TensorType.FLOAT32, buffer=2),
        writer.Tensor("y", (2, 3), s.TensorType.FLOAT32),
    ]
    options = s.FullyConnectedOptionsT()
    graph.operators = [writer.Operator(s.BuiltinOperator.FULLY_CONNECTED, (0, 1, -1), (2,), options, version)]
    file.signatures.append(writer.Signature("serving_default", [("in", 0)], [("out", 2)]))
    return file


def written(file: writer.File, limit: int = writer.LIMIT) -> bytes:
    sink = io.BytesIO()
    writer.write(file, sink, limit)
    return sink.getvalue()


@pytest.mark.parametrize("resolver", RESOLVERS)
@pytest.mark.parametrize("limit", [writer.LIMIT, 64])  # 64: the form of files past 2 GiB
def test_runs_from_path_and_from_bytes(resolver: str, limit: int, tmp_path: Path) -> None:
    content = written(product(), limit)
    path = tmp_path / "a.tflite"
    path.write_bytes(content)
    for source in (content, path):
        (found,) = LiteRT(source, resolver).run({"in": X}).values()
        np.testing.assert_allclose(found, X @ WEIGHT.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("limit", [writer.LIMIT, 64])
def test_weights_are_aligned_to_16_bytes(limit: int) -> None:
    for odd in range(1, 24):  # tables of any length
        file = product()
        file.description = "d" * odd
        content = written(file, limit)
        assert content.find(WEIGHT.tobytes()) % 16 == 0
        assert content[4:8] == b"TFL3"


def test_a_lazy_tensor_is_read_once_and_only_when_written() -> None:
    reads = []

    def make() -> ir.Tensor:
        reads.append(1)
        return ir.Tensor(WEIGHT)

    lazy = ir.LazyTensor(make, dtype=ir.DataType.FLOAT, shape=ir.Shape(WEIGHT.shape))
    file = product(lazy)
    assert reads == []
    content = written(file)
    assert reads == [1]
    assert WEIGHT.tobytes() in content


def test_the_official_bindings_read_what_was_written() -> None:
    model = s.ModelT.InitFromObj(s.Model.GetRootAs(written(product()), 0))
    assert model.version == 3 and model.description == b"a test"
    assert model.buffers[0].data is None and len(model.buffers) == 3
    code = model.operatorCodes[0]
    assert (code.builtinCode, code.deprecatedBuiltinCode, code.version) == (9, 9, 5)
    assert bytes(model.buffers[2].data) == WEIGHT.tobytes()
    assert model.signatureDefs[0].inputs[0].name == b"in"


def test_codes_past_127_leave_the_old_field_full() -> None:
    file = product()
    file.subgraphs[0].operators[0].code = s.BuiltinOperator.GELU
    file.subgraphs[0].operators[0].options = s.GeluOptionsT()
    code = s.Model.GetRootAs(written(file), 0).OperatorCodes(0)
    assert code.BuiltinCode() == s.BuiltinOperator.GELU and code.DeprecatedBuiltinCode() == 127


TEXT = (
    "agraph (float[N,3,8,8] x) => (float[N,4,8,8] y)\n<float[4,3,1,1] w = {"
    + ", ".join(f"{v:.3f}" for v in RNG.standard_normal(12))
    + "}>\n{ t = Conv (x, w) u = Relu (t) y = Add (u, t) }"
)


def test_the_same_graph_gives_the_same_bytes() -> None:
    assert emitted(legalized(TEXT)) == emitted(legalized(TEXT))


def test_what_inspection_tells(tmp_path: Path) -> None:
    path = tmp_path / "a.tflite"
    path.write_bytes(emitted(legalized(TEXT)))
    found = inspect(path)
    assert found["description"].startswith("tapeout ")
    assert found["metadata"]["min_runtime_version"].count(".") == 2
    (graph,) = found["subgraphs"]
    assert graph["inputs"] == [{"name": "x", "type": "float32", "shape": [-1, 3, 8, 8]}]
    assert "CONV_2D v1" in graph["operators"]
    assert found["signatures"] == [{"key": "serving_default", "inputs": ["x"], "outputs": ["y"]}]


@pytest.mark.parametrize("content", [b"", b"TFL3", b"\0\0\0\0TFL3" + b"\xff" * 64, b"x" * 200])
def test_a_damaged_file_is_one_clear_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.tflite"
    path.write_bytes(content)
    with pytest.raises(InvalidModelError):
        inspect(path)
    with pytest.raises((InvalidModelError, InternalError)):
        runners(path, Request())


def test_equal_weights_are_stored_once() -> None:
    numbers = ", ".join(f"{v:.3f}" for v in RNG.standard_normal(64))
    text = (
        "agraph (float[2,8] x) => (float[2,8] y)\n"
        f"<float[8,8] w = {{{numbers}}}, float[8,8] v = {{{numbers}}}>\n"
        "{ t = MatMul (x, w) u = Relu (t) y = MatMul (u, v) }"
    )
    buffers = s.ModelT.InitFromObj(s.Model.GetRootAs(emitted(legalized(text)), 0)).buffers
    assert sum(b.data is not None and len(b.data) == 256 for b in buffers) == 1


def test_wrong_inputs_are_usage_errors() -> None:
    runner = LiteRT(written(product()))
    with pytest.raises(UsageError, match="'in' is missing"):
        runner.run({"x": X})
    with pytest.raises(UsageError, match="float64, expected float32"):
        runner.run({"in": X.astype(np.float64)})


def test_tensors_are_shown_by_name() -> None:
    model = legalized(TEXT)
    runner = LiteRT(emitted(model), "builtin kernels")
    x = RNG.standard_normal((2, 3, 8, 8)).astype(np.float32)
    names = [v.name or "" for node in model.graph for v in node.outputs]
    shown = runner.tensors({"x": x}, names)
    np.testing.assert_array_equal(shown["y"], runner.run({"x": x})["y"])
    assert len(shown) > 1


def test_rows_and_lowerings_are_the_same_names() -> None:
    from tapeout.targets.tflite.lower import LOWERINGS

    assert TARGET.declaration("cpu").lowerings() == set(LOWERINGS)


def test_every_version_that_a_rule_gives_has_a_release() -> None:
    for code, rules in RULES.items():
        assert hasattr(s.BuiltinOperator, code)
        if code in RELEASES:
            assert max(version for version, _ in rules) <= len(RELEASES[code].split()), code


def test_the_oldest_runtime_follows_from_the_newest_operator() -> None:
    assert minimum_runtime(product(version=1)) == "1.5.0"
    assert minimum_runtime(product(version=6)) == "2.1.0"


@pytest.mark.parametrize("limit", [writer.LIMIT, 64])
def test_inspection_reads_both_forms(limit: int, tmp_path: Path) -> None:
    file = product()
    file.buffers.append(b"2.20.0".ljust(16, b"\0"))
    file.metadata.append(("min_runtime_version", 3))
    path = tmp_path / "a.tflite"
    path.write_bytes(written(file, limit))
    found = inspect(path)
    assert found["metadata"] == {"min_runtime_version": "2.20.0"}
    assert found["weight_bytes"] == WEIGHT.nbytes + 16 and found["bytes"] == path.stat().st_size
    (tmp_path / "empty.tflite").write_bytes(b"")
    with pytest.raises(InvalidModelError, match="not a TFLite file"):
        inspect(tmp_path / "empty.tflite")


def test_the_choice_of_resolvers(tmp_path: Path) -> None:
    path = tmp_path / "a.tflite"
    path.write_bytes(written(product()))
    for choice, count in (("both", 2), ("xnnpack", 1), ("builtin", 1)):
        assert len(runners(path, Request(options={"resolver": choice}))) == count
    with pytest.raises(UsageError, match="expected both, xnnpack, builtin"):
        runners(path, Request(options={"resolver": "gpu"}))
    with path.open("r+b") as stream:
        stream.truncate(1 << 30)  # from here on XNNPACK's copies count
    assert [r.runtime.split(" ", 2)[2] for r in runners(path, Request())] == ["builtin kernels"]
