"""If, Loop and Scan on TFLite, on both resolvers."""

from __future__ import annotations

import numpy as np
import pytest

from tests.targets.tflite.road import agrees, legalized, refusals

RNG = np.random.default_rng(10)


def rand(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("taken", [True, False])
def test_if_reads_outer_values(taken: bool) -> None:
    text = """agraph (bool c, float[3] x, float[3] z) => (float[3] y) <float two = {2}> {
        t = Mul (x, two)
        y = If (c) <
            then_branch = then_graph () => (float[3] a) { a = Add (t, z) },
            else_branch = else_graph () => (float[3] b) { b = Sub (x, two) }
        >
    }"""
    assert "IF" in agrees(text, inputs={"c": np.array(taken), "x": rand(3), "z": rand(3)})


SCAN = """agraph (float[{h}] s0, float[{t},{h}] x, float[3] w) => (float[{h}] s, float[{t},{h}] ys) {{
    s, ys = Scan <num_scan_inputs = 1{attributes}, body = step (float[{h}] s_in, float[{h}] x_in)
        => (float[{h}] s_out, float[{h}] y_out) {{
            p = Mul (s_in, w) s_out = Add (p, x_in) y_out = Tanh (s_out)
    }}> (s0, x)
}}"""


@pytest.mark.parametrize("steps", ["20", "T"])
@pytest.mark.parametrize("attributes", [
    "", ", scan_input_directions = [1]", ", scan_output_directions = [1]",
    ", scan_input_directions = [1], scan_output_directions = [1]",
])  # fmt: skip
def test_scan(steps: str, attributes: str) -> None:
    text = SCAN.format(t=steps, h="3", attributes=attributes)
    found = agrees(text, inputs={"s0": rand(3), "x": rand(20, 3), "w": rand(3)})
    assert found.count("WHILE") == 1  # too long to be written out


def test_scan_of_batches_of_unknown_size() -> None:
    text = """agraph (float[N,3] s0, float[T,N,3] x) => (float[N,3] s, float[T,N,3] ys) {
        s, ys = Scan <num_scan_inputs = 1, body = step (float[N,3] s_in, float[N,3] x_in)
            => (float[N,3] s_out, float[N,3] y_out) { s_out = Add (s_in, x_in) y_out = Relu (s_out) }> (s0, x)
    }"""
    agrees(text, inputs={"s0": rand(2, 3), "x": rand(7, 2, 3)})


def test_scan_along_other_axes() -> None:
    text = """agraph (float[3] s0, float[3,5] x) => (float[3] s, float[3,5] ys) {
        s, ys = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1],
            body = step (float[3] s_in, float[3] x_in) => (float[3] s_out, float[3] y_out)
            { s_out = Add (s_in, x_in) y_out = Identity (s_out) }> (s0, x)
    }"""
    agrees(text, inputs={"s0": rand(3), "x": rand(3, 5)})


@pytest.mark.parametrize("bound", [1, 4, 9])
def test_loop_ends_by_bound_or_condition_and_collects(bound: int) -> None:
    text = """agraph (int64 n, float[2] x) => (float[2] v, float[K,2] ys)
            <bool go = {1}, float limit = {20}> {
        v, ys = Loop (n, go, x) <body = step (int64 i, bool c, float[2] v_in)
                => (bool c_out, float[2] v_out, float[2] y) {
            v_out = Add (v_in, v_in)
            top = ReduceMax <keepdims = 0> (v_out)
            c_out = Less (top, limit)
            f = Cast <to = 1> (i)
            y = Add (v_in, f)
        }>
    }"""
    agrees(text, inputs={"n": np.array(bound), "x": np.array([1.0, 2.0], np.float32)})


def test_nested_control() -> None:
    text = """agraph (int64 n, float[2] x, float[2] z) => (float[2] v)
            <bool go = {1}, int64 two = {2}, int64 one = {1}> {
        v = Loop (n, go, x) <body = step (int64 i, bool c, float[2] v_in) => (bool c_out, float[2] v_out) {
            r = Mod (i, two)
            odd = Equal (r, one)
            v_out = If (odd) <
                then_branch = add () => (float[2] a) { a = Add (v_in, z) },
                else_branch = mul () => (float[2] b) { b = Mul (v_in, z) }
            >
            c_out = Identity (c)
        }>
    }"""
    agrees(text, inputs={"n": np.array(5), "x": rand(2), "z": rand(2)})


LOOP = """agraph ({inputs}) => ({outputs}) <bool go = {{1}}> {{
    {results} = Loop (n, go, {states}) <body = step (int64 i, bool c, {taken}) => (bool d, {given}) {{
        {body}
        d = Identity (c)
    }}>
}}"""


def loop(inputs: str, outputs: str, states: str, taken: str, given: str, body: str) -> str:
    results = ", ".join(part.split()[-1] for part in outputs.split(", "))
    return LOOP.format(inputs=f"int64 n, {inputs}", **{k: v for k, v in locals().items() if k != "inputs"})


@pytest.mark.parametrize("trips", [0, -3, 1, 20])
def test_any_number_of_trips(trips: int) -> None:
    text = loop("float[2] x", "float[2] s, float[K,2] ys", "x", "float[2] a", "float[2] b, float[2] y",
                "b = Sin (a) y = Neg (a)")  # fmt: skip
    agrees(text, inputs={"n": np.array(trips), "x": rand(2)})


@pytest.mark.parametrize("rows", [0, 2])
def test_states_without_elements(rows: int) -> None:
    text = loop("float[N,3] x", "float[N,3] s", "x", "float[N,3] a", "float[N,3] b", "b = Sin (a)")
    agrees(text, inputs={"n": np.array(4), "x": rand(rows, 3)})
    agrees(text.replace("N,3", "0,3"), inputs={"n": np.array(4), "x": rand(0, 3)})


@pytest.mark.parametrize("trips", [0, 3])
def test_a_state_that_grows(trips: int) -> None:
    text = loop("float[K] x", "float[M] s", "x", "float[A] a", "float[B] b", "b = Concat <axis = 0> (a, a)")
    agrees(text, inputs={"n": np.array(trips), "x": rand(2)})


def test_states_that_change_places() -> None:
    text = loop("float[2] x, float[2] z", "float[2] s, float[2] u", "x, z", "float[2] a, float[2] b",
                "float[2] e, float[2] f", "e = Identity (b) f = Identity (a)")  # fmt: skip
    agrees(text, inputs={"n": np.array(3), "x": rand(2), "z": rand(2)})


def test_a_loop_in_a_loop_that_reads_outer_values() -> None:
    text = """agraph (int64 n, float[2] x, float[2] z) => (float[2] s) <bool go = {1}> {
        w = Mul (x, z)
        s = Loop (n, go, x) <body = outer (int64 i, bool c, float[2] a) => (bool d, float[2] b) {
            q = Add (a, w)
            b = Loop (i, go, q) <body = inner (int64 j, bool e, float[2] f) => (bool h, float[2] k) {
                number = Cast <to = 1> (j)
                u = Mul (f, w)
                k = Add (u, number)
                h = Identity (e)
            }>
            d = Identity (c)
        }>
    }"""
    agrees(text, inputs={"n": np.array(4), "x": rand(2), "z": rand(2)})


@pytest.mark.parametrize("taken", [True, False])
def test_branches_of_other_shapes(taken: bool) -> None:
    text = """agraph (bool c, float[2,3] x) => (float[A,B] s) {
        s = If (c) <then_branch = a () => (float[2,3] p) { p = Sin (x) },
                    else_branch = b () => (float[3,2] q) { q = Transpose (x) }>
    }"""
    agrees(text, inputs={"c": np.array(taken), "x": rand(2, 3)})


def test_a_branch_that_is_decided_is_written_in_place() -> None:
    text = """agraph (float[3] x) => (float[3] y) <bool c = {0}> {
        y = If (c) <then_branch = a () => (float[3] p) { p = Sin (x) },
                    else_branch = b () => (float[3] q) { q = Cos (x) }>
    }"""
    assert agrees(text) == ["COS"]


@pytest.mark.parametrize(("inputs", "outputs", "taken", "given", "body", "why"), [
    ("float[2] x", "float[] s", "float[] a", "float[] b", "b = Unsqueeze (a, one)", "keep the rank of every state"),
    ("float[0,3] x, float[1,3] w", "float[K,3] s", "float[A,3] a", "float[B,3] b",
     "b = Concat <axis = 0> (a, w)", "start from at least one element"),
])  # fmt: skip
def test_states_that_no_loop_variable_can_hold(
    inputs: str, outputs: str, taken: str, given: str, body: str, why: str
) -> None:
    text = loop(inputs, outputs, "x", taken, given, body).replace("<bool go", "<int64[1] one = {0}, bool go")
    (found,) = refusals(legalized(text))
    assert why in str(found) and "Loop" in str(found)


def test_a_loop_without_an_end() -> None:
    text = loop("float[2] x", "float[2] s", "x", "float[2] a", "float[2] b", "b = Sin (a)")
    (found,) = refusals(legalized(text.replace("Loop (n", 'Loop (""')))
    assert "give the Loop a bound" in str(found)


RECURRENT = """agraph (float[4] x, float[3] h, int64 n) => (float[3] y, float[3] h_out)
        <float[4,3] w, float[3,3] r, bool go = {1}, float zero = {0}> {
    p = MatMul (x, w)
    total = ReduceSum <keepdims = 0> (x)
    up = Greater (total, zero)
    start = If (up) <then_branch = a () => (float[3] s) { s = Add (h, p) },
                     else_branch = b () => (float[3] t) { t = Sub (h, p) }>
    h_out = Loop (n, go, start) <body = step (int64 i, bool c, float[3] v) => (bool d, float[3] u) {
        m = MatMul (v, r)
        u = Tanh (m)
        d = Identity (c)
    }>
    y = Mul (h_out, p)
}"""


def test_twenty_steps_with_the_state_carried_by_the_caller() -> None:
    from tapeout.compiler.ir.load import from_text
    from tapeout.targets.tflite.run import RESOLVERS, LiteRT
    from tests.targets.tflite.road import HEADER, emitted, reference

    rng = np.random.default_rng(3)
    weights = {"w": rng.standard_normal((4, 3)) / 2, "r": rng.standard_normal((3, 3))}
    text = RECURRENT
    for name, array in weights.items():
        numbers = ", ".join(map(repr, array.astype(np.float32).reshape(-1).tolist()))
        text = text.replace(f"] {name}", f"] {name} = {{{numbers}}}", 1)
    source, content = from_text(HEADER + text), emitted(legalized(text))
    runners = [LiteRT(content, r) for r in RESOLVERS]
    states = [np.zeros(3, np.float32)] * (1 + len(runners))
    for step in range(20):
        given = {"x": rand(4), "n": np.array(step % 4)}
        right = reference(source, {**given, "h": states[0]})
        states[0] = right["h_out"]
        for i, runner in enumerate(runners, 1):
            found = runner.run({**given, "h": states[i]})
            states[i] = found["h_out"]
            for name in ("y", "h_out"):
                np.testing.assert_allclose(found[name], right[name], atol=1e-5)


def test_behind_a_decided_branch_shapes_are_known() -> None:
    text = """agraph (float[2,3,4] x, float[2,4,5] z) => (float[A,B,C] y) <int64 three = {3}, int64[1] zero = {0}> {
        all = Shape (x)
        rank = Size (all)
        deep = Equal (rank, three)
        s = If (deep) <then_branch = a () => (float[2,3,4] p) { p = Sin (x) },
                       else_branch = b () => (float[1,2,3,4] q) { q = Unsqueeze (x, zero) }>
        m = MatMul (s, z)
        t = Transpose <perm = [0, 2, 1]> (m)
        y = Softmax (t)
    }"""
    assert "BATCH_MATMUL" in agrees(text, inputs={"x": rand(2, 3, 4), "z": rand(2, 4, 5)})
