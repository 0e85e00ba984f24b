"""Damaged and malicious files end in one clear error; external data stays in its folder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tapeout.compiler.errors import InternalError, InvalidModelError, ResourceError, TapeoutError
from tapeout.compiler.ir import check, wire
from tapeout.compiler.ir.budget import Budget
from tapeout.compiler.ir.load import load

RNG = np.random.default_rng(11)
WEIGHT = RNG.standard_normal((64, 32)).astype(np.float32)


def rich_model() -> onnx.ModelProto:
    """A small model with a little of everything that the reader walks through."""
    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 12, "f": 1]>
        g (float[N,64] x, bool c, int64 n) => (float[N,32] y, float[N,16] z)
        <float[32] b = {1}, float[3] roi, float[N,32] m>
        {
            m = MatMul (x, w)  a = Add (m, b)  s = Softmax <axis = 1> (a)
            p = If (c) < then_branch = t () => (float[N,32] o) { o = f.Scale <k = 2.0> (s) },
                         else_branch = e () => (float[N,32] q) { q = Clip (s) } >
            y = Loop (n, c, p) < body = l (int64 i, bool k, float[N,32] r) => (bool k2, float[N,32] r2)
                { k2 = Identity (k)  h = Constant <value = float {0.5}> ()  r2 = Mul (r, h) } >
            h1, h2 = Split <axis = 1> (y)  z = Sub (h1, h2)
        }
        <domain: "f", opset_import: ["": 12]>
        Scale <k> (v) => (w) { f = Constant <value_float: float = @k> ()  w = Mul (v, f) }
    """)
    del proto.graph.initializer[:]
    proto.graph.initializer.append(numpy_helper.from_array(WEIGHT, "w"))
    proto.graph.initializer.append(
        helper.make_tensor("b", TensorProto.FLOAT, [32], RNG.standard_normal(32).tolist())
    )
    return proto


CONTENT = rich_model().SerializeToString()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


def attempt(content: bytes, folder: Path) -> TapeoutError | None:
    """Load `content`; anything but a model or a clear error raises."""
    path = folder / "model.onnx"
    path.write_bytes(content)
    try:
        model = load(path)
    except InternalError:
        raise
    except TapeoutError as error:
        assert str(path) in str(error)
        return error
    assert check.faults(model) == []
    return None


def test_the_model_itself_loads(scratch: Path) -> None:
    assert attempt(CONTENT, scratch) is None


def test_truncated_at_any_offset(scratch: Path) -> None:
    for end in [*range(1, 200), *range(200, len(CONTENT), 37)]:
        # Cut between two fields, the rest is still a message, but one without opset, graph or weights.
        assert attempt(CONTENT[:end], scratch) is not None, end


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, len(CONTENT) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_mutated_bytes(scratch: Path, edits: list[tuple[int, int]]) -> None:
    content = bytearray(CONTENT)
    for position, byte in edits:
        content[position] = byte
    attempt(bytes(content), scratch)


# The part of the file that is structure, not weights: a mutation there matters.
STRUCTURE = [i for i in range(len(CONTENT)) if not 0 <= i - CONTENT.find(WEIGHT.tobytes()) < WEIGHT.nbytes]


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.sampled_from(STRUCTURE), st.integers(0, 255)), min_size=1, max_size=3))
def test_mutated_structure(scratch: Path, edits: list[tuple[int, int]]) -> None:
    content = bytearray(CONTENT)
    for position, byte in edits:
        content[position] = byte
    attempt(bytes(content), scratch)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=300))
def test_any_bytes(scratch: Path, content: bytes) -> None:
    if content:
        attempt(content, scratch)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(STRUCTURE), st.integers(1, 40), st.binary(max_size=12))
def test_bytes_cut_out_and_put_in(scratch: Path, position: int, length: int, new: bytes) -> None:
    attempt(CONTENT[:position] + new + CONTENT[position + length :], scratch)


# --- the shell ------------------------------------------------------------------------------------------


def test_large_tensors_are_views_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(CONTENT)
    tensor = load(tmp_path / "m.onnx").graph.initializers["w"].const_value
    assert tensor is not None
    array = tensor.numpy()
    np.testing.assert_array_equal(array, WEIGHT)
    assert not array.flags.owndata and not array.flags.writeable
    proto, references = wire.shell(memoryview(CONTENT), Budget())
    assert len(references.found) == 1 and proto.ByteSize() < len(CONTENT) - WEIGHT.nbytes + 200


def test_float_data_and_constants_in_subgraphs_and_functions_leave_the_shell(tmp_path: Path) -> None:
    big = RNG.standard_normal(5000).astype(np.float32)
    packed = helper.make_tensor("w", TensorProto.FLOAT, [5000], big)
    assert packed.float_data
    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 21, "f": 1]>
        g (float[5000] x, bool c) => (float[5000] y) {
            p = f.F (x)
            y = If (c) < then_branch = t () => (float[5000] o) { o = Add (p, w) },
                         else_branch = e () => (float[5000] q) { q = Neg (p) } > }
        <domain: "f", opset_import: ["": 21]>
        F (a) => (b) { k = Constant <value_int = 1> ()  b = Mul (a, k) }""")
    proto.graph.node[1].attribute[0].g.initializer.append(packed)
    constant = proto.functions[0].node[0].attribute[0]
    constant.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(big * 2)))
    content = proto.SerializeToString()
    shell, references = wire.shell(memoryview(content), Budget())
    assert len(references.found) == 2 and shell.ByteSize() < 2000
    (tmp_path / "m.onnx").write_bytes(content)
    model = load(tmp_path / "m.onnx")
    import onnxruntime as ort

    from tapeout.compiler.ir.save import to_bytes

    x = RNG.standard_normal(5000).astype(np.float32)
    (y,) = ort.InferenceSession(to_bytes(model)).run(None, {"x": x, "c": np.array(True)})
    np.testing.assert_allclose(y, x * big * 2 + big, rtol=1e-5, atol=1e-5)


def test_a_file_cannot_name_payloads_by_itself(tmp_path: Path) -> None:
    proto = rich_model()
    proto.graph.initializer[1].ClearField("float_data")
    proto.graph.initializer[1].data_location = TensorProto.EXTERNAL
    entry = proto.graph.initializer[1].external_data.add()
    entry.key, entry.value = "tapeout.map", "0"
    assert isinstance(attempt(proto.SerializeToString(), tmp_path), InvalidModelError)


def test_budgets(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(CONTENT)
    for budget in (
        Budget(nodes=3),
        Budget(depth=1),
        Budget(bytes=4096),
        Budget(elements=100),
        Budget(shell_bytes=100),
    ):
        with pytest.raises(ResourceError):
            load(path, budget=budget)


def test_a_constant_of_128_gb_costs_nothing(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 21]> g () => (float[M,N] y)
        <int64[2] s = {32768, 1048576}> { y = ConstantOfShape (s) }"""
    (tmp_path / "m.onnx").write_bytes(onnx.parser.parse_model(text).SerializeToString())
    model = load(tmp_path / "m.onnx")
    assert [n.op_type for n in model.graph] == ["ConstantOfShape"]


# --- external data --------------------------------------------------------------------------------------


def external(folder: Path, location: str, offset: str | None = None, length: str | None = None) -> Path:
    """A model in `folder` whose weight [8] lies in `location`."""
    folder.mkdir(exist_ok=True)
    weight = onnx.TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[8], data_location=TensorProto.EXTERNAL
    )
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            entry = weight.external_data.add()
            entry.key, entry.value = key, value
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [8])
    graph = helper.make_graph([helper.make_node("Neg", ["w"], ["y"])], "g", [], [output], [weight])
    path = folder / "model.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]).SerializeToString()
    )
    return path


DATA = RNG.standard_normal(16).astype(np.float32)


@pytest.mark.parametrize(
    ("location", "offset", "length"),
    [
        ("w.bin", None, None),
        ("w.bin", "4", None),
        ("w.bin", "32", "32"),
        ("sub/w.bin", "0", "32"),
        ("./sub/./w.bin", None, "32"),
    ],
)
def test_external_data_is_mapped(
    tmp_path: Path, location: str, offset: str | None, length: str | None
) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("w.bin", "sub/w.bin"):
        (tmp_path / name).write_bytes(DATA.tobytes())
    model = load(external(tmp_path, location, offset, length))
    tensor = model.graph.initializers["w"].const_value
    assert tensor is not None
    start = int(offset or 0) // 4
    np.testing.assert_array_equal(tensor.numpy(), DATA[start : start + 8])
    assert [Path(p).name for p in model.meta["tapeout.files"]] == ["model.onnx", "w.bin"]


@pytest.mark.parametrize(
    ("location", "offset", "length", "word"),
    [
        ("../secret", None, None, "no path inside"),
        ("a/../../secret", None, None, "no path inside"),
        ("/etc/passwd", None, None, "no path inside"),
        ("", None, None, "no path inside"),
        (".", None, None, "no path inside"),
        ("missing.bin", None, None, "No such file"),
        ("link.bin", None, None, "cannot be opened"),
        ("inner_link.bin", None, None, "cannot be opened"),
        ("folder_link/secret", None, None, "cannot be opened"),
        ("hard.bin", None, None, "hard links"),
        ("folder", None, None, "no regular file"),
        ("pipe", None, None, "no regular file"),
        ("w.bin", "36", None, "needs bytes"),
        ("w.bin", "-4", None, "offset"),
        ("w.bin", "x", None, "offset"),
        ("w.bin", "9" * 30, None, "offset"),
        ("w.bin", None, "36", "states 36"),
        ("w.bin", None, "0", "states 0"),
    ],
)
def test_external_data_that_escapes_or_does_not_fit(
    tmp_path: Path, location: str, offset: str | None, length: str | None, word: str
) -> None:
    folder = tmp_path / "model"
    path = external(folder, location, offset, length)
    secret = tmp_path / "secret"
    secret.write_bytes(DATA.tobytes())
    (folder / "w.bin").write_bytes(DATA.tobytes())
    (folder / "folder").mkdir()
    (folder / "link.bin").symlink_to(secret)
    (folder / "inner_link.bin").symlink_to(folder / "w.bin")
    (folder / "folder_link").symlink_to(tmp_path)
    os.link(secret, folder / "hard.bin")
    os.mkfifo(folder / "pipe")
    with pytest.raises(InvalidModelError, match=word) as caught:
        load(path)
    assert "'w'" in str(caught.value)


def test_a_linked_model_file_reads_beside_the_link(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    path = external(tmp_path / "store", "w.bin")
    (tmp_path / "named.onnx").symlink_to(path)
    (tmp_path / "w.bin").write_bytes(DATA.tobytes())
    assert load(tmp_path / "named.onnx").graph.initializers["w"].const_value is not None
