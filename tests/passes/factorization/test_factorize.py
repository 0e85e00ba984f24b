"""Ranks, factors and what they become in the graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tapeout.compiler.errors import UsageError
from tapeout.compiler.ir import check
from tapeout.compiler.ir import graph as g
from tapeout.compiler.operations import operations
from tapeout.passes.factorization import METHODS, Factorize
from tapeout.passes.factorization.forms import FORMS
from tapeout.passes.factorization.lowrank import cp, factors, rows, spectrum, tucker
from tapeout.passes.factorization.stages import split
from tapeout.passes.sparsity.layers import layers
from tests.passes.networks import calibration, network, outputs, samples

Array = np.ndarray[Any, Any]

NETWORK = """
net (float[1,4,10,10] x) => (float[1,12] y) <
    float[32,4,3,3] w1, float[32] b1, float[48,32,3,3] w2, float[48] b2, float[48,48,1,1] w3,
    int64[2] flat = {1, 48}, float[48,64] w4, float[64] b4, float[12,64] w5, float[12] b5> {
    a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w1, b1)
    r = Relu(a)
    b = Conv<pads=[1,1,1,1]>(r, w2, b2)
    s = Relu(b)
    c = Conv(s, w3)
    p = GlobalAveragePool(c)
    f = Reshape(p, flat)
    m = MatMul(f, w4)
    n = Add(m, b4)
    e = Relu(n)
    y = Gemm<transB=1>(e, w5, b5)
}"""


def work(model: ir.Model) -> int:
    return sum(operations(n, assume=1) or 0 for n in model.graph if n.op_type in ("Conv", "MatMul", "Gemm"))


@pytest.mark.parametrize("method", METHODS)
def test_a_share_of_the_operations_goes(method: str) -> None:
    dense, thin = network(NETWORK), network(NETWORK)
    changes = Factorize(method, 0.3, calibration(thin))(thin)
    assert changes.count
    assert not check.faults(thin, {})
    assert work(thin) <= 0.72 * work(dense)
    unseen = samples(dense, 24, seed=99)
    wanted, found = outputs(dense, unseen), outputs(thin, unseen)
    assert np.mean((found - wanted) ** 2) < 0.5 * np.var(wanted, axis=0).mean()


def test_whitening_loses_less_of_the_outputs_than_plain_svd() -> None:
    draw = np.random.default_rng(0)
    x = draw.standard_normal((500, 8)) @ draw.standard_normal((8, 40)) + 0.1 * draw.standard_normal((500, 40))
    weight, moments = draw.standard_normal((30, 40)), x.T @ x
    for rank in (4, 8, 16):
        lost = []
        for seen in (moments, None):
            a, b = factors(weight, seen, rank)
            assert (a.shape, b.shape) == ((30, rank), (rank, 40))
            lost.append(float(np.sum((x @ (a @ b - weight).T) ** 2)))
        assert lost[0] < lost[1] / 2


def test_the_spectrum_tells_what_is_lost() -> None:
    weight = np.random.default_rng(1).standard_normal((10, 14))
    lost = spectrum(weight, None)
    assert lost[0] == pytest.approx(1)
    assert lost[-1] == pytest.approx(0, abs=1e-12)
    a, b = factors(weight, None, 6)
    assert lost[6] == pytest.approx(np.sum((a @ b - weight) ** 2) / np.sum(weight**2))


def test_tucker_is_exact_at_full_rank_and_finds_a_low_one() -> None:
    draw = np.random.default_rng(2)
    low = np.einsum("or,rsp,si->oip", *(draw.standard_normal(s) for s in ((9, 3), (3, 2, 4), (2, 7))))
    for kernel, ranks in ((low, (3, 2)), (draw.standard_normal((9, 7, 4)), (9, 7))):
        a, core, b = tucker(kernel, *ranks)
        np.testing.assert_allclose(np.einsum("or,rsp,si->oip", a, core, b), kernel, atol=1e-9)


def test_cp_finds_the_terms_of_kernels_that_have_few() -> None:
    left = []
    for seed in range(6):
        draw = np.random.default_rng(seed)
        kernel = np.einsum("or,ir,pr->oip", *(draw.standard_normal((size, 3)) for size in (9, 7, 4)))
        change = np.einsum("or,rp,ri->oip", *cp(kernel, 3, rounds=50)) - kernel
        left.append(float(np.sum(change**2) / np.sum(kernel**2)))
    # Alternating least squares may come to rest beside the best terms, here in one of six.
    assert sorted(left)[4] < 1e-6
    assert max(left) < 0.01


def test_uv_finds_a_separable_kernel() -> None:
    draw = np.random.default_rng(4)
    u, v = draw.standard_normal((8, 2, 3)), draw.standard_normal((2, 5, 3))
    kernel = np.einsum("orx,riy->oiyx", u, v)
    basis = rows(kernel, 2).reshape(2, -1)
    seen = kernel.transpose(0, 3, 1, 2).reshape(24, -1)
    np.testing.assert_allclose(seen @ basis.T @ basis, seen, atol=1e-9)


WINDOWS = (
    "pads=[1,0,2,1], strides=[2,1]",
    "dilations=[1,2], pads=[1,2,1,2]",
    'auto_pad="SAME_UPPER", strides=[1,2]',
    "",
)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("method", METHODS)
def test_every_form_is_the_layer_at_full_rank_whatever_its_window(method: str, window: str) -> None:
    attributes = f"<{window}>" if window else ""
    model = network(
        f"""net (float[1,4,9,10] x) => (float[1,40,h,w] y) <float[40,4,3,3] w1, float[40] b1> {{
        y = Conv{attributes}(x, w1, b1)
        }}"""
    )
    feeds = samples(model, 2)
    wanted = outputs(model, feeds)
    found = next(iter(layers(model.graph)))
    form = FORMS[method]
    draw = np.random.default_rng(5).standard_normal((200, 36))
    _, stages = form.parts(found, found.weight()[0], draw.T @ draw, form.most(found))
    split(model.graph, found, stages)
    g.remove_dead(model.graph)
    assert len([n for n in model.graph if n.op_type == "Conv"]) == len(stages) > 1
    # Sums of 36 products in float32, in two or three steps.
    np.testing.assert_allclose(outputs(model, feeds), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_the_share_of_operations_is_what_the_stages_take(method: str) -> None:
    model = network(
        """net (float[1,16,12,12] x) => (float[1,24,6,6] y) <float[24,16,3,3] w1> {
        y = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w1)
        }"""
    )
    found, whole, form = next(iter(layers(model.graph))), work(model), FORMS[method]
    ranks = tuple(max(1, r // 4) for r in form.most(found))
    _, stages = form.parts(found, found.weight()[0], np.eye(144), ranks)
    split(model.graph, found, stages)
    g.remove_dead(model.graph)
    assert work(model) == pytest.approx(form.share(found, ranks) * whole)


@pytest.mark.parametrize(("by", "bound"), [("energy", 0.3), ("sensitivity", 0.02)])
def test_ranks_by_what_may_be_lost(by: str, bound: float) -> None:
    works = []
    for loss in (bound / 5, bound):
        dense, thin = network(NETWORK), network(NETWORK)
        Factorize("svd", loss, calibration(thin, 48), by=by)(thin)
        works.append(work(thin))
    assert works[1] < works[0] < work(dense)


def test_no_layer_that_pays_within_the_loss_is_refused() -> None:
    model = network(NETWORK)
    with pytest.raises(UsageError, match=r"no layer takes fewer operations at a loss of 1e-09 of its output"):
        Factorize("svd", 1e-9, calibration(model), by="energy")(model)
    with pytest.raises(UsageError, match="ranks by 'size'"):
        Factorize("svd", 0.3, calibration(model), by="size")(model)


@pytest.mark.parametrize("method", ["circulant", "block-circulant"])
def test_circulant_blocks_are_refused_with_the_arithmetic(method: str) -> None:
    model = network(NETWORK)
    with pytest.raises(UsageError, match="saves no operations on any target") as found:
        Factorize(method, 0.5, calibration(model))(model)
    assert "b * b multiplications" in str(found.value.hint)


def test_what_cannot_pay_is_refused_with_the_arithmetic() -> None:
    model = network("net (float[4,8] x) => (float[4,2] y) <float[8,2] w> { y = MatMul(x, w) }")
    with pytest.raises(UsageError, match="at most") as found:
        Factorize("svd", 0.5, calibration(model))(model)
    assert "[2, 8] pays below rank 1.6 only" in str(found.value.hint) or "can remove at most" in str(
        found.value
    )


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(UsageError, match="unknown factorization 'qr'"):
        Factorize("qr", 0.5)(network(NETWORK))
