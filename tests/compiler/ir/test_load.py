"""The import keeps the conventions of the graph: constants, names, scopes, order, functions, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from tapeout.compiler.errors import (
    InvalidModelError,
    ResourceError,
    TapeoutError,
    UnsupportedError,
    UsageError,
)
from tapeout.compiler.ir import check
from tapeout.compiler.ir.budget import Budget
from tapeout.compiler.ir.load import FILES, from_proto, from_text, load, source_digests
from tapeout.compiler.ir.origin import origin
from tapeout.compiler.ir.save import to_bytes

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
RNG = np.random.default_rng(3)


def run(model: ir.Model, **feed: np.ndarray) -> list[np.ndarray]:
    ort.set_default_logger_severity(4)
    return list(ort.InferenceSession(to_bytes(model)).run(None, feed))


def nodes(model: ir.Model) -> list[str]:
    return [n.name or "" for n in ir.traversal.RecursiveGraphIterator(model.graph)]


def loaded(text: str) -> ir.Model:
    model = from_text(HEAD + text)
    assert check.faults(model) == []
    return model


# --- constants ------------------------------------------------------------------------------------------


def test_constants_of_every_form_become_initializers() -> None:
    model = loaded("""
        g (float[2] x) => (float[2] y, int64[3] i, string[2] s) {
            a = Constant <value = float[2] {1.5, 2.5}> ()
            b = Constant <value_float = 0.5> ()
            c = Constant <value_floats = [3.0, 4.0]> ()
            n = Constant <value_int = 7> ()
            i = Constant <value_ints = [7, 8, 9]> ()
            s = Constant <value_strings = ["u", "v"]> ()
            t = Cast <to = 1> (n)
            p = Add (x, a) q = Mul (p, b) r = Sub (q, c) y = Add (r, t)
        }""")
    assert {"a", "b", "c", "n", "i", "s"} <= set(model.graph.initializers)
    assert "Constant" not in {n.op_type for n in model.graph}
    x = RNG.standard_normal(2).astype(np.float32)
    y, i, s = run(model, x=x)
    np.testing.assert_allclose(y, (x + np.float32([1.5, 2.5])) * 0.5 - [3, 4] + 7, rtol=1e-6)
    assert i.tolist() == [7, 8, 9] and list(s) == ["u", "v"]


def sparse(name: str, indices: np.ndarray) -> onnx.SparseTensorProto:
    values = numpy_helper.from_array(np.float32([2, -3]), name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(indices, "i"), [2, 3])


@pytest.mark.parametrize("indices", [np.int64([1, 5]), np.int64([[0, 1], [1, 2]])])
def test_sparse_initializers_and_constants_are_made_dense(indices: np.ndarray) -> None:
    dense = np.float32([[0, 2, 0], [0, 0, -3]])
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["d"], sparse_value=sparse("", indices)),
            helper.make_node("Add", ["x", "w"], ["a"]),
            helper.make_node("Mul", ["a", "d"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])],
        sparse_initializer=[sparse("w", indices)],
    )
    model = from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))
    assert check.faults(model) == []
    x = RNG.standard_normal((2, 3)).astype(np.float32)
    np.testing.assert_allclose(run(model, x=x)[0], (x + dense) * dense, rtol=1e-6)


@pytest.mark.parametrize(
    "indices", [np.int64([1, 6]), np.int64([-1, 2]), np.int64([1]), np.int64([[0, 1], [2, 0]])]
)
def test_sparse_index_outside_the_tensor(indices: np.ndarray) -> None:
    graph = helper.make_graph([], "g", [], [], sparse_initializer=[sparse("w", indices)])
    with pytest.raises(InvalidModelError, match="'w'"):
        from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))


def test_an_initializer_is_no_input() -> None:
    model = loaded("g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> { y = Add (x, w) }")
    assert [v.name for v in model.graph.inputs] == ["x"]


@pytest.mark.parametrize(
    "kind",
    [
        TensorProto.FLOAT16,
        TensorProto.BFLOAT16,
        TensorProto.INT4,
        TensorProto.UINT4,
        TensorProto.INT8,
        TensorProto.BOOL,
        TensorProto.DOUBLE,
        TensorProto.UINT64,
        TensorProto.FLOAT8E4M3FN,
        TensorProto.COMPLEX64,
    ],
)
@pytest.mark.parametrize("raw", [False, True])
def test_tensors_of_every_type_keep_their_values(kind: int, raw: bool) -> None:
    values = np.array([0, 1, 1, 0, 1], dtype=np.float32)
    proto = helper.make_tensor("w", kind, [5], values.astype(helper.tensor_dtype_to_np_dtype(kind)).tolist())
    if raw:
        proto = numpy_helper.from_array(numpy_helper.to_array(proto), "w")
        assert proto.HasField("raw_data")
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", kind, [5])],
        [proto],
    )
    model = from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))
    tensor = model.graph.initializers["w"].const_value
    assert tensor is not None and tensor.dtype.value == kind
    np.testing.assert_array_equal(tensor.numpy().astype(np.complex64), values)


# --- names, scopes, order -------------------------------------------------------------------------------


def test_names_are_unique_and_origins_are_the_source_names() -> None:
    model = loaded("""
        g (float[2] x) => (float[2] y) {
            [twin] a = Relu (x)
            [twin] b = Neg (a)
            c = Abs (b)
            [Abs_2] d = Exp (c)
            y = Log (d)
        }""")
    assert nodes(model) == ["twin", "twin_1", "Abs_2_2", "Abs_2", "Log_4"]
    assert [origin(n) for n in model.graph] == [("twin",), ("twin",), ("Abs_2",), ("Abs_2",), ("Log_4",)]


def test_values_of_subgraphs_get_names_of_their_own() -> None:
    text = """
        g (float[2] x, bool c) => (float[2] y) {
            t = If (c) <
                then_branch = a () => (float[2] t) { s = Relu (x)  t = Neg (s) },
                else_branch = b () => (float[2] t) { s = Exp (x)  t = Abs (s) }
            >
            y = Mul (t, x)
        }"""
    model = loaded(text)
    names = [v.name for n in ir.traversal.RecursiveGraphIterator(model.graph) for v in n.outputs]
    assert len(set(names)) == len(names) == 6
    x = np.float32([1.0, -2.0])
    np.testing.assert_allclose(run(model, x=x, c=np.array(True))[0], -np.maximum(x, 0) * x)
    np.testing.assert_allclose(run(model, x=x, c=np.array(False))[0], np.exp(x) * x, rtol=1e-6)


def test_a_branch_may_return_an_outer_value() -> None:
    model = loaded("""
        g (float[2] x, bool c) => (float[2] y) {
            r = Neg (x)
            y = If (c) < then_branch = a () => (float[2] r) { },
                         else_branch = b () => (float[2] t) { t = Abs (x) } >
        }""")
    x = np.float32([1.0, -2.0])
    np.testing.assert_array_equal(run(model, x=x, c=np.array(True))[0], -x)


def test_nodes_are_brought_into_order() -> None:
    model = loaded("g (float[2] x) => (float[2] y) { y = Neg (b)  b = Abs (a)  a = Exp (x) }")
    assert [n.op_type for n in model.graph] == ["Exp", "Abs", "Neg"]


def test_order_counts_what_subgraphs_read() -> None:
    model = loaded("""
        g (float[2] x, bool c) => (float[2] y) {
            y = If (c) < then_branch = a () => (float[2] p) { p = Neg (late) },
                         else_branch = b () => (float[2] q) { q = Abs (x) } >
            late = Exp (x)
        }""")
    assert [n.op_type for n in model.graph] == ["Exp", "If"]


@pytest.mark.parametrize(
    ("body", "ring"),
    [
        ("[p] a = Add (x, b)  [q] b = Neg (a)  [r] y = Abs (b)", {"p", "q"}),
        ("[p] y = Neg (y)", {"p"}),
        (
            "c = Cast <to = 9> (x) [p] y = If (c) < then_branch = a () => (float[2] s) { [q] s = Neg (t) }, "
            "else_branch = b () => (float[2] s2) { s2 = Abs (x) } > [r] t = Exp (y)",
            {"p", "r"},
        ),
    ],
)
def test_a_cycle_is_reported_by_names(body: str, ring: set[str]) -> None:
    with pytest.raises(InvalidModelError, match="cycle") as caught:
        loaded(f"g (float[2] x) => (float[2] y) {{ {body} }}")
    assert set(caught.value.nodes) == ring


def test_optional_inputs_and_outputs() -> None:
    model = loaded(
        """
        g (float[1,2,8] x) => (float[1,2,4] y) { y, "" = MaxPool <kernel_shape = [2], strides = [2]> (x) }
    """.replace(', ""', "")
    )
    assert len(run(model, x=RNG.standard_normal((1, 2, 8)).astype(np.float32))) == 1
    model = loaded(
        'g (float[3] x) => (float[3] y) <float hi = {0.5}> { y = Clip (x, "", hi) }'.replace('"", ', ", ")
    )
    (clip,) = model.graph
    assert clip.inputs[1] is None


# --- functions ------------------------------------------------------------------------------------------


FUNCTIONS = """<ir_version: 10, opset_import: ["": 21, "f": 1]>
    g (float[2] x) => (float[2] y, float[2] z) { [one] y = f.Outer <k = 3.0> (x)  [two] z = f.Outer (y) }
    <domain: "f", opset_import: ["": 20, "f": 1]>
    Outer <k: float = 2.0> (a) => (c) { [in] b = f.Inner <s: float = @k> (a)  c = Neg (b) }
    <domain: "f", opset_import: ["": 18]>
    Inner <s> (a) => (b) { w = Constant <value_float: float = @s> ()  b = Mul (a, w) }
"""


def test_functions_are_inlined_with_attributes_and_origins() -> None:
    model = from_text(FUNCTIONS)
    assert check.faults(model) == [] and not model.functions
    assert nodes(model) == ["one/in/Mul_1", "one/Neg_1", "two/in/Mul_1", "two/Neg_1"]
    assert origin(model.graph[0]) == ("one/in/Mul_1",)
    x = np.float32([1.5, -2])
    y, z = run(model, x=x)
    np.testing.assert_allclose(y, -3 * x)
    np.testing.assert_allclose(z, 6 * x)


def test_a_function_that_calls_itself() -> None:
    with pytest.raises(InvalidModelError, match=r"calls itself: Outer -> Inner -> Inner"):
        from_text(
            FUNCTIONS.replace("b = Mul (a, w)", "b = f.Inner (a)").replace('["": 18]', '["": 18, "f": 1]')
        )


def test_functions_that_multiply_meet_the_budget() -> None:
    text = '<ir_version: 10, opset_import: ["": 21, "f": 1]> g (float[2] x) => (float[2] y) { y = f.L0 (x) }'
    for i in range(20):
        body = f"b = f.L{i + 1} (a)  c = f.L{i + 1} (b)" if i < 19 else "b = Neg (a)  c = Neg (b)"
        text += f' <domain: "f", opset_import: ["": 21, "f": 1]> L{i} (a) => (c) {{ {body} }}'
    with pytest.raises(ResourceError, match="nodes"):
        from_text(text, budget=Budget(nodes=5000))


def test_functions_of_ours_stay_calls() -> None:
    model = from_text("""<ir_version: 10, opset_import: ["": 25, "tapeout": 1]>
        g (float[2] x) => (float[2] y) { y = tapeout.Twice (x) }
        <domain: "tapeout", opset_import: ["": 25]> Twice (a) => (b) { b = Add (a, a) }""")
    assert check.faults(model) == []
    assert [n.op_type for n in model.graph] == ["Twice"] and len(model.functions) == 1
    np.testing.assert_array_equal(run(model, x=np.float32([1, 2]))[0], [2, 4])


def test_other_domains_are_left_as_they_are() -> None:
    model = from_text("""<ir_version: 10, opset_import: ["": 12, "com.microsoft": 1, "ai.onnx.ml": 3]>
        g (float[2,3] x) => (float[2,3] y) <float[2,3] mid> {
            mid = com.microsoft.FastGelu (x)
            y = Softmax (mid)
        }""")
    assert check.faults(model) == []
    assert [n.op_type for n in model.graph] == ["FastGelu", "Softmax"]
    assert model.graph.opset_imports == {"": 25, "com.microsoft": 1}
    x = RNG.standard_normal((2, 3)).astype(np.float32)
    np.testing.assert_allclose(run(model, x=x)[0].sum(-1), [1, 1], rtol=1e-5)


def test_sequences_optionals_and_strings_pass_import() -> None:
    model = loaded(
        "g (seq(float[N]) s, optional(float[2]) o, string[2] t) => (seq(float[N]) r, bool h, string[2] u) "
        "{ r = Identity (s)  h = OptionalHasElement (o)  u = Identity (t) }"
    )
    assert isinstance(model.graph.inputs[0].type, ir.SequenceType)


# --- refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("g (float[2] x) => (float[2] y) { [n] y = Wish (x) }", ["Wish 'n'", "no such operator"]),
        ("g (float[2] x) => (float[2] y) { [n] y = Swish (x) }", ["Swish 'n'", "opset 21", "24"]),
        ("g (float[2] x) => (float[2] y) { [n] y = Upsample (x, x) }", ["Upsample 'n'", "removed"]),
        (
            "g (float[2] x) => (float[2] y) { [n] y = Relu (z)  [m] q = Neg (w) }",
            ["Relu 'n' reads 'z'", "Neg 'm' reads 'w'"],
        ),
        ("g (float[2] x) => (float[2] y) { [n] z = Relu (x) }", ["output 'y'"]),
        ("g (float[2] x) => (float[2] y) { [n] y = Relu (x)  [m] y = Neg (x) }", ["'y'", "Neg 'm'"]),
        ("g (float[2] x, float[2] x) => (float[2] y) { y = Relu (x) }", ["'x'"]),
        ("g (float[2] x) => (float[2] y) { [n] y = Relu (x, x) }", ["Relu 'n'", "2 inputs", "expects 1"]),
        ("g (float[2] x) => (float[2] y) { [n] y = Relu <slope = 1> (x) }", ["Relu 'n'", "slope"]),
        ("g (float[2] x) => (float[2] y) { [n] y = Elu <alpha = 1> (x) }", ["alpha", "INT", "FLOAT"]),
        ("g (float[2] x) => (float[2] y) { [n] y = Concat (x, x) }", ["Concat 'n'", "axis"]),
        (
            "g (float[2] x, bool c) => (float[2] y) { [n] y = If (c) < "
            "then_branch = a () => (float[2] s, float[2] t) { s = Neg (x) t = Neg (x) }, "
            "else_branch = b () => (float[2] u) { u = Abs (x) } > }",
            ["If 'n'", "then_branch"],
        ),
    ],
)
def test_faults_are_named(text: str, words: list[str]) -> None:
    with pytest.raises(InvalidModelError) as caught:
        loaded(text)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_opsets_out_of_range() -> None:
    for opset, kind in ((29, UnsupportedError), (0, InvalidModelError), (5, InvalidModelError)):
        with pytest.raises(kind, match=str(opset)):
            from_text(
                f'<ir_version: 8, opset_import: ["": {opset}]> '
                "g (float[2] x) => (float[2] y) { y = Add (x, x) }"
            )
    with pytest.raises(InvalidModelError, match="no opset"):
        proto = onnx.parser.parse_model(HEAD + "g (float[2] x) => (float[2] y) { y = Neg (x) }")
        del proto.opset_import[:]
        from_proto(proto)


def shaped(dims: list[int]) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [onnx.ValueInfoProto(name="y")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])


def test_dimensions() -> None:
    with pytest.raises(InvalidModelError, match=r"'x'.*-5"):
        from_proto(shaped([2, -5]))
    with pytest.raises(ResourceError, match="'x'"):
        from_proto(shaped([1 << 40, 1 << 40]))
    with pytest.raises(ResourceError, match="dimensions"):
        from_proto(shaped([1] * 100))
    assert from_proto(shaped([0, 3])).graph.inputs[0].shape == [0, 3]
    assert not isinstance(from_proto(shaped([-1, 3])).graph.inputs[0].shape[0], int)  # type: ignore[index]


def initializer(**fields: object) -> onnx.ModelProto:
    proto = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], raw_data=bytes(8))
    for name, value in fields.items():
        proto.ClearField(name)
        if isinstance(value, list):
            getattr(proto, name).extend(value)
        else:
            setattr(proto, name, value)
    graph = helper.make_graph(
        [helper.make_node("Neg", ["w"], ["y"])], "g", [], [onnx.ValueInfoProto(name="y")], [proto]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])


@pytest.mark.parametrize(
    "fields",
    [
        {"dims": [3]},
        {"dims": [-2]},
        {"dims": []},
        {"data_type": 0},
        {"data_type": 99},
        {"data_type": 8},
        {"raw_data": b"123"},
        {"dims": [1 << 62, 1 << 62]},
        {"dims": [1 << 34]},
    ],
)
def test_tensors_that_do_not_fit_their_shape(fields: dict[str, object]) -> None:
    with pytest.raises((InvalidModelError, ResourceError), match="'w'"):
        from_proto(initializer(**fields))


def test_nesting_meets_the_budget() -> None:
    body = "q = Neg (x)"
    for depth in range(40):
        body = (
            f"q{depth} = If (c) < then_branch = a{depth} () => (float[2] q{'' if not depth else depth - 1}) "
            f"{{ {body} }}, else_branch = b{depth} () => (float[2] p{depth}) {{ p{depth} = Neg (x) }} >"
        )
    with pytest.raises((ResourceError, InvalidModelError)):
        loaded(f"g (float[2] x, bool c) => (float[2] q39) {{ {body} }}")


def test_names_that_garble_reports() -> None:
    proto = onnx.parser.parse_model(HEAD + "g (float[2] x) => (float[2] y) { [n] y = Neg (x) }")
    proto.graph.node[0].name = "a\nb"
    with pytest.raises(InvalidModelError, match="control"):
        from_proto(proto)
    proto.graph.node[0].name = "n" * 100_000
    with pytest.raises(ResourceError, match="characters"):
        from_proto(proto)


def test_a_map_is_refused_by_name() -> None:
    proto = onnx.parser.parse_model(HEAD + "g (float[2] x) => (float[2] y) { y = Neg (x) }")
    map_type = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    proto.graph.output[0].type.CopyFrom(helper.make_sequence_type_proto(map_type))
    with pytest.raises(UnsupportedError, match="'y' is a map"):
        from_proto(proto)


# --- files ----------------------------------------------------------------------------------------------


def test_files_and_digests(tmp_path: Path) -> None:
    import hashlib

    proto = onnx.parser.parse_model(HEAD + "g (float[2] x) => (float[2] y) { y = Neg (x) }")
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    model = load(path)
    assert model.meta[FILES] == [str(path)]
    assert source_digests(model) == {str(path): hashlib.sha256(path.read_bytes()).hexdigest()}


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model file"):
        load(tmp_path / "absent.onnx")
    with pytest.raises(UsageError, match="no file"):
        load(tmp_path)
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(InvalidModelError, match="empty"):
        load(tmp_path / "empty.onnx")
    (tmp_path / "text.onnx").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(TapeoutError):
        load(tmp_path / "text.onnx")
