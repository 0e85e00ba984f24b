"""Files that keep their states: twenty runs follow the source with its states fed back, on both resolvers."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from tapeout.compiler import pipeline
from tapeout.compiler.ir.load import from_text, load
from tapeout.compiler.target import Request
from tapeout.targets.tflite import TARGET
from tapeout.targets.tflite.run import RESOLVERS, LiteRT
from tests.assets import ASSETS, model_path, needs_assets
from tests.cli.conftest import Cli, cli  # noqa: F401
from tests.targets.tflite.road import HEADER, reference

RNG = np.random.default_rng(21)
NUMBERS = ", ".join(map(str, np.round(RNG.standard_normal(12), 3).tolist()))
CELL = f"""agraph (float[4] x, float[3] h, int64[1] n) => (float[3] y, float[3] h2, int64[1] n2)
        <float[4,3] w = {{{NUMBERS}}}, int64[1] one = {{1}}> {{
    p = MatMul (x, w)
    q = Add (p, h)
    h2 = Tanh (q)
    n2 = Add (n, one)
    f = Cast <to = 1> (n)
    z = Sub (h2, p)
    y = Add (z, f)
}}"""
# Two states that change places, and one that nothing changes.
CROSSED = """agraph (float[2] x, float[2] a, float[2] b, float[2] k)
        => (float[2] y, float[2] a2, float[2] b2, float[2] k2) {
    s = Add (a, x)
    a2 = Identity (b)
    b2 = Neg (s)
    k2 = Identity (k)
    t = Mul (a, b)
    y = Add (t, k)
}"""


def stateful(text: str, pairs: str) -> bytes:
    model, request = from_text(HEADER + text), Request(options={"state": pairs})
    pipeline.run(model, TARGET.passes(request))
    sink = io.BytesIO()
    TARGET.emit(model, sink, request)
    return sink.getvalue()


@pytest.mark.parametrize(("text", "pairs"), [
    (CELL, "h:h2"),
    (CELL, "h:h2,n:n2"),
    (CROSSED, "a:a2,b:b2,k:k2"),
])  # fmt: skip
@pytest.mark.parametrize("resolver", RESOLVERS)
def test_twenty_steps_and_again_after_a_reset(text: str, pairs: str, resolver: str) -> None:
    source = from_text(HEADER + text)
    runner = LiteRT(stateful(text, pairs), resolver)
    names = dict(p.split(":") for p in pairs.split(","))
    assert not set(names) & set(runner.inputs) and not set(names.values()) & set(runner.outputs)
    for _ in range(2):
        now = {
            v.name: np.zeros([int(d) for d in v.shape], v.dtype.numpy())
            for v in source.graph.inputs
            if v.name in names
        }
        for step in range(20):
            given = {"x": RNG.standard_normal(source.graph.inputs[0].shape.numpy()).astype(np.float32)}
            if "n" in runner.inputs:
                given["n"] = np.array([step])
            right = reference(source, {**given, **now})
            now = {start: right[end] for start, end in names.items()}
            found = runner.run(given)
            assert set(found) == set(right) - set(names.values())
            for name, value in found.items():
                np.testing.assert_allclose(value, right[name], atol=1e-5, err_msg=f"step {step}")
        runner.reset()


BRANCHED = f"""agraph (float[4] x, float[3] h, int64 n) => (float[3] y, float[3] h2)
        <float[4,3] w = {{{NUMBERS}}}, bool go = {{1}}, float zero = {{0}}> {{
    p = MatMul (x, w)
    total = ReduceSum <keepdims = 0> (x)
    up = Greater (total, zero)
    start = If (up) <then_branch = a () => (float[3] s) {{ s = Add (h, p) }},
                     else_branch = b () => (float[3] t) {{ t = Sub (h, p) }}>
    h2 = Loop (n, go, start) <body = step (int64 i, bool c, float[3] v) => (bool d, float[3] u) {{
        m = Sub (v, p)
        u = Tanh (m)
        d = Identity (c)
    }}>
    y = Mul (h2, p)
}}"""


@pytest.mark.parametrize("resolver", RESOLVERS)
def test_twenty_steps_through_a_branch_and_a_loop(resolver: str) -> None:
    source = from_text(HEADER + BRANCHED)
    runner = LiteRT(stateful(BRANCHED, "h:h2"), resolver)
    state = np.zeros(3, np.float32)
    for step in range(20):
        given = {"x": RNG.standard_normal(4).astype(np.float32), "n": np.array(step % 4)}
        right = reference(source, {**given, "h": state})
        state = right["h2"]
        np.testing.assert_allclose(runner.run(given)["y"], right["y"], atol=1e-5, err_msg=f"step {step}")


def test_inner_tensors_are_those_of_a_first_step() -> None:
    runner = LiteRT(stateful(CELL, "h:h2,n:n2"), "builtin kernels")
    given = {"x": RNG.standard_normal(4).astype(np.float32)}
    first = runner.tensors(given, ["h2"])["h2"]
    np.testing.assert_array_equal(runner.tensors(given, ["h2"])["h2"], first)


@pytest.fixture
def cell(tmp_path: Path) -> Path:
    path = tmp_path / "cell.onnx"
    onnx.save(parser.parse_model(HEADER.replace("25", "21") + CELL), path)
    return path


def test_on_the_command_line(cli: Cli, cell: Path, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "cell.tflite"
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "d.npz", x=rng.standard_normal((30, 4)).astype(np.float32))
    done = cli("export", cell, "-o", out, "--option", "state=h:h2,n:n2", "--json")
    assert done.code == 0, done.err
    manifest = done.json()["manifest"]
    assert [v["name"] for v in manifest["interface"]["inputs"]] == ["x"]
    assert [v["next"] for v in manifest["interface"]["states"]] == ["h2", "n2"]
    assert done.json()["report"]["verification"]["samples"] == 20
    assert (
        cli("verify", out, "--against", cell, "--data", tmp_path / "d.npz", "--json").json()["samples"] == 20
    )
    assert cli("compare", cell, out).code == 0
    assert cli("bench", out, "--runs", 2).code == 0
    signatures = cli("inspect", out, "--json").json()["signatures"]
    assert [s["key"] for s in signatures] == ["serving_default", "reset"]


@pytest.mark.parametrize(("option", "why"), [
    ("state=h:y2", "no output 'y2'"),
    ("state=x:y", "shape"),
    ("state=h:n2", "the input is FLOAT"),
])  # fmt: skip
def test_pairs_that_do_not_fit(cli: Cli, cell: Path, tmp_path: Path, option: str, why: str) -> None:  # noqa: F811
    done = cli("export", cell, "-o", tmp_path / "c.tflite", "--option", option, "--json")
    assert done.code == 2 and why in json.loads(done.out)["error"]["message"]
    assert not (tmp_path / "c.tflite").exists()


def test_schemes_in_integers_leave_states_outside(cli: Cli, cell: Path, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "c.tflite"
    done = cli("export", cell, "-o", out, "--option", "state=h:h2", "--quantize", "int8",
               "--calibration", "random")  # fmt: skip
    assert done.code == 2 and "option state is offered for float32 and float16" in done.err


def test_a_wrong_step_is_found(cli: Cli, cell: Path, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "cell.tflite"
    assert cli("export", cell, "-o", out, "--option", "state=h:h2").code == 0
    other = tmp_path / "other.onnx"
    spoiled = CELL.replace("h2 = Tanh (q)", "r = Tanh (q) h2 = Mul (r, half)")
    spoiled = spoiled.replace("int64[1] one", "float half = {0.9}, int64[1] one")
    onnx.save(parser.parse_model(HEADER.replace("25", "21") + spoiled), other)
    assert cli("verify", out, "--against", other).code == 5


@needs_assets
def test_voice_activity_with_the_state_inside_and_outside() -> None:
    """Real speech, frame by frame: the file that keeps its state gives what the source gives."""
    source = load(model_path("silero_vad"))
    data = np.load(ASSETS / "data" / "vad_streams" / "streams.npz")
    audio = data["eval_x0"].astype(np.float32) / 32768
    runners = []
    for options in ({}, {"state": "state:stateN"}):
        model, request = load(model_path("silero_vad")), Request(options=options)
        pipeline.run(model, TARGET.passes(request))
        sink = io.BytesIO()
        TARGET.emit(model, sink, request)
        runners += [(LiteRT(sink.getvalue(), r), bool(options)) for r in RESOLVERS]
    zero = np.zeros((2, 1, 128), np.float32)
    states = [zero] * len(runners)
    right, most = {"stateN": zero}, 0.0
    for step in range(20):
        frame = audio[16000 + 512 * step - 64 : 16000 + 512 * (step + 1)][None]
        right = reference(source, {"input": frame, "state": right["stateN"]})
        most = max(most, float(right["output"].max()))
        for i, (runner, inside) in enumerate(runners):
            found = runner.run({"input": frame} if inside else {"input": frame, "state": states[i]})
            states[i] = found.get("stateN", zero)
            np.testing.assert_allclose(found["output"], right["output"], atol=2e-5)
    assert most > 0.01  # there is something to be heard
