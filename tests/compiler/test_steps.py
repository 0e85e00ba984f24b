"""Steps of a recipe: what they say of layers, and what is an error."""

from __future__ import annotations

import pytest

from tapeout.compiler.errors import UsageError
from tapeout.compiler.recipe import Recipe
from tapeout.compiler.steps import StepRule
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
FIRST, _, LAST = MODEL.graph


def test_steps_in_order_and_quantization_last() -> None:
    recipe = Recipe.parse("""
[[step]]
factorize = "svd"
ratio = 0.25

[[step]]
prune = "wanda"
pattern = "2:4"

[[step]]
quantize = "int8"
range = "mse"
[[step.rule]]
op = "Conv"
scheme = "float32"
""")
    assert [step.text for step in recipe.steps] == ["factorize svd=0.25", "prune wanda=2:4"]
    rest = recipe.quantization
    assert rest is not None and (rest.scheme, rest.range, rest.steps) == ("int8", "mse", ())
    assert rest.scheme_of(FIRST) == "float32"


def test_quantization_at_the_top_is_the_same() -> None:
    steps = '[[step]]\nprune = "wanda"\nratio = 0.5\n'
    top = Recipe.parse('scheme = "int8"\n' + steps)
    last = Recipe.parse(steps + '[[step]]\nquantize = "int8"')
    assert top.steps == last.steps
    assert top.quantization is not None and last.quantization is not None
    assert top.quantization.scheme == last.quantization.scheme == "int8"
    assert Recipe.parse(steps).quantization is None


def test_for_each_thing_the_last_rule_that_states_it_decides() -> None:
    (step,) = Recipe.parse(f"""
[[step]]
prune = "sparsegpt"
ratio = 0.5
[[step.rule]]
op = "Conv"
method = "wanda"
ratio = 0.25
[[step.rule]]
node = "{LAST.name}"
pattern = "2:4"
[[step.rule]]
node = "{FIRST.name}"
skip = true
""").steps
    assert step.told(FIRST) == StepRule(0, skip=True, method="wanda", amount="0.25")
    assert step.told(LAST) == StepRule(0, method="wanda", amount="2:4")
    step.check(MODEL.graph)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("step = 3", "'step' is no list", "[[step]]"),
        ("[[step]]\nratio = 0.5", "step 1: states nothing to do", "METHOD"),
        ('[[step]]\nprune = "a"\nfactorize = "b"', "states prune and factorize", "METHOD"),
        ('[[step]]\nprune = "wanda"\nratios = 0.5', "unknown key 'ratios'", "did you mean 'ratio'?"),
        ('[[step]]\nprune = "wanda"\nratio = 1.5', "the ratio 1.5 lies outside (0, 1)", "ratio = 0.5"),
        ('[[step]]\nprune = "wanda"\nratio = 0', "the ratio 0 lies outside (0, 1)", None),
        ('[[step]]\nprune = "wanda"\nratio = true', "the ratio True lies outside", None),
        (
            '[[step]]\nprune = "wanda"\nratio = 0.5\npattern = "2:4"',
            "states a ratio and a pattern",
            "1x4:0.5",
        ),
        ("[[step]]\nprune = 3", "step 1, prune: expected text", None),
        ('[[step]]\nprune = "w"\n[[step.rule]]\nnode = "a"', "step 1, rule 1: states nothing", "skip"),
        ('[[step]]\nprune = "w"\n[[step.rule]]\nskip = "yes"', "expected true or false", None),
        ('[[step]]\nprune = "w"\n[[step.rule]]\ntensor = "t"\nskip = true', "unknown key 'tensor'", None),
        (
            '[[step]]\nprune = "w"\n[[step.rule]]\nrank = 0',
            "rank is 0, expected a positive number",
            "[16, 8]",
        ),
        ('[[step]]\nquantize = "int8"\n[[step]]\nprune = "w"', "quantize is not the last step", None),
        ('scheme = "int8"\n[[step]]\nquantize = "int8"', "'scheme' stands at the top", "move it"),
        ('[[step]]\nquantize = "int8"\nscheme = "int8"', "states quantize and scheme", None),
        ('[[step]]\nquantize = "int9"', "step 1: unknown scheme 'int9'", "did you mean 'int8'?"),
    ],
)
def test_mistakes(text: str, message: str, hint: str | None) -> None:
    with pytest.raises(UsageError) as error:
        Recipe.parse(text)
    assert message in error.value.message
    assert hint is None or hint in (error.value.hint or "")


def test_a_rule_that_matches_nothing_names_the_nearest() -> None:
    (step,) = Recipe.parse("""
[[step]]
prune = "wanda"
ratio = 0.5
[[step.rule]]
op = "Conf"
skip = true
""").steps
    with pytest.raises(UsageError, match=r"step 1: rule 1 \(op = 'Conf'\) matches nothing") as error:
        step.check(MODEL.graph)
    assert error.value.hint == "did you mean 'Conv'?"
