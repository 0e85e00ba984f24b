"""What is said of schemes that a target has no kernel for."""

from __future__ import annotations

import pytest

from tapeout.compiler.errors import UsageError
from tapeout.compiler.recipe import Recipe
from tapeout.compiler.schemes import STATIC, WEIGHTS, bits, instead
from tapeout.road import choose

OFFERED = ("float32", "float16", "int8", "w8", "w4", "w4g32")


@pytest.mark.parametrize(
    ("scheme", "said"),
    [
        ("log4", "with 4 bits it offers w4, w4g32"),
        ("codebook4", "with 4 bits it offers w4, w4g32"),
        ("product", "with 8 bits it offers int8, w8"),
        ("fp8", "with 8 bits it offers int8, w8"),
        ("bfloat16", "with 16 bits it offers float16"),
        ("w2", "nearest is w4"),
        ("w4g23", "did you mean 'w4g32'?"),
        ("zzzz", "no scheme of that name"),
    ],
)
def test_the_nearest_that_is_offered_is_named(scheme: str, said: str) -> None:
    assert said in instead(scheme, OFFERED)


def test_every_scheme_has_a_width() -> None:
    assert all(bits(name) for name in (*STATIC, *WEIGHTS))
    assert bits("w3") == 3 and bits("w5") is None


@pytest.mark.parametrize("scheme", ["log4", "codebook4", "product", "fp8", "bfloat16"])
def test_a_target_without_kernels_says_what_it_offers(scheme: str) -> None:
    with pytest.raises(UsageError, match=rf"does not offer '{scheme}'; it offers float32, .*w4g32") as caught:
        choose("tflite", None, scheme, None)
    assert "it offers" in (caught.value.hint or "")


def test_so_do_rules_of_a_recipe() -> None:
    recipe = Recipe.parse('scheme = "w8"\n[[rule]]\nop = "MatMul"\nscheme = "log4"')
    with pytest.raises(UsageError, match=r"rule 1 .*does not offer 'log4'") as caught:
        recipe.check_schemes("tflite", OFFERED)
    assert "w4g32" in (caught.value.hint or "")
