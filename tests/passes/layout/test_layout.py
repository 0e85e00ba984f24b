"""Channels-last: text cases, each function against its ONNX operator, names, layouts asked for, subgraphs."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapeout.compiler import pipeline
from tapeout.compiler.errors import UsageError
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.load import from_text
from tapeout.passes.canonicalize import CANONICALIZE
from tapeout.passes.layout import ChannelsLast, needed_transposes, removable_transposes
from tapeout.passes.layout.minimum_cut import SINK, SOURCE, Network
from tests.passes.layout.graphs import feeds, run
from tests.passtext import Case, cases, check

HEAD = '<ir_version: 10, opset_import: ["" : 25]>\n'


@pytest.mark.parametrize("case", cases(__file__, "*.txt"), ids=str)
def test_text(case: Case, bless: bool) -> None:
    model = check(case, {"layout": (ChannelsLast(),)}, bless)
    assert removable_transposes(model) == []


def transposes(model: ir.Model) -> list[ir.Node]:
    return [n for n in model.graph if n.op_type == "Transpose"]


def with_weights(model: ir.Model, *names: str) -> ir.Model:
    """Turn inputs into constants with random data."""
    rng = np.random.default_rng(5)
    for value in [v for v in model.graph.inputs if v.name in names]:
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(
            rng.normal(size=g.static_dims(value)).astype(np.float32), name=value.name
        )
        model.graph.register_initializer(value)
    return model


OPERATORS = {
    "grouped": (
        "Conv <group = 2, strides = [2, 1], dilations = [1, 2], pads = [0, 1, 2, 3]> (x, w, b)",
        (6, 2, 3, 2),
    ),
    "same": ('Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w)', (5, 4, 3, 3)),
    "depthwise": ("Conv <group = 4, kernel_shape = [3, 3]> (x, w, b)", (8, 1, 3, 3)),
    "transposed": (
        "ConvTranspose <group = 2, strides = [2, 3], pads = [1, 0, 0, 1], output_padding = [1, 0]> (x, w, b)",
        (4, 3, 3, 2),
    ),
    "max": (
        "MaxPool <kernel_shape = [3, 2], strides = [2, 1], pads = [1, 0, 1, 1], ceil_mode = 1> (x)",
        None,
    ),
    "average": ("AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1> (x)", None),
    "lrn": ("LRN <size = 3, alpha = 0.1, beta = 0.6, bias = 1.5> (x)", None),
    "crd": ('DepthToSpace <blocksize = 2, mode = "CRD"> (x)', None),
    "dcr": ("DepthToSpace <blocksize = 2> (x)", None),
    "space": ("SpaceToDepth <blocksize = 2> (x)", None),
}


@pytest.mark.parametrize("call, weight", OPERATORS.values(), ids=OPERATORS)
def test_every_function_is_its_operator(call: str, weight: tuple[int, ...] | None) -> None:
    inputs = "float[2,4,6,8] x"
    names = []
    if weight is not None:
        outputs = weight[0] if call.startswith("Conv ") else weight[1] * 2
        inputs += f", float[{','.join(map(str, weight))}] w, float[{outputs}] b"
        names = ["w", "b"]
    model = from_text(f"{HEAD}agraph ({inputs}) => (float[A,B,C,D] y) {{ y = {call} }}")
    with_weights(model, *names)
    data = feeds(model)
    expected = run(model, data)["y"]
    pipeline.run(model, (ChannelsLast(),))
    assert [n.op_type for n in model.graph if n.domain] == [call.split()[0] + "NHWC"]
    np.testing.assert_allclose(run(model, data)["y"], expected, rtol=1e-5, atol=1e-5)


def test_three_dimensions() -> None:
    model = from_text(
        HEAD + "agraph (float[1,4,4,4,4] x, float[4,4,3,3,3] w) => (float[1,4,2,2,2] y) {"
        "c = Conv <pads = [1, 1, 1, 1, 1, 1]> (x, w) r = Relu (c)"
        "y = MaxPool <kernel_shape = [2, 2, 2], strides = [2, 2, 2]> (r) }"
    )
    with_weights(model, "w")
    data = feeds(model)
    expected = run(model, data)["y"]
    pipeline.run(model, (ChannelsLast(),))
    assert [n.op_type for n in model.graph] == ["Transpose", "ConvNDHWC", "Relu", "MaxPoolNDHWC", "Transpose"]
    np.testing.assert_allclose(run(model, data)["y"], expected, rtol=1e-5, atol=1e-5)


def small() -> ir.Model:
    model = from_text(
        HEAD + "agraph (float[1,4,4,4] x, float[4,4,1,1] w) => (float[1,4,4,4] y) {"
        "c = Conv (x, w) r = Relu (c) y = Neg (r) }"
    )
    return with_weights(model, "w")


def test_a_rearranged_tensor_says_whose_it_is() -> None:
    """Every value that names a source tensor holds it, in the order that it says."""
    model = small()
    model.graph.outputs.extend(v for n in list(model.graph)[:2] for v in n.outputs)
    data = feeds(model)
    source = run(model, data)
    del model.graph.outputs[1:]
    pipeline.run(model, (ChannelsLast(),))
    said = {}
    for node in model.graph:
        for value in node.outputs:
            if "tapeout.layout" in value.metadata_props:
                name, _, perm = value.metadata_props["tapeout.layout"].rpartition(":")
                said[value.name] = (name, [int(i) for i in perm.split(",")])
                assert "~" in (value.name or "")
                model.graph.outputs.append(value)
    assert {name for name, _ in said.values()} == {"x", "c", "r", "y"}
    found = run(model, data)
    for made, (name, perm) in said.items():
        expected = data["x"] if name == "x" else source[name]
        np.testing.assert_allclose(found[made or ""], expected.transpose(perm), rtol=1e-5, atol=1e-5)


def test_layouts_asked_for_leave_no_transpose() -> None:
    model = small()
    data = feeds(model)
    expected = run(model, data)["y"]
    pipeline.run(model, (ChannelsLast({"x": "NHWC", "y": "NHWC"}),))
    assert transposes(model) == []
    assert [v.name for v in (*model.graph.inputs, *model.graph.outputs)] == ["x", "y"]
    found = run(model, {"x": data["x"].transpose(0, 2, 3, 1)})["y"]
    np.testing.assert_allclose(found, expected.transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-5)


def test_an_unknown_layout_is_refused() -> None:
    with pytest.raises(UsageError, match="NHWC"):
        ChannelsLast({"x": "HWNC"})(small())
    with pytest.raises(UsageError, match="'z'"):
        ChannelsLast({"z": "NHWC"})(small())


def test_why_transposes_stay() -> None:
    model = small()
    pipeline.run(model, (ChannelsLast(),))
    assert [t.reason for t in needed_transposes(model)] == [
        "input 'x' keeps its layout",
        "output 'y' keeps its layout",
    ]
    assert [t.bytes for t in needed_transposes(model)] == [256, 256]


def test_subgraphs_have_layouts_of_their_own() -> None:
    model = from_text(
        HEAD + "agraph (float[1,4,4,4] x, bool b, float[4,4,1,1] w) => (float[1,4,4,4] y) {"
        "c = Conv (x, w) r = Relu (c)"
        "i = If (b) <then_branch = t () => (float[1,4,4,4] p) { d = Conv (r, w) p = Tanh (d) },"
        "else_branch = e () => (float[1,4,4,4] q) { q = Neg (r) }>"
        "y = Conv (i, w) }"
    )
    with_weights(model, "w")
    data = {"x": feeds(small())["x"]}
    wanted = [run(model, {**data, "b": np.asarray(b)})["y"] for b in (True, False)]
    pipeline.run(model, (ChannelsLast(),))
    assert sum(n.op_type == "ConvNHWC" for n in model.graph.all_nodes()) == 3
    for flag, expected in zip((True, False), wanted, strict=True):
        found = run(model, {**data, "b": np.asarray(flag)})["y"]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_quantized_graphs() -> None:
    """Scales per channel follow their axis, and the rows of a quantized matrix follow the flattened image."""
    text = (
        "agraph (float[1,4,4,4] x, float[4,4,3,3] w, float[64,5] m) => (float[1,5] y)"
        "<float s = {0.05}, int8 z = {3}, float[4] sw = {0.02, 0.03, 0.01, 0.04}, int8[4] zw = {0, 0, 0, 0},"
        "float[5] sm = {0.02, 0.03, 0.01, 0.04, 0.05}, int8[5] zm = {0, 0, 0, 0, 0}> {"
        "xq = QuantizeLinear (x, s, z) xd = DequantizeLinear (xq, s, z)"
        "wq = QuantizeLinear <axis = 0> (w, sw, zw) wd = DequantizeLinear <axis = 0> (wq, sw, zw)"
        "c = Conv <pads = [1, 1, 1, 1]> (xd, wd) r = Relu (c)"
        "rq = QuantizeLinear (r, s, z) rd = DequantizeLinear (rq, s, z)"
        "f = Flatten (rd) mq = QuantizeLinear (m, sm, zm) md = DequantizeLinear (mq, sm, zm)"
        "y = MatMul (f, md) }"
    )
    model = with_weights(from_text(HEAD + text), "w", "m")
    pipeline.run(model, CANONICALIZE)
    data = feeds(model)
    expected = run(model, data)["y"]
    pipeline.run(model, (ChannelsLast(),))
    assert [t.reason for t in needed_transposes(model)] == ["input 'x' keeps its layout"]
    assert sum(n.op_type == "DequantizeLinear" for n in model.graph) == 4
    np.testing.assert_allclose(run(model, data)["y"], expected, rtol=1e-5, atol=1e-5)


# --- the check --------------------------------------------------------------------------------------------


def planted(model: ir.Model, value: ir.Value, *perms: tuple[int, ...]) -> None:
    """Put Transposes that together do nothing behind `value`."""
    graph = model.graph
    readers = [(u.node, u.idx) for u in value.uses()]
    at = value.producer()
    for perm in perms:
        node = ir.node("Transpose", [value], {"perm": perm}, name=g.fresh(graph, "planted"))
        node.metadata_props["tapeout.origin"] = node.name or ""
        assert value.shape is not None
        made = node.outputs[0]
        made.name, made.type = g.fresh(graph, "planted"), value.type
        made.shape = ir.Shape([value.shape[a] for a in perm])
        graph.insert_after(at, node) if at is not None else graph.insert_before(graph[0], node)
        value, at = made, node
    for node, index in readers:
        node.replace_input_with(index, value)


PAIRS = [
    ((0, 2, 3, 1), (0, 3, 1, 2)),
    ((3, 1, 2, 0), (3, 1, 2, 0)),
    ((1, 2, 3, 0), (1, 2, 3, 0), (2, 3, 0, 1)),
]


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("perms", PAIRS, ids=str)
def test_planted_transposes_are_found(at: int, perms: tuple[tuple[int, ...], ...]) -> None:
    model = small()
    pipeline.run(model, (ChannelsLast(),))
    assert removable_transposes(model) == []
    planted(model, list(model.graph)[at].outputs[0], *perms)
    assert removable_transposes(model)


def test_a_pair_around_an_operator_is_found() -> None:
    model = from_text(
        HEAD + "agraph (float[4,4,4,4] x) => (float[4,4,4,4] y) {"
        "a = Transpose <perm = [0, 2, 3, 1]> (x) b = Softmax <axis = 3> (a)"
        "y = Transpose <perm = [0, 3, 1, 2]> (b) }"
    )
    assert {t.node for t in removable_transposes(model, ())} == {n.name for n in transposes(model)}
    assert removable_transposes(model) == []


@pytest.mark.parametrize(
    "body, reason",
    [
        ("y = Transpose <perm = [1, 0]> (one)", "constant"),
        ("a = Transpose <perm = [1, 0]> (x) b = Transpose <perm = [1, 0]> (x) y = MatMul (a, b)", "the same"),
        ("a = Unsqueeze (x, axis) b = Transpose <perm = [1, 0, 2]> (a) y = Tile (b, axis3)", "size 1"),
    ],
)
def test_reasons(body: str, reason: str) -> None:
    rank = 3 if "Tile" in body else 2
    model = from_text(
        HEAD + f"agraph (float[4,4] x) => (float[{','.join('ABC'[:rank])}] y) "
        "<float[2,2] one = {1, 2, 3, 4}, int64[1] axis = {0}, int64[3] axis3 = {1, 1, 1}> {" + body + " }"
    )
    assert any(reason in t.reason for t in removable_transposes(model))


# --- the cut ----------------------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 9)), max_size=20))
def test_minimum_cut(arcs: list[tuple[int, int, int]]) -> None:
    """Against all 2**5 cuts."""
    network = Network()
    for _ in range(5):
        network.node()
    arcs = [(u, v, c) for u, v, c in arcs if u != v]
    for u, v, c in arcs:
        network.edge(u, v, c)
    side = network.source_side()
    assert side[SOURCE] and not side[SINK]

    def cost(chosen: tuple[bool, ...] | list[bool]) -> int:
        return sum(c for u, v, c in arcs if chosen[u] and not chosen[v])

    assert cost(side) == min(
        cost((True, False, *rest)) for rest in itertools.product((True, False), repeat=5)
    )


def test_a_long_chain_keeps_one_order() -> None:
    lines = ["v0 = Conv (x, w)"]
    for i in range(0, 996, 3):
        lines.append(
            f"a{i} = Conv <pads = [1, 1, 1, 1]> (v{i}, k) r{i} = Relu (a{i}) v{i + 3} = Add (r{i}, v{i})"
        )
    text = "agraph (float[1,4,8,8] x, float[4,4,1,1] w, float[4,4,3,3] k) => (float[1,4,8,8] v996) {"
    model = with_weights(from_text(HEAD + text + "\n".join(lines) + "}"), "w", "k")
    ChannelsLast()(model)
    assert len(transposes(model)) == 2
