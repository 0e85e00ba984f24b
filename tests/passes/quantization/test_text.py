"""Text tests of placement and of models that arrive quantized."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from tapeout.compiler.schemes import STATIC
from tapeout.passes.quantization import Quantize
from tapeout.passes.quantization.arriving import ARRIVING
from tests.passes.quantization.graphs import DECLARATION
from tests.passtext import Case, cases, check


class Flat(NamedTuple):
    """The same range for every tensor, four times that for those whose names begin with `wide`."""

    size: float = 16.0

    def for_range(self, name: str) -> Flat | None:
        return None if "~" in name else self

    def range(
        self, name: str, method: str = "minmax", bits: int = 8, symmetric: bool = False
    ) -> tuple[float, float]:
        size = self.size * (4 if name.startswith("wide") else 1)
        return -size, size


PASSES = {
    "int8": (Quantize(STATIC["int8"], DECLARATION, Flat()),),
    "int16x8": (Quantize(STATIC["int16x8"], DECLARATION, Flat()),),
    "arriving": (ARRIVING,),
    "keep": (ARRIVING, Quantize(STATIC["int8"], DECLARATION, None)),
}


@pytest.mark.parametrize("case", cases(__file__), ids=str)
def test_text(case: Case, bless: bool) -> None:
    check(case, PASSES, bless)
