"""The rewriter: matching, conditions with reasons, names, origins and the fixpoint."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tapeout.compiler.errors import InternalError
from tapeout.compiler.ir import graph as g
from tapeout.compiler.ir.check import faults
from tapeout.compiler.ir.load import from_text
from tapeout.compiler.ir.origin import origin
from tapeout.compiler.rewriting import Builder, Match, NodeRule, PatternRule, Rewrite

HEADER = '<ir_version: 10, opset_import: ["" : 25]>\n'


class ScaledErf(PatternRule):
    """0.5 * x * (1 + erf(x / 2)) -> Gelu(x), which is false but easy to see"""

    def before(self, op: Any, x: Any) -> Any:
        return op.Mul(op.Mul(x, 0.5), op.Add(op.Erf(op.Div(x, 2.0)), 1.0))

    def condition(self, m: Match) -> str | None:
        return None if m.x.dtype == ir.DataType.FLOAT else "only float32"

    def after(self, op: Builder, m: Match) -> ir.Value:
        return op.Gelu(m.x)  # type: ignore[no-any-return]


def gelu(
    half_first: bool, one_first: bool, outer_swapped: bool, dtype: str = "float", tail: str = "y"
) -> ir.Model:
    half = "Mul (half, x)" if half_first else "Mul (x, half)"
    one = "Add (one, e)" if one_first else "Add (e, one)"
    outer = "Mul (a, h)" if outer_swapped else "Mul (h, a)"
    return from_text(
        f"{HEADER}g ({dtype}[N,4] x) => ({dtype}[N,4] {tail})"
        f" <{dtype} half = {{0.5}}, {dtype} one = {{1.0}}, {dtype} two = {{2.0}}> {{\n"
        f"h = {half}\n d = Div (x, two)\n e = Erf (d)\n a = {one}\n y = {outer}\n"
        + ("" if tail == "y" else f"{tail} = Add (y, a)\n")
        + "}"
    )


@pytest.mark.parametrize("order", range(8))
def test_commutative_operators_match_in_either_order(order: int) -> None:
    model = gelu(bool(order & 1), bool(order & 2), bool(order & 4))
    sources = {name for node in model.graph for name in origin(node)}
    assert Rewrite("test", (ScaledErf(),))(model).count == 1
    (node,) = model.graph
    assert (node.op_type, node.outputs[0].name, list(model.graph.initializers)) == ("Gelu", "y", [])
    assert set(origin(node)) == sources
    assert faults(model) == []


def test_a_condition_declines_with_its_reason() -> None:
    changes = Rewrite("test", (ScaledErf(),))(gelu(True, True, True, "double"))
    assert changes.count == 0
    assert [d.reason for d in changes.declined] == ["only float32"]


def test_a_value_inside_that_is_read_elsewhere_declines() -> None:
    model = gelu(True, True, True, tail="z")
    changes = Rewrite("test", (ScaledErf(),))(model)
    assert changes.count == 0
    assert "'a' inside the pattern is read elsewhere" in changes.declined[0].reason


def test_numbers_match_by_value_only() -> None:
    model = gelu(True, True, True)
    model.graph.initializers["half"].const_value = ir.tensor(np.array(0.501, np.float32), name="half")
    assert Rewrite("test", (ScaledErf(),))(model).count == 0


class SameOperand(PatternRule):
    """x - x -> Neg(x), to see that one variable is one value"""

    def before(self, op: Any, x: Any) -> Any:
        return op.Sub(x, x, _node="sub")

    def after(self, op: Builder, m: Match) -> ir.Value:
        assert m.sub is m.root
        return op.Neg(m.x)  # type: ignore[no-any-return]


def test_one_variable_is_one_value() -> None:
    text = (
        HEADER
        + "g (float[2] x, float[2] z) => (float[2] a, float[2] b) {\n a = Sub (x, x)\n b = Sub (x, z)\n}"
    )
    model = from_text(text)
    assert Rewrite("test", (SameOperand(),))(model).count == 1
    assert [n.op_type for n in model.graph] == ["Neg", "Sub"]


class DropIdentity(NodeRule):
    """Identity(x) -> x"""

    ops = ("Identity",)

    def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | None:
        return node.inputs[0]


def test_graph_outputs_keep_their_names_when_values_merge() -> None:
    text = HEADER + (
        "g (float[2] x) => (float[2] y, float[2] z, float[2] w) {\n"
        " a = Relu (x)\n y = Identity (a)\n z = Identity (a)\n w = Identity (x)\n}"
    )
    model = from_text(text)
    changes = Rewrite("test", (DropIdentity(),))
    with pytest.raises(InternalError, match="does not come to an end"):
        changes(model)  # an Identity between an input and an output has to stay: the rule must leave it
    model = from_text(text.replace(" z = Identity (a)\n w = Identity (x)\n", " z = Neg (a)\n w = Abs (x)\n"))
    assert changes(model).count == 1
    assert [v.name for v in model.graph.outputs] == ["y", "z", "w"]
    assert faults(model) == []


class AddOne(NodeRule):
    """Relu(x) -> Relu(x) + 1 - 1, declined after nodes were made"""

    ops = ("Relu",)

    def rewrite(self, op: Builder, node: ir.Node) -> str:
        op.Sub(op.Add(node.outputs[0], 1.0), 1.0)
        return "changed its mind"


def test_what_a_declining_rule_made_is_removed() -> None:
    model = from_text(HEADER + "g (float[2] x) => (float[2] y) {\n y = Relu (x)\n}")
    changes = Rewrite("test", (AddOne(),))(model)
    assert changes.count == 0 and changes.declined[0].reason == "changed its mind"
    assert [n.op_type for n in model.graph] == ["Relu"] and not model.graph.initializers
    assert faults(model) == []


def test_rules_reach_into_subgraphs() -> None:
    text = HEADER + (
        "g (bool c, float[2] x) => (float[2] y) {\n"
        " y = If (c) <then_branch = t () => (float[2] p) { q = Identity (x)\n p = Relu (q) },"
        " else_branch = e () => (float[2] r) { r = Neg (x) }>\n}"
    )
    model = from_text(text)
    assert Rewrite("test", (DropIdentity(),))(model).count == 1
    assert sorted(n.op_type for n in model.graph.all_nodes()) == ["If", "Neg", "Relu"]
    assert faults(model) == []


def test_a_node_rule_that_covers_a_region_records_its_origin() -> None:
    class NegNeg(NodeRule):
        ops = ("Neg",)

        def rewrite(self, op: Builder, node: ir.Node) -> ir.Value | str | None:
            inner = g.producer(node.inputs[0], "Neg")
            if inner is None:
                return None
            op.covers([inner, node])
            return op.Identity(inner.inputs[0])  # type: ignore[no-any-return]

    text = """<ir_version: 10, opset_import: ["" : 25]>
    net (float[2] x) => (float[2] y) { [first] a = Neg (x)  [second] y = Neg (a) }"""
    model = from_text(text)
    Rewrite("negneg", (NegNeg(),))(model)
    (node,) = model.graph
    assert origin(node) == ("first", "second")
