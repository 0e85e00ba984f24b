"""Recipes: what they say of nodes and tensors, and what is an error."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapeout.compiler.conditions import op_names
from tapeout.compiler.errors import UsageError
from tapeout.compiler.recipe import METHODS, Recipe
from tests import passtext

MODEL = passtext.imported(
    passtext.parse("""
agraph (float[1,3,4,4] x) => (float[1,3,4,4] y)
<float[3,3,1,1] w>
{
   c = Conv (x, w)
   r = Relu (c)
   y = Conv (r, w)
}
""")
)
FIRST, RELU, LAST = MODEL.graph


def test_the_last_matching_rule_decides() -> None:
    recipe = Recipe.parse(f"""
scheme = "int8"
[[rule]]
op = "Conv"
scheme = "int16x8"
range = "mse"
[[rule]]
node = "{LAST.name}"
scheme = "float32"
""")
    assert [recipe.scheme_of(n) for n in MODEL.graph] == ["int16x8", None, "float32"]
    assert recipe.range_of(("y",), LAST) == "mse"  # a rule decides about what it states only
    assert recipe.range_of(("r",), RELU) == "minmax"
    recipe.check(MODEL.graph, ["x"])


def test_ranges_of_tensors() -> None:
    recipe = Recipe.parse('[[rule]]\ntensor = ["a*", "b"]\nrange = [-1, 2.5]')
    assert recipe.range_of(("NAME", "abc"), None) == (-1.0, 2.5)
    assert recipe.range_of(("c",), None) == "minmax"


def test_rules_for_an_operator_are_for_its_channels_last_form() -> None:
    node = passtext.imported(passtext.parse("g (float[1] x) => (float[1] y) { y = Relu (x) }")).graph[0]
    node.op_type, node.domain = "ConvTransposeNHWC", "tapeout"
    assert op_names(node) == ("ConvTransposeNHWC", "ConvTranspose", "tapeout::ConvTransposeNHWC")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ('schem = "int8"', "unknown key 'schem'", "did you mean 'scheme'?"),
        ('scheme = "int9"', "unknown scheme 'int9'", "did you mean 'int8'?"),
        ('range = "entropie"', "unknown method 'entropie'", "did you mean 'entropy'?"),
        ("requantize = 0.5", "expected a number of at least 1", None),
        ("rule = 3", "'rule' is no list", "[[rule]]"),
        ('[[rule]]\nnodes = "a"', "rule 1: unknown key 'nodes'", "did you mean 'node'?"),
        ('[[rule]]\nnode = "a"', "rule 1: states nothing", "scheme"),
        ('[[rule]]\nnode = []\nscheme = "int8"', "expected a name or a list of names", None),
        ('[[rule]]\nnode = "a"\ntensor = "b"\nrange = "mse"', "for a tensor and for nodes", "two rules"),
        ('[[rule]]\ntensor = "b"\nscheme = "int8"', "'scheme' is said of nodes", "node ="),
        ('[[rule]]\ntensor = "b"\nrange = [2, 1]', "empty or infinite", None),
        ('[[rule]]\ntensor = "b"\nrange = [nan, 1]', "empty or infinite", None),
        ('[[rule]]\ntensor = "b"\nrange = [1]', "expected a method or [low, high]", None),
        ("[[rule", "is not valid TOML", None),
    ],
)
def test_mistakes(text: str, message: str, hint: str | None) -> None:
    with pytest.raises(UsageError) as error:
        Recipe.parse(text)
    assert message in error.value.message
    assert hint is None or hint in (error.value.hint or "")


def test_a_rule_that_matches_nothing() -> None:
    recipe = Recipe.parse('[[rule]]\nop = "Conf"\nscheme = "float32"\n[[rule]]\ntensor = "q"\nrange = "mse"')
    with pytest.raises(UsageError, match=r"rule 1 .* matches nothing; rule 2 .* matches nothing") as error:
        recipe.check(MODEL.graph, ["x", "y"])
    assert error.value.hint == "did you mean 'Conv'?"


def test_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        Recipe.load(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="no UTF-8"):
        Recipe.load(tmp_path / "bytes.toml")
    (tmp_path / "good.toml").write_text('range = "mse"')
    assert Recipe.load(tmp_path / "good.toml").range == "mse"


@given(st.text(max_size=60) | st.sampled_from([f'range = "{m}"' for m in METHODS]))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        Recipe.parse(text)
    except UsageError as error:
        assert "recipe" in error.message
