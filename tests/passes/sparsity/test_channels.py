"""Channels that stand or fall together, through every kind of operator; what is cut computes the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tapeout.compiler.errors import UsageError
from tapeout.compiler.ir import check
from tapeout.compiler.ir import graph as g
from tapeout.passes.canonicalize import CANONICALIZE
from tapeout.passes.fusion import FUSION
from tapeout.passes.sparsity.channels import analyse
from tapeout.passes.sparsity.cut import cut
from tapeout.passes.sparsity.structured import PruneChannels
from tests.passes.networks import calibration, network, outputs, samples

Array = np.ndarray[Any, Any]

NETWORKS = {
    "residual": """
net (float[1,3,8,8] x) => (float[1,5,4,4] y) <
    float[8,3,3,3] w1, float[8] b1, float[8,8,3,3] w2, float[8] b2, float[8,1,3,3] wd, float[5,8,1,1] w3> {
    a = Conv<pads=[1,1,1,1]>(x, w1, b1)
    r = Relu(a)
    b = Conv<pads=[1,1,1,1]>(r, w2, b2)
    s = Add(r, b)
    d = Conv<group=8, pads=[1,1,1,1]>(s, wd)
    p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(d)
    y = Conv(p, w3)
}""",
    "grouped concat": """
net (float[1,4,6,6] x) => (float[1,3] y) <
    float[8,4,1,1] w1, float[4,4,1,1] w2, float[12,3,3,3] w3, float[12] b3,
    int64[2] shape = {1, 432}, float[432,3] w4> {
    a = Conv(x, w1)
    b = Conv(x, w2)
    c = Concat<axis=1>(a, b)
    d = Conv<group=4, pads=[1,1,1,1]>(c, w3, b3)
    e = Sigmoid(d)
    f = Reshape(e, shape)
    y = MatMul(f, w4)
}""",
    "heads": """
net (float[1,5,12] x) => (float[1,5,12] y) <
    float[12,12] wq, float[12,12] wk, float[12,12] wv, float[12,12] wo, float[12,20] w1, float[20] b1, float[20,12] w2,
    int64[4] split = {1, 5, 3, 4}, int64[3] join = {1, 5, 12}> {
    q = MatMul(x, wq)
    k = MatMul(x, wk)
    v = MatMul(x, wv)
    q4 = Reshape(q, split)
    k4 = Reshape(k, split)
    v4 = Reshape(v, split)
    qt = Transpose<perm=[0,2,1,3]>(q4)
    kt = Transpose<perm=[0,2,3,1]>(k4)
    vt = Transpose<perm=[0,2,1,3]>(v4)
    scores = MatMul(qt, kt)
    soft = Softmax<axis=-1>(scores)
    mixed = MatMul(soft, vt)
    back = Transpose<perm=[0,2,1,3]>(mixed)
    flat = Reshape(back, join)
    o = MatMul(flat, wo)
    res = Add(x, o)
    h = MatMul(res, w1)
    hb = Add(h, b1)
    g = Tanh(hb)
    z = MatMul(g, w2)
    y = Add(res, z)
}""",
    "split and pad": """
net (float[1,4,6,6] x) => (float[1,2,6,6] y) <
    float[12,4,1,1] w1, int64[2] parts = {6, 6}, int64[8] pads = {0,0,1,1,0,0,1,1}, float[2,6,3,3] w2> {
    a = Conv(x, w1)
    b, c = Split<axis=1>(a, parts)
    d = Sigmoid(b)
    e = Mul(d, c)
    f = Pad(e, pads)
    y = Conv(f, w2)
}""",
}


def model_of(name: str) -> ir.Model:
    return network(NETWORKS[name], len(name))


def floats(model: ir.Model) -> int:
    return sum(g.constant(v).size for v in model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT)  # type: ignore[union-attr]


def silence(model: ir.Model, name: str) -> tuple[Any, set[int]]:
    """Two free classes, with zeros in all that reads and makes them."""
    ties = analyse(model.graph)
    roots = sorted({ties.root(int(a)) for atoms in ties.weights.values() for a in atoms} - set(ties.reasons))
    assert roots, name
    removed = set(np.random.default_rng(3).choice(roots, min(2, len(roots)), replace=False).tolist())
    for (value, axis), atoms in ties.weights.items():
        array = np.array(value.const_value.numpy())  # type: ignore[union-attr]
        gone = np.isin(ties.roots(atoms), list(removed))
        np.moveaxis(array, axis, 0)[gone] = 0
        value.const_value = ir.tensor(array, name=value.name)
    return ties, removed


@pytest.mark.parametrize("name", NETWORKS)
def test_channels_of_zeros_are_cut_and_nothing_changes(name: str) -> None:
    model = model_of(name)
    ties, removed = silence(model, name)
    feeds = samples(model, 2)
    before = outputs(model, feeds)
    weights = floats(model)
    gone = cut(model, ties, removed)
    assert gone > 0
    assert floats(model) == weights - gone
    assert not check.faults(model, {})
    # The half of a sigmoid of nothing is a constant: only networks that carry zeros through are the same.
    if name in ("residual", "heads"):
        np.testing.assert_allclose(outputs(model, feeds), before, rtol=1e-4, atol=1e-5)
    assert outputs(model, feeds).shape == before.shape


def test_reasons_name_the_nodes_that_tie() -> None:
    model = model_of("residual")
    ties = analyse(model.graph)
    assert any("output 'y'" in r for r in ties.reasons.values())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_share_of_the_operations_goes(name: str) -> None:
    model = model_of(name)
    for step in (*CANONICALIZE, *FUSION):
        step(model)
    PruneChannels(0.3, calibration(model))(model)
    assert not check.faults(model, {})
    assert np.isfinite(outputs(model, samples(model, 2))).all()


def test_what_cannot_shrink_says_why() -> None:
    model = network("net (float[2,4] x) => (float[2,3] y) <float[4,3] w> { y = MatMul(x, w) }")
    with pytest.raises(UsageError, match="no channel of the model can be removed"):
        PruneChannels(0.3, calibration(model))(model)
