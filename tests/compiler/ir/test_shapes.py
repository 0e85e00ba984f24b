"""Shape inference: against ONNX's own node cases, with sizes bound and with symbols; and on real models."""

from __future__ import annotations

import functools
import time
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tapeout.compiler.ir import functions
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.dimensions import bind, parse, symbol, symbols
from tapeout.compiler.ir.load import from_text, load
from tapeout.compiler.ir.shapes import dims_of, infer, infer_node, known_value
from tests.assets import model_names, model_path, needs_assets

HEADER = '<ir_version: 10, opset_import: ["" : 25]>\n'


@functools.cache
def node_cases() -> list[Any]:
    """ONNX's node cases of one node of the standard domain, in a version that is the canonical one."""
    import warnings

    from onnx.backend.test.case.node import collect_testcases

    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in collect_testcases(None):
            model = case.model
            if model is None or len(model.graph.node) != 1 or not case.data_sets:
                continue
            node = model.graph.node[0]
            if node.domain or any(o.version > 25 for o in model.opset_import if not o.domain):
                continue
            try:
                now = onnx.defs.get_schema(node.op_type, 25, "").since_version
                then = onnx.defs.get_schema(node.op_type, model.opset_import[0].version, "").since_version
            except onnx.defs.SchemaError:
                continue
            if now == then:
                found.append(case)
    return found


def infer_case(case: Any, symbolic: bool) -> tuple[ir.Node, list[Any]]:
    """The node of a case, inferred from its inputs alone; `symbolic` names every size n > 1 "d<n>"."""
    proto = onnx.ModelProto()
    proto.CopyFrom(case.model)
    model = ir.from_proto(proto)
    inputs, outputs = case.data_sets[0]
    for value, array in zip(model.graph.inputs, inputs, strict=False):
        if not isinstance(array, np.ndarray):
            continue
        if array.size <= 64 and array.dtype.kind in "biuf":
            value.const_value = ir.tensor(array)
        if symbolic:
            value.shape = ir.Shape([f"d{n}" if n > 1 else n for n in array.shape])
    (node,) = model.graph
    for value in node.outputs:
        value.shape = None
        if value.type is None or isinstance(value.type, ir.TensorType):
            value.type = None
    infer_node(node)
    return node, outputs


class Sizes(dict[str, int]):
    def __missing__(self, name: str) -> int:
        return int(name[1:])


@pytest.mark.slow
@pytest.mark.parametrize("symbolic", [False, True], ids=["sizes", "symbols"])
def test_node_cases(symbolic: bool) -> None:
    resolved = unresolved = 0
    wrong = []
    for case in node_cases():
        node, outputs = infer_case(case, symbolic)
        for value, array in zip(node.outputs, outputs, strict=False):
            if not isinstance(array, np.ndarray) or value.name == "":
                continue
            dims = dims_of(value)
            if dims is None or None in dims:
                unresolved += 1
                continue
            resolved += 1
            if tuple(bind(d, Sizes()) for d in dims if d is not None) != array.shape:
                wrong.append((case.name, dims, array.shape))
            if array.dtype.kind in "biuf" and value.dtype is not None and value.dtype.numpy() != array.dtype:
                wrong.append((case.name, value.dtype, array.dtype))
            known = known_value(value)
            if known is not None and not symbolic and not np.array_equal(known.astype(array.dtype), array):
                wrong.append((case.name, known.tolist(), array.tolist()))
    assert not wrong
    assert resolved > (750 if symbolic else 900)
    assert unresolved < resolved / 2


@needs_assets
@pytest.mark.parametrize("name", model_names())
def test_real_models_are_resolved(name: str) -> None:
    model = load(model_path(name))
    free = {s for v in model.graph.inputs for d in dims_of(v) or () if d is not None for s in symbols(d)}
    start = time.perf_counter()
    infer(model)
    assert time.perf_counter() - start < 1
    for graph in g.graphs(model):
        for node in graph:
            for value in node.outputs:
                if value.uses() or value.is_graph_output():
                    dims = dims_of(value)
                    assert dims is not None and None not in dims, f"{node.op_type} {value.name}: {dims}"
                    assert all(symbols(d) <= free for d in dims if d is not None)


def shapes(body: str, functions_text: str = "") -> dict[str, str]:
    model = from_text(f"{HEADER}{body}\n{functions_text}")
    infer(model)
    return {v.name or "": str(list(dims_of(v) or ["?"])) for n in model.graph for v in n.outputs}


def test_one_free_dimension_is_one_symbol() -> None:
    found = shapes(
        f"""agraph (float[N,3,H,W] x) => (float[a,b] y)
    <float[8,3,3,3] w = {{{",".join(["1"] * 216)}}}, int64[1] zero = {{0}}, int64[1] one = {{1}},
     int64[2] tail = {{-1, 8}}, int64[1] huge = {{9223372036854775807}}>
    {{
       c = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w)
       p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (c)
       s = Shape (p)
       t = Transpose <perm = [0, 2, 3, 1]> (p)
       y = Reshape (t, tail)
       d = Concat <axis = 0> (x, x)
       e = Slice (d, one, huge, zero)
       f = Add (d, d)
    }}"""
    )
    assert found["d"] == found["f"] == "[2*N, 3, H, W]"
    assert found["e"] == "[2*N-1, 3, H, W]"
    assert found["s"] == "[4]"
    n, ch, h, w = found["p"].strip("[]").split(", ")
    assert (n, ch) == ("N", "8")
    for size in (7, 8, 9, 10, 11):
        conv = (size - 1) // 2 + 1
        assert bind(parse(h), {"H": size}) == bind(parse(w), {"W": size}) == (conv - 2) // 2 + 1
    rows = found["y"].strip("[]").split(", ")[0]
    assert bind(parse(rows), {"N": 2, "H": 16, "W": 20}) == 2 * 4 * 5


def test_unknown_input_dimensions_get_symbols_of_their_own() -> None:
    model = from_text(
        f"{HEADER}agraph (float[?,3] x, float[N,?] y) => (float[?,?] z) {{ z = MatMul (x, y) }}"
    )
    infer(model)
    assert [g.dims(v) for v in model.graph.inputs] == [("x_0", 3), ("N", "y_1")]
    assert g.dims(model.graph.outputs[0]) == ("x_0", "y_1")


def test_stated_outputs_stay_and_are_filled_in() -> None:
    model = from_text(
        f"{HEADER}agraph (float[N,3] x) => (float[N,3] a, float[M,3] b, float[?,?] c, float[4,3] d)\n"
        "{ a = Relu (x)\n b = Neg (x)\n c = Abs (x)\n d = Exp (x) }"
    )
    infer(model)
    assert [g.dims(v) for v in model.graph.outputs] == [("N", 3), ("N", 3), ("N", 3), (4, 3)]


def test_what_depends_on_data_is_unknown() -> None:
    found = shapes("agraph (float[N,3] x) => (int64[2,?] y) { y = NonZero (x) }")
    assert found["y"] == "[2, None]"


def test_known_values_of_shape_arithmetic() -> None:
    model = from_text(
        HEADER
        + """agraph (float[N,6,H] x) => (int64[4] t)
    <int64 zero = {0}, int64 two = {2}, int64[1] a0 = {0}, int64[1] minus = {-1}, int64[1] twelve = {12}>
    {
       s = Shape (x)
       n = Gather (s, zero)
       h = Gather (s, two)
       m = Mul (n, two)
       half = Div (h, two)
       left = Mod (h, two)
       m1 = Unsqueeze (m, a0)
       h1 = Unsqueeze (half, a0)
       l1 = Unsqueeze (left, a0)
       t = Concat <axis = 0> (m1, h1, l1, twelve)
    }"""
    )
    value = known_value(model.graph.outputs[0])
    assert value is not None
    for n, h in ((3, 7), (5, 10)):
        assert [bind(d, {"N": n, "H": h}) for d in value.tolist()] == [2 * n, h // 2, h % 2, 12]


def test_control_flow() -> None:
    found = shapes("""agraph (float[N,3] x, bool c, int64 n) =>
        (float[N,3] y, float[a,N,3] s, float[N,3] z, float[3] w, float[N,3] k)
    <int64 i0 = {0}>
    {
       first = Gather (x, i0)
       z = If (c) <then_branch = yes () => (float[q,3] u) { u = Relu (x) },
                   else_branch = no () => (float[r,3] v) { v = Neg (x) }>
       y, s = Loop (n, c, x) <body = body (int64 i, bool ci, float[p,q] state)
           => (bool co, float[r,t] next, float[u,v] out)
           { co = Identity (ci)
             next = Exp (state)
             out = Neg (state) }>
       w, k = Scan <num_scan_inputs = 1, body = step (float[b] carried, float[b] row)
           => (float[b] next2, float[b] row2)
           { next2 = Add (carried, row)
             row2 = Identity (next2) }> (first, x)
    }""")
    assert found["z"] == "[N, 3]"
    assert found["y"] == "[N, 3]"
    assert found["s"] == "[None, N, 3]"
    assert found["w"] == "[3]"
    assert found["k"] == "[N, 3]"


def test_a_function_is_inferred_through_its_body() -> None:
    text = """<domain: "tapeout", opset_import: ["" : 25]>
    ShapeTestNHWC <strides, pads> (x, w) => (y)
    {
       t = Transpose <perm = [0, 3, 1, 2]> (x)
       v = Transpose <perm = [0, 3, 1, 2]> (w)
       c = Conv <strides: ints = @strides, pads: ints = @pads> (t, v)
       y = Transpose <perm = [0, 2, 3, 1]> (c)
    }"""
    model = from_text(
        f"{HEADER}agraph (float[N,H,9,3] x, float[8,3,3,3] w) => (float[N,H,9,3] r) {{ r = Relu (x) }}"
    )
    function = functions.declare(model, text)
    x, w = model.graph.inputs
    node = ir.node("ShapeTestNHWC", [x, w], {"strides": [2, 2], "pads": [0, 0, 0, 0]}, domain="tapeout")
    before = functions.digest(function)
    uses = len(x.uses())
    infer_node(node)
    dims = dims_of(node.outputs[0])
    assert dims is not None and dims[0] == symbol("N") and dims[2:] == (4, 8) and dims[1] is not None
    assert [bind(dims[1], {"H": h}) for h in (9, 10, 33)] == [4, 4, 16]
    assert functions.digest(function) == before
    assert len(x.uses()) == uses


def test_arithmetic_that_explodes_ends_soon() -> None:
    steps = "\n".join(f"v{i + 1} = Mul (v{i}, v{i})" for i in range(60))
    start = time.perf_counter()
    shapes(
        f"agraph (float[N,M] x) => (int64 v60)\n<int64 zero = {{0}}, int64 one = {{1}}>\n"
        f"{{ s = Shape (x)\n n = Gather (s, zero)\n m = Gather (s, one)\n v0 = Add (n, m)\n {steps} }}"
    )
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    "body",
    [
        "y = Conv <kernel_shape = [3], strides = [0, 0]> (x, x)",
        "y = MaxPool <kernel_shape = [0, -1]> (x)",
        "y = Transpose <perm = [0, 9]> (x)",
        "y = Concat <axis = 7> (x, x)",
        "y = DepthToSpace <blocksize = 0> (x)",
        "y = Gather <axis = -9> (x, k)",
        "y = Reshape (x, k)",
        "y = Split <axis = 5> (x)",
        "y = Scan <num_scan_inputs = 9, body = b () => () { }> (x)",
    ],
)
def test_nodes_that_are_not_valid_are_left(body: str) -> None:
    proto = onnx.parser.parse_model(
        f"{HEADER}agraph (float[N,M,4,4] x) => (float y) <int64[3] k = {{-1, -1, -7}}> {{ {body} }}"
    )
    model = ir.from_proto(proto)
    infer(model)


def test_a_function_is_that_of_its_model_where_another_model_has_one_of_the_same_name() -> None:
    text = """<ir_version: 10, opset_import: ["" : 25, "acme" : 1]>
agraph (float[2,3] x) => (float[a,b] y) {{ [turn] y = acme.Turn (x) }}
<domain: "acme", opset_import: ["" : 25]>
Turn (X) => (Y) {{ Y = {} (X) }}
"""
    for body, shape in (("Identity", [2, 3]), ("Transpose <perm=[1,0]>", [3, 2])):
        model = from_text(text.format(body))
        infer(model)
        (node,) = model.graph
        assert node.outputs[0].shape == shape
