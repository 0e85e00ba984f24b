"""A graph in parts computes what it computes whole, whatever is refused."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapeout.compiler.declaration import Declaration
from tapeout.compiler.errors import UnsupportedError
from tapeout.compiler.ir import graph as g
from tapeout.compiler.partition import Limits, Part, cut, extract, partition
from tapeout.compiler.reference import Reference
from tests.passtext import imported, parse

OPS = ("Sin", "Cos", "Exp", "Add", "Mul")


def random_model(draw: st.DrawFn) -> ir.Model:
    """A DAG of ten nodes over two inputs; the last value and one more are outputs."""
    names, lines = ["x", "w"], []
    for i in range(draw(st.integers(2, 10))):
        op = draw(st.sampled_from(OPS))
        reads = [draw(st.sampled_from(names)) for _ in range(2 if op in ("Add", "Mul") else 1)]
        lines.append(f"[n{i}] v{i} = {op} ({', '.join(reads)})")
        names.append(f"v{i}")
    outputs = dict.fromkeys([names[-1], draw(st.sampled_from(names[2:]))])
    body = "\n".join(lines)
    return imported(
        parse(
            f"agraph (float[2,3] x) => ({', '.join(f'float[2,3] {o}' for o in outputs)}) "
            f"<float[2,3] w = {{0.5, -1.0, 2.0, 1.5, -0.25, 3.0}}> {{ {body} }}"
        )
    )


def run(model: ir.Model, parts: list[Part], feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    known = dict(feed)
    for part in parts:
        with Reference(extract(model, part)) as piece:
            known |= piece.run({v.name or "": known[v.name or ""] for v in part.inputs})
    return {v.name or "": known[v.name or ""] for v in model.graph.outputs}


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_parts_compute_what_the_whole_does(data: st.DataObject) -> None:
    model = data.draw(st.composite(random_model)())
    g.remove_dead(model.graph)
    host = {n for n in model.graph if data.draw(st.booleans())}
    parts = cut(model, host)
    assert sorted(n.name or "" for p in parts for n in p.nodes) == sorted(n.name or "" for n in model.graph)
    assert all(set(p.nodes) <= host if p.host else not set(p.nodes) & host for p in parts)
    assert all(a.host != b.host for a, b in itertools.pairwise(parts))
    feed = {"x": np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)}
    with Reference(model) as whole:
        expected = whole.run(feed)
    for name, array in run(model, parts, feed).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-6, equal_nan=True)


def rows(folder: Path, *ops: str) -> Declaration:
    (folder / "target.toml").write_text('api = 1\nname = "npu"\n' + "".join(f"[[op.{o}]]\n" for o in ops))
    return Declaration.load(folder / "target.toml")


CHAIN = """agraph (float[2,3] x) => (float[2,3] y)
{ [a] a = Sin (x) [b] b = Sin (a) [c] c = Exp (b) [d] d = Sin (c) [e] e = Exp (d) [f] y = Sin (e) }"""


def shape_of(parts: list[Part]) -> list[str]:
    return [("host " if p.host else "") + "".join(n.name or "" for n in p.nodes) for p in parts]


def test_a_side_branch_joins_a_later_part(tmp_path: Path) -> None:
    text = """agraph (float[2,3] x) => (float[2,3] y)
    { [h] h = Exp (x) [a] a = Sin (x) [b] b = Sin (h) [c] y = Add (a, b) }"""
    parts, acceptance = partition(imported(parse(text)), rows(tmp_path, "Sin", "Add"))
    assert shape_of(parts) == ["host h", "abc"]
    assert [r.name for r in acceptance.refused] == ["h"] and len(acceptance.placed) == 3


def test_limits(tmp_path: Path) -> None:
    model, npu = imported(parse(CHAIN)), rows(tmp_path, "Sin")
    assert shape_of(partition(model, npu)[0]) == ["ab", "host c", "d", "host e", "f"]
    parts, acceptance = partition(model, npu, Limits(smallest=2))
    assert shape_of(parts) == ["ab", "host cdef"]
    said = {r.name: str(r) for r in acceptance.refused}
    assert said["d"] == "Sin 'd': operators of the island 1, at least 2 on npu; lower --smallest-island"
    with pytest.raises(UnsupportedError, match="bytes to and from the island 48, at most 47"):
        partition(model, npu, Limits(largest=47))


def test_a_subgraph_lies_in_one_part(tmp_path: Path) -> None:
    text = """agraph (float[2] x, bool[1] p) => (float[2] y)
    { [a] a = Sin (x) [s] q = Squeeze (p)
      [i] z = If (q) <then_branch = t () => (float[2] u) { [t1] u = Exp (a) },
                      else_branch = f () => (float[2] v) { [e1] v = Sin (a) }>
      [b] y = Sin (z) }"""
    model = imported(parse(text))
    parts, _ = partition(model, rows(tmp_path, "Sin", "If", "Squeeze"))
    assert shape_of(parts) == ["as", "host i", "b"]
    assert {v.name for v in parts[1].inputs} == {"a", "q"}
    feed = {"x": np.array([0.5, 1.0], np.float32), "p": np.array([True])}
    with Reference(model) as whole:
        np.testing.assert_allclose(run(model, parts, feed)["y"], whole.run(feed)["y"], rtol=1e-6)


def test_clusters_stay_whole(tmp_path: Path) -> None:
    """A DequantizeLinear that two parts read is copied: the border is crossed by integers."""
    text = """agraph (int8[2,3] x) => (float[2,3] y) <float s = {0.1}, int8 z = {0}>
    { [dq] d = DequantizeLinear (x, s, z) [a] a = Sin (d) [q] b = QuantizeLinear (a, s, z)
      [dq2] e = DequantizeLinear (b, s, z) [h] h = Exp (e) [c] y = Add (e, h) }"""
    model = imported(parse(text))
    parts, _ = partition(model, rows(tmp_path, "Sin", "Add", "QuantizeLinear", "DequantizeLinear"))
    assert shape_of(parts) == ["aq", "host h", "c"]
    assert [v.name for v in parts[1].inputs] == ["b"] and {v.name for v in parts[2].inputs} == {"b", "h"}
    assert [n.op_type for n in extract(model, parts[0]).graph] == [
        "DequantizeLinear",
        "Sin",
        "QuantizeLinear",
    ]
