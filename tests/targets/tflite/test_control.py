"""If, Loop and Scan on TFLite, on both resolvers."""

from __future__ import annotations

import numpy as np
import pytest

from tests.targets.tflite.road import agrees

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


@pytest.mark.parametrize("steps", ["5", "T"])
@pytest.mark.parametrize("attributes", [
    "", ", scan_input_directions = [1]", ", scan_output_directions = [1]",
    ", scan_input_directions = [1], scan_output_directions = [1]",
])  # fmt: skip
def test_scan(steps: str, attributes: str) -> None:
    text = SCAN.format(t=steps, h="3", attributes=attributes)
    found = agrees(text, inputs={"s0": rand(3), "x": rand(5, 3), "w": rand(3)})
    assert found.count("WHILE") == 1


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
