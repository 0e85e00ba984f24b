"""explain --try-fixes: what is said to work has been tried, and works."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

import tapeout
from tapeout.compiler.rewriting import Builder, NodeRule, Rewrite
from tapeout.compiler.target import Fix
from tests.cli.conftest import Cli
from tests.compiler.tiny_target import TARGET
from tests.passtext import parse


def test_types(cli: Cli, tmp_path: Path) -> None:
    text = "agraph (double[2,5] x) => (double[2,5] y) { [a] b = Cos (x) [c] z = Cos (b) [d] y = Exp(z) }"
    onnx.save(parse(text), tmp_path / "m.onnx")
    done = cli("explain", tmp_path / "m.onnx", "--try-fixes")
    assert "  worked: Cos 'a', 'c': compute it in float32 between casts" in done.out.splitlines()
    found = cli("explain", tmp_path / "m.onnx", "--try-fixes", "--json").json()["tried"]
    assert {
        "op": "Exp",
        "nodes": ["d"],
        "fix": "compute it in float32 between casts",
        "worked": True,
    } in found
    assert all(t["worked"] or t["reason"] for t in found)


def test_free_sizes() -> None:
    """What the NPU refuses for a size that is free, it takes once it is a number."""
    model = parse("agraph (float[1,8,N] x) => (float[1,8,N] y) { [a] y = Softmax<axis=2> (x) }")
    found = tapeout.explain(model, "tflite", device="ethos-u55-128", try_fixes=True)
    assert [t.words for t in found.tried if t.worked] == ["--shape fixes the free sizes (N)"]
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 8
    assert not tapeout.explain(model, "tflite", device="ethos-u55-128").refused


class TanhByExp(NodeRule):
    """Tanh(x) -> Relu(Relu(x)), which is wrong and only serves to be tried"""

    ops = ("Tanh",)

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value:
        return op.Relu(node.inputs[0])  # type: ignore[no-any-return]


def test_a_target_has_fixes_of_its_own() -> None:
    text = "agraph (float[2] x) => (float[2] y) { [a] b = Relu (x) [t] y = Tanh (b) }"
    own = replace(TARGET, fixes=(Fix("write Tanh as Relu", (Rewrite("own", (TanhByExp(),)),)),))
    found = tapeout.explain(parse(text), own, try_fixes=True)
    worked = [t.words for t in found.tried if t.worked]
    assert worked == ["write Tanh as Relu"]
    assert "  worked: Tanh 't': write Tanh as Relu" in found.text.splitlines()
    assert tapeout.explain(parse(text), own).tried == ()


def test_what_is_taken_has_nothing_to_try() -> None:
    plain = parse("agraph (float[2] x) => (float[2] y) { [a] y = Relu (x) }")
    assert tapeout.explain(plain, "tflite", try_fixes=True).tried == ()


def test_an_npu_is_explained_without_data() -> None:
    text = """agraph (float[1,4,6,6] x) => (float[1,4,N,N] y) <float[4,4,3,3] w>
    { [a] c = Conv (x, w) [t] y = Softmax (c) }"""
    model = parse(text)
    weight = np.random.default_rng(0).standard_normal((4, 4, 3, 3)).astype(np.float32)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "w"))
    found = tapeout.explain(model, "tflite", device="ethos-u55-128")
    assert "on ethos-u55, " in found.coverage() and found.placed
