"""Residual blocks that go: which are found, in what order, and what is left."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tapeout.compiler.errors import UsageError
from tapeout.compiler.ir import check
from tapeout.compiler.ir import graph as g
from tapeout.passes.sparsity.depth import DropBlocks, Gates, blocks
from tapeout.passes.sparsity.structured import work
from tests.passes.networks import calibration, network, outputs, samples

NETWORK = """
net (float[1,6,8,8] x) => (float[1,4] y) <
    float[6,6,3,3] w1, float[6] b1, float[6,6,3,3] w2, float[6] b2, float[6,6,1,1] w3, float[6] b3,
    float[6,6,3,3] w4, float[4,6] w5, float[4] b5> {
    c = Conv(x, w3, b3)
    a = Conv<pads=[1,1,1,1]>(c, w1, b1)
    first = Add(c, a)
    r = Relu(first)
    b = Conv<pads=[1,1,1,1]>(r, w2, b2)
    t = Tanh(b)
    s = Sigmoid(b)
    u = Mul(t, s)
    second = Add(u, r)
    d = Conv<pads=[1,1,1,1]>(second, w4)
    third = Add(second, d)
    p = GlobalAveragePool(third)
    f = Flatten(p)
    y = Gemm<transB=1>(f, w5, b5)
}"""
ATTENTION = """
net (float[1,5,12] x) => (float[1,5,12] y) <
    float[12,12] wq, float[12,12] wk, float[12,12] wv, float[12,12] wo, float[12] s, float[12] o, float[12,12] w1> {
    q = MatMul(x, wq)
    k = MatMul(x, wk)
    v = MatMul(x, wv)
    kt = Transpose<perm=[0,2,1]>(k)
    scores = MatMul(q, kt)
    soft = Softmax<axis=-1>(scores)
    mixed = MatMul(soft, v)
    out = MatMul(mixed, wo)
    sum = Add(x, out)
    n = LayerNormalization(sum, s, o)
    y = MatMul(n, w1)
}"""


def quiet(model: ir.Model, name: str, factor: float) -> None:
    value = model.graph.initializers[name]
    weight = g.constant(value)
    assert weight is not None
    value.const_value = ir.tensor(weight * np.float32(factor), name=name)


def ends(model: ir.Model) -> list[str]:
    return [b.add.outputs[0].name or "" for b in blocks(model.graph)]


def test_blocks_end_at_adds_of_a_value_and_what_is_computed_from_it() -> None:
    assert ends(network(NETWORK)) == ["first", "second", "third"]
    assert ends(network(ATTENTION)) == ["sum"]


def test_a_branch_that_something_else_reads_is_no_block() -> None:
    model = network(
        """net (float[1,8] x) => (float[1,8] y, float[1,8] h) <float[8,8] w> {
        h = MatMul(x, w)
        y = Add(x, h)
        }"""
    )
    assert blocks(model.graph) == []


def test_gates_show_the_model_without_a_block() -> None:
    model = network(NETWORK)
    feeds = samples(model, 8)
    found = blocks(model.graph)
    gates = Gates(model, found, feeds)
    assert gates.lost([]) == 0
    for block, name in zip(found, ("w1", "w2", "w4"), strict=True):
        without = network(NETWORK)
        for each in (name, name.replace("w", "b")):
            if each in without.graph.initializers and each != "b4":
                quiet(without, each, 0.0)
        wanted, ours = outputs(model, feeds), outputs(without, feeds)
        exact = float(np.mean((wanted - ours) ** 2) / np.var(wanted))
        assert gates.lost([block]) == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("name", ["w1", "w2", "w4"])
def test_the_block_that_does_least_goes_and_the_outputs_stay(name: str) -> None:
    dense, thin = network(NETWORK), network(NETWORK)
    for model in (dense, thin):
        quiet(model, name, 1e-3)
        if name != "w4":
            quiet(model, name.replace("w", "b"), 1e-3)
    DropBlocks(0.2, calibration(thin, 48))(thin)
    assert not check.faults(thin, {})
    assert len(blocks(thin.graph)) == 2
    assert name not in thin.graph.initializers
    assert work(thin) <= 0.8 * work(dense)
    unseen = samples(dense, 16, seed=99)
    wanted, found = outputs(dense, unseen), outputs(thin, unseen)
    assert np.mean((found - wanted) ** 2) < 0.01 * np.var(wanted, axis=0).mean()


def test_neighbours_may_go_together() -> None:
    dense, thin = network(NETWORK), network(NETWORK)
    DropBlocks(0.9, calibration(thin, 48))(thin)
    assert blocks(thin.graph) == []
    assert not check.faults(thin, {})
    unseen = samples(dense, 16, seed=99)
    assert outputs(thin, unseen).shape == outputs(dense, unseen).shape


def test_attention_goes_whole() -> None:
    model = network(ATTENTION)
    DropBlocks(0.5, calibration(model))(model)
    assert [n.op_type for n in model.graph] == ["LayerNormalization", "MatMul"]


def test_more_than_the_blocks_hold_is_refused_with_their_names() -> None:
    model = network(NETWORK)
    with pytest.raises(UsageError, match="those that can go hold 9"):
        DropBlocks(0.99, calibration(model))(model)
    model = network("net (float[1,4] x) => (float[1,3] y) <float[4,3] w> { y = MatMul(x, w) }")
    with pytest.raises(UsageError, match="hold 0%"):
        DropBlocks(0.5, calibration(model))(model)
