"""The driver names the pass that broke the graph and those that ran before it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
import pytest

from tapeout.compiler import pipeline
from tapeout.compiler.errors import InternalError, UnsupportedError
from tapeout.compiler.ir.functions import declare
from tapeout.compiler.ir.load import from_text
from tapeout.compiler.rewriting import Changes

TEXT = (
    '<ir_version: 10, opset_import: ["" : 25]>\n'
    "g (float[2] x) => (float[2] y) {\n a = Relu (x)\n b = Neg (a)\n y = Abs (b)\n}"
)


def nothing(model: ir.Model) -> Changes:
    return Changes(0)


@dataclass(frozen=True)
class Damage:
    kind: str
    name: str = "damage"

    def __call__(self, model: ir.Model) -> Changes:
        relu, neg, _ = model.graph
        if self.kind == "cycle":
            relu.replace_input_with(0, neg.outputs[0])
        elif self.kind == "origin":
            relu.metadata_props.clear()
        elif self.kind == "name":
            relu.name = neg.name
        elif self.kind == "value":
            relu.outputs[0].name = neg.outputs[0].name
        elif self.kind == "type":
            neg.outputs[0].type = None
        elif self.kind == "output":
            model.graph.outputs[0] = ir.Value(name="ghost")
        elif self.kind == "crash":
            raise KeyError("lost")
        elif self.kind == "refuse":
            raise UnsupportedError("no")
        elif self.kind == "opset":
            model.graph.opset_imports[""] = 17
        elif self.kind == "body":
            (function,) = model.functions.values()
            function[0].op_type = "Abs"
        return Changes(1)


@pytest.mark.parametrize("kind, words", [
    ("cycle", "before it is made"), ("origin", "no origin"), ("name", "used twice"), ("value", "used twice"),
    ("type", "type of output 'b'"), ("output", "'ghost' is made by no node"), ("crash", "KeyError"),
    ("opset", "opset 17"),
])  # fmt: skip
def test_a_broken_graph_names_the_pass(kind: str, words: str) -> None:
    with pytest.raises(InternalError) as error:
        pipeline.run(from_text(TEXT), (nothing, Damage(kind)))
    assert "'damage'" in error.value.message and "'nothing'" in error.value.message
    assert words in error.value.message


def test_a_changed_function_body_is_noticed() -> None:
    model = from_text(TEXT)
    declare(model, '<domain: "tapeout", opset_import: ["" : 25]>\nTwice (X) => (Y) {\n Y = Add (X, X)\n}')
    with pytest.raises(InternalError, match="body of function tapeout::Twice"):
        pipeline.run(model, (nothing, Damage("body")))


def test_what_a_pass_refuses_goes_through_unchanged() -> None:
    with pytest.raises(UnsupportedError, match=r"^no$"):
        pipeline.run(from_text(TEXT), (Damage("refuse"),))


def test_the_observer_sees_every_stage() -> None:
    seen: list[tuple[int, str]] = []
    history = pipeline.run(from_text(TEXT), (nothing, nothing), lambda i, name, model: seen.append((i, name)))
    assert seen == [(-1, "source"), (0, "nothing"), (1, "nothing")]
    assert history.names() == ["nothing", "nothing"]


@dataclass(frozen=True)
class Promise:
    ensures: tuple[object, ...]
    name: str = "promise"

    def __call__(self, model: ir.Model) -> Changes:
        return Changes(0)


def never(model: ir.Model) -> str | None:
    return "it never holds"


def test_postconditions_are_held() -> None:
    with pytest.raises(InternalError, match="'promise' ensures never: it never holds"):
        pipeline.run(from_text(TEXT), (Promise((never,)),))
