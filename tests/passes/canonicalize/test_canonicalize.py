"""Canonical form: text cases, real models, and the bounds of folding."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tapeout.compiler import pipeline
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.load import from_proto, from_text, load
from tapeout.passes.canonicalize import CANONICALIZE, FoldConstants, merge_duplicates
from tests.assets import model_names, model_path, needs_assets
from tests.passtext import Case, cases, check, deviation, draw, run, text

PASSES: dict[str, tuple[pipeline.Pass, ...]] = {
    "canonicalize": CANONICALIZE,
    "fold": (FoldConstants(),),
    "merge": (merge_duplicates,),
}
HEADER = '<ir_version: 10, opset_import: ["" : 25]>\n'


@pytest.mark.parametrize("case", cases(__file__), ids=str)
def test_text(case: Case, bless: bool) -> None:
    model = check(case, PASSES, bless)
    once = text(model)
    if case.values("passes") == ["canonicalize"]:
        assert [s.count for s in pipeline.run(model, CANONICALIZE).steps] == [0] * len(CANONICALIZE)
        assert text(model) == once


@needs_assets
@pytest.mark.parametrize("name", model_names())
def test_real_model_computes_the_same(name: str) -> None:
    source = onnx.load(model_path(name))
    model = load(model_path(name))
    stored = _stored(model)
    pipeline.run(model, CANONICALIZE)
    again = pipeline.run(model, CANONICALIZE)
    assert [s.count for s in again.steps] == [0] * len(CANONICALIZE)
    assert _stored(model) <= stored + (1 << 20)
    after = ir.to_proto(model)
    constants = {i.name for i in source.graph.initializer}
    for batch in (1, 3):
        rng = np.random.default_rng(batch)
        data = {}
        for info in source.graph.input:
            if info.name not in constants:
                kind = info.type.tensor_type
                dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
                high = 2 if "mask" in info.name else 1000 if dtype.kind == "i" else 1
                data[info.name] = draw(rng, dtype, [d.dim_value or batch for d in kind.shape.dim], 0, high)
        reference, result = run(source, data), run(after, data)
        for output, expected in reference.items():
            assert expected.shape == result[output].shape
            assert deviation(expected, result[output]) <= 1e-5


def _stored(model: ir.Model) -> int:
    tensors = (v.const_value for graph in g.graphs(model) for v in graph.initializers.values())
    return sum(t.nbytes for t in tensors if t is not None)


@pytest.mark.parametrize(
    "body",
    [
        "big = ConstantOfShape (huge)\n y = Gather (big, x)",
        "one = ConstantOfShape (unit)\n big = Expand (one, huge)\n y = Gather (big, x)",
        "one = ConstantOfShape (unit)\n big = Tile (one, huge)\n y = Gather (big, x)",
        "big = Range (zero, end, step)\n y = Gather (big, x)",
    ],
)
def test_a_huge_constant_is_never_made(body: str) -> None:
    kind = "int64" if "Range" in body else "float"
    model = from_text(
        f"{HEADER}agraph (int64[N] x) => ({kind}[N] y)\n"
        f"<int64[1] huge = {{34359738368}}, int64[1] unit = {{1}},"
        f" int64 zero = {{0}}, int64 end = {{34359738368}}, int64 step = {{1}}>\n{{ {body} }}"
    )
    tracemalloc.start()
    history = pipeline.run(model, CANONICALIZE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20
    assert [n.op_type for n in model.graph][-1] == "Gather"
    assert any("bytes" in d.reason for s in history.steps for d in s.declined)


def test_large_constants_are_read_only_when_asked() -> None:
    reads = []

    def weight() -> np.ndarray:
        reads.append(1)
        return np.random.default_rng(0).standard_normal((300, 200)).astype(np.float32)

    model = from_text(
        f"{HEADER}agraph (float[N,300] x) => (float[N,200] y)\n"
        f"<float[300,200] w = {{{','.join(['0'] * 60000)}}}>\n"
        "{ a = Transpose (w)\n b = Mul (a, a)\n c = Transpose (b)\n y = MatMul (x, c) }"
    )
    lazy = g.add_lazy_constant(model.graph, (300, 200), ir.DataType.FLOAT, weight, "w")
    model.graph.initializers["w"].replace_all_uses_with(lazy)
    pipeline.run(model, CANONICALIZE)
    assert [n.op_type for n in model.graph] == ["MatMul"]
    assert not reads
    (node,) = model.graph
    array = g.constant(node.inputs[1])
    assert array is not None
    np.testing.assert_allclose(array, weight() ** 2, rtol=1e-6)


def test_large_equal_weights_are_stored_once() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 64, 64)).astype(np.float32)
    nearly = a.copy()
    nearly[63, 62] += 1
    model = from_text(
        f"{HEADER}agraph (float[N,64] x) => (float[N,64] y)\n"
        f"<float[1] z = {{0}}>\n{{ p = Mul (x, z)\n y = Neg (p) }}"
    )
    graph = model.graph
    first, last = graph
    values = [g.add_constant(graph, array, "w") for array in (a, b, a.copy(), nearly)]
    previous = graph.inputs[0]
    for value in values:
        node = ir.node("MatMul", [previous, value], name=g.fresh(graph, "n"))
        node.metadata_props.update(first.metadata_props)
        node.outputs[0].name, node.outputs[0].dtype = g.fresh(graph, "n"), ir.DataType.FLOAT
        graph.insert_before(last, node)
        previous = node.outputs[0]
    last.replace_input_with(0, previous)
    pipeline.run(model, (merge_duplicates,))
    matrices = [n.inputs[1] for n in graph if n.op_type == "MatMul"]
    assert matrices[0] is matrices[2]
    assert len({id(m) for m in matrices}) == 3


@pytest.mark.slow
@pytest.mark.parametrize("folded", [False, True], ids=["inputs", "constants"])
def test_node_cases_compute_the_same(folded: bool) -> None:
    """ONNX's node cases through canonical form; with their inputs as constants, nearly all fold away."""
    import warnings

    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        every = collect_testcases(None)
    same = gone = 0
    wrong = []
    for case in every:
        if case.model is None or "bernoulli" in case.name or "random" in case.name:
            continue
        inputs, outputs = case.data_sets[0]
        if not all(isinstance(a, np.ndarray) and a.dtype.kind in "biuf" for a in (*inputs, *outputs)):
            continue
        proto = onnx.ModelProto()
        proto.CopyFrom(case.model)
        data = dict(zip((i.name for i in proto.graph.input), inputs, strict=False))
        if folded:
            proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in data.items())
            del proto.graph.input[:]
            data = {}
        try:
            reference = run(proto, data)
            model = from_proto(proto)
        except Exception:  # a case that the runtime or the import refuses has nothing to be compared with
            continue
        pipeline.run(model, CANONICALIZE)
        result = run(ir.to_proto(model), data)
        # Half precision rounds at each operator that remains.
        limit = 1e-3 if any(a.dtype == np.float16 for a in (*inputs, *outputs)) else 1e-5
        limit = 1e-3 if "softmax_precision" in case.name else limit
        for name, expected in reference.items():
            if expected.shape != result[name].shape or deviation(expected, result[name]) > limit:
                wrong.append((case.name, name))
        same += 1
        gone += all(node.op_type == "Identity" for node in model.graph)
    assert not wrong
    assert same > 1000
    assert not folded or gone > 1000
