"""What graphs become: launches, fused, over one arena, computing what the source computes."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tapeout
from tapeout.compiler.errors import UsageError
from tapeout.targets.nvidia import declaration
from tapeout.targets.nvidia.executor import Executor
from tapeout.targets.nvidia.fuse import numbers
from tapeout.targets.nvidia.lower import LOWERINGS
from tapeout.targets.nvidia.memory import lives
from tapeout.targets.nvidia.plan.parts import Kind, Plan
from tapeout.targets.nvidia.plan.read import PlanFile
from tapeout.targets.nvidia.plan.write import write
from tapeout.targets.nvidia.reference import KERNELS
from tests.assets import model_path, needs_assets
from tests.targets.nvidia.cases import CASES
from tests.targets.nvidia.road import agrees, opened, planned, ran

RNG = np.random.default_rng(5)


def real(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def half(number: float) -> Any:
    return np.full(2, number, np.float16)


def operations(plan: Plan) -> list[str]:
    return [launch.operation for launch in plan.launches]


def test_every_row_has_a_lowering_and_every_lowering_a_row() -> None:
    rows = {row.lower for found in declaration("sm_90").rows.values() for row in found}
    assert rows == set(LOWERINGS)


MLP = """agraph (float[N, 8] x) => (float[N, 8] y)
<float[8, 8] w = {%s}, float[8] b = {1, 2, 3, 4, 5, 6, 7, 8}> {
    p = MatMul(x, w)
    s = Add(p, b)
    a = Gelu(s)
    y = Add(a, x)
}""".replace("%s", ", ".join(str(v) for v in RNG.standard_normal(64).round(3)))


def test_bias_activation_and_residual_are_the_product_s_epilogue() -> None:
    plan = planned(MLP)
    assert operations(plan) == ["gemm"]
    assert plan.launches[0].sources and len(plan.launches[0].reads) == 4
    assert plan.profiles[0].arena == 0, "nothing lies between"
    agrees(MLP, {"x": real(5, 8)})


def test_point_wise_chains_are_one_launch() -> None:
    text = """agraph (float[4, 6] x, float[6] z) => (float[4, 6] y) {
        a = Mul(x, z)
        b = Sigmoid(a)
        c = Sub(b, x)
        y = Exp(c)
    }"""
    assert operations(planned(text)) == ["map"]
    agrees(text, {"x": real(4, 6), "z": real(6)})


def test_what_is_read_twice_is_computed_once() -> None:
    text = """agraph (float[4, 6] x) => (float[4, 6] y, float[4] z) <int64[1] axes = {1}> {
        a = Exp(x)
        y = Mul(a, a)
        z = ReduceSum<keepdims = 0>(a, axes)
    }"""
    assert operations(planned(text)) == ["map", "map", "reduce"]
    agrees(text, {"x": real(4, 6)})


def test_half_precision_is_rounded_as_without_fusion() -> None:
    """(2048 + 1) - 2048 is 0 in float16: a chain that does not round between says 1."""
    text = """agraph (float16[2] x, float16[2] one, float16[2] far) => (float16[2] y) {
        a = Add(x, far)
        b = Add(a, one)
        y = Sub(b, far)
    }"""
    assert operations(planned(text)) == ["map"]
    found = ran(text, {"x": half(0), "one": half(1), "far": half(2048)})
    assert found["y"].tolist() == [0, 0], "ONNX Runtime itself leaves roundings out here"


def test_reshapes_cost_nothing() -> None:
    text = """agraph (float[2, 12] x) => (float[2, 3] y) <int64[3] s = {2, 3, 4}, int64[1] axes = {2}> {
        a = Exp(x)
        r = Reshape(a, s)
        y = ReduceMax<keepdims = 0>(r, axes)
    }"""
    plan = planned(text)
    assert operations(plan) == ["map", "reduce"]
    agrees(text, {"x": real(2, 12)})


CONV = """agraph (float[N, 4, 9, 7] x) => (float[N, 6, 5, 4] y)
<float[6, 2, 3, 3] w = {%s}, float[6] b = {1, 2, 3, 4, 5, 6}> {
    c = Conv<pads = [1, 1, 1, 1], strides = [2, 2], group = 2>(x, w, b)
    y = Relu(c)
}""".replace("%s", ", ".join(str(v) for v in RNG.standard_normal(108).round(3)))


def test_convolutions_have_the_channels_last_and_epilogues() -> None:
    plan = planned(CONV)
    assert operations(plan) == ["copy", "conv", "copy"]
    agrees(CONV, {"x": real(3, 4, 9, 7)})


def test_a_window_of_one_element_is_a_product() -> None:
    text = """agraph (float[2, 4, 3, 5] x, float[6, 4, 1, 1] w, float[6] b, float[2, 6, 3, 5] r)
    => (float[2, 6, 3, 5] y) {
        c = Conv(x, w, b)
        s = Add(c, r)
        y = Relu(s)
    }"""
    assert operations(planned(text)).count("gemm") == 1 and "conv" not in operations(planned(text))
    agrees(text, {"x": real(2, 4, 3, 5), "w": real(6, 4, 1, 1), "b": real(6), "r": real(2, 6, 3, 5)})


@pytest.mark.parametrize("batch", [1, 3, 17])
def test_the_same_plan_runs_at_every_size(batch: int) -> None:
    agrees(CONV, {"x": real(batch, 4, 9, 7)})


def test_a_size_outside_of_the_profile_is_refused() -> None:
    file = opened(CONV, **{"size.N": "2:4:8"})
    with pytest.raises(UsageError, match=r"no profile for N=9; it has N=2\.\.8"):
        Executor(file).run({"x": real(9, 4, 9, 7)})
    with pytest.raises(
        UsageError, match=r"input 'x' is float64 \[2, 4, 9, 7\], expected float32 \[N, 4, 9, 7\]"
    ):
        Executor(file).run({"x": real(2, 4, 9, 7).astype(np.float64)})
    with pytest.raises(UsageError, match="input 'x' is missing"):
        Executor(file).run({})


def test_a_plan_has_an_arena_for_each_profile() -> None:
    """One picture needs little, eight need eight times as much, and each size finds its own."""
    file = opened(CONV, **{"size.N": "1:1:1,2:8:8"})
    small, large = file.plan.profiles
    assert (small.sizes, large.sizes) == (((1, 1, 1),), ((2, 8, 8),))
    assert small.arena < large.arena <= 8 * small.arena
    for batch in (1, 8):
        assert Executor(file).run({"x": real(batch, 4, 9, 7)})["y"].shape[0] == batch


def test_profiles_that_do_not_fit_together_are_refused() -> None:
    text = "agraph (float[N, M] x) => (float[N, M] y) { y = Exp(x) }"
    plan = planned(text, **{"size.N": "1:1:1,2:2:2", "size.M": "4"})
    assert [p.sizes for p in plan.profiles] == [((1, 1, 1), (4, 4, 4)), ((2, 2, 2), (4, 4, 4))]
    with pytest.raises(UsageError, match=r"size\.N 2, size\.M 3"):
        planned(text, **{"size.N": "1,2", "size.M": "1,2,3"})


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    file = opened(CONV)
    again = opened(CONV)
    assert file.plan == again.plan
    assert bytes(file._map) == bytes(again._map)


def chain(steps: int) -> str:
    """Reductions and expansions in turn, which do not fuse."""
    lines = ["a0 = Exp(x)"]
    for i in range(steps):
        lines += [f"r{i} = ReduceMax(a{i}, axes)", f"a{i + 1} = Sub(a{i}, r{i})"]
    body = "\n".join(lines)
    return (
        "agraph (float[64, 64] x) => (float[1, 1] y) <int64[1] axes = {1}, int64[2] both = {0, 1}> {\n"
        f"{body}\ny = ReduceSum<keepdims = 1>(a{steps}, both)\n}}"
    )


def test_the_arena_is_shared_by_what_does_not_live_together() -> None:
    plan = planned(chain(8))
    sizes = [64 * 64 * 4 for t in plan.tensors if t.kind == Kind.INNER and len(t.shape) == 2]
    assert plan.profiles[0].arena < 3 * 64 * 64 * 4 < sum(sizes)
    agrees(chain(8), {"x": real(64, 64)})


def test_poison_shows_tensors_that_overlap() -> None:
    """All tensors at one place: what still lives is overwritten, and the result shows it."""
    file = opened(chain(2))
    plan = file.plan
    x = real(64, 64)
    right = Executor(file).run({"x": x})["y"]
    (profile,) = plan.profiles
    offsets = tuple(0 if offset > 0 else offset for offset in profile.offsets)
    broken = dataclasses.replace(plan, profiles=(dataclasses.replace(profile, offsets=offsets),))
    file.plan = broken
    assert not np.allclose(Executor(file).run({"x": x})["y"], right, equal_nan=False)


def test_lives_do_not_share_places() -> None:
    plan = planned(chain(5))
    (profile,) = plan.profiles
    alive = lives(plan.tensors, plan.launches)
    for a, (first, last) in alive.items():
        for b, (begin, end) in alive.items():
            if a < b and first <= end and begin <= last:
                assert profile.offsets[a] != profile.offsets[b]


@pytest.mark.parametrize(
    "name", ["fused attention", "masked attention", "hidden attention", "causal attention"]
)
def test_attention_is_one_launch(name: str) -> None:
    text, inputs = CASES[name]()
    assert operations(planned(text)) == ["attention"]
    agrees(text, inputs)


def test_attention_with_capped_scores_is_written_out() -> None:
    text = """agraph (float[1, 2, 5, 4] q, float[1, 2, 5, 4] k, float[1, 2, 5, 4] v) => (float[1, 2, 5, 4] y) {
        y = Attention<softcap = 2.0>(q, k, v)
    }"""
    assert operations(planned(text)).count("gemm") == 2
    agrees(text, {name: real(1, 2, 5, 4) for name in "qkv"})


def test_axes_that_stand_together_are_one() -> None:
    """A chain over a whole tensor counts its elements; a transpose of two axes keeps two, whatever stands around."""
    whole = planned("agraph (float[2, 3, 4, 5] x) => (float[2, 3, 4, 5] y) { y = Exp(x) }")
    assert whole.launches[0].attributes["rank"] == 1
    turned = planned(
        "agraph (float[2, 3, 4, 5] x) => (float[2, 4, 5, 3] y) { y = Transpose<perm = [0, 2, 3, 1]>(x) }"
    )
    assert turned.launches[0].attributes["rank"] == 3
    row = planned("agraph (float[2, 3, 4] x, float[4] z) => (float[2, 3, 4] y) { y = Sub(z, x) }")
    assert row.launches[0].attributes["rank"] == 2


MOVES = {
    "Transpose<perm = [2, 0, 1]>(x)": "float[4, 2, 3] y",
    "Slice(x, starts, ends, axes, steps)": "float[2, 2, 2] y",
    "Concat<axis = 1>(x, x)": "float[2, 6, 4] y",
    "Tile(x, repeats)": "float[4, 3, 12] y",
    "Expand(one, shape)": "float[2, 3, 4] y",
    "Pad(x, pads)": "float[2, 6, 5] y",
    'Pad<mode = "reflect">(x, pads)': "float[2, 6, 5] y",
    'Pad<mode = "edge">(x, pads)': "float[2, 6, 5] y",
    'Pad<mode = "wrap">(x, pads)': "float[2, 6, 5] y",
    "Gather<axis = 1>(x, indices)": "float[2, 2, 4] y",
    "ReduceMean<keepdims = 0>(x, outer)": "float[3] y",
    "ReduceLogSumExp(x, axes)": "float[2, 1, 1] y",
    "Softmax<axis = 1>(x)": "float[2, 3, 4] y",
    "LayerNormalization<axis = -1>(x, scale)": "float[2, 3, 4] y",
    "MatMul(x, other)": "float[5, 2, 3, 3] y",
}


@pytest.mark.parametrize("call", MOVES)
def test_one_operator(call: str) -> None:
    agrees(
        f"""agraph (float[2, 3, 4] x, float[5, 1, 4, 3] other) => ({MOVES[call]})
        <int64[2] starts = {{-1, 3}}, int64[2] ends = {{0, -9}}, int64[2] axes = {{1, 2}}, int64[2] steps = {{-1, -2}},
         int64[3] repeats = {{2, 1, 3}}, float[1, 3, 1] one = {{1, 2, 3}}, int64[3] shape = {{2, 3, 4}},
         int64[6] pads = {{0, 2, 1, 0, 1, 0}}, int64[2] indices = {{-1, 0}}, int64[2] outer = {{0, 2}},
         float[4] scale = {{1, 2, 3, 4}}> {{ y = {call} }}""",
        {"x": real(2, 3, 4), "other": real(5, 1, 4, 3)},
    )


def test_a_plan_is_written_and_read_alike(tmp_path: Path) -> None:
    file = opened(CONV)
    sink = io.BytesIO()
    write(file.plan, sink, file.weight)
    (tmp_path / "again.plan").write_bytes(sink.getvalue())
    assert PlanFile(tmp_path / "again.plan").plan == file.plan
    assert all(launch.operation in KERNELS and numbers(launch) for launch in file.plan.launches)


@pytest.mark.slow
@needs_assets
@pytest.mark.parametrize(
    "name", ["espcn_x3", "kws_gru", "kwt1", "minilm_l6", "mnist_lstm", "silero_vad", "yolox_nano"]
)
def test_real_models(tmp_path: Path, name: str) -> None:
    made = tapeout.export(model_path(name), "nvidia", device="cpu", output=tmp_path / "x.plan")
    assert made.report["verification"]["holds"] and not made.report["proof"]["unproven"]
