"""Free sizes at which a model can run are told from its shapes."""

from __future__ import annotations

import pytest

from tapeout.compiler.data import bindings
from tapeout.compiler.feasible import fits
from tapeout.compiler.ir.load import from_text

HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'
DOWN_UP = """g (float[N,1,H,W] x) => (float[N,C,P,Q] y) <float[4] s = {1, 1, 2, 2}> {
    d = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)
    u = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"> (d, , s)
    y = %s
}"""


@pytest.mark.parametrize("meet", ["Concat <axis = 1> (x, u)", "Add (x, u)"])
def test_skip_connections_ask_for_multiples(meet: str) -> None:
    model = from_text(HEADER + DOWN_UP % meet)
    assert not fits(model, {"N": 2, "H": 7, "W": 6}) and not fits(model, {"N": 2, "H": 1, "W": 2})
    assert fits(model, {"N": 1, "H": 6, "W": 8})
    assert bindings(model) == {"N": 2, "H": 24, "W": 16}


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("g (float[N,T] x) => (float[N,T] y) { y = Relu (x) }", {"N": 2, "T": 7}),
        ("g (float[N,P] x, float[N,Q] z) => (float[N,P] y) { y = Add (x, z) }", {"N": 2, "P": 8, "Q": 8}),
        (
            "g (float[N,1,T] x) => (float[N,1,U] y){ y = MaxPool <kernel_shape = [20], strides = [20]> (x) }",
            {"N": 2, "T": 24},
        ),
        ("g (float[1,3,T] x, float[1,S,4] z) => (float[1,3,4] y) { y = MatMul (x, z) }", {"T": 8, "S": 8}),
    ],
)
def test_the_first_sizes_that_fit(text: str, sizes: dict[str, int]) -> None:
    assert bindings(from_text(HEADER + text)) == sizes


def test_where_nothing_fits_the_usual_sizes_stay() -> None:
    text = "g (float[N,T] x, float[N,3] z) => (float[N,T] y) { a = Concat <axis = 0> (x, z) y = Relu (x) }"
    assert bindings(from_text(HEADER + text)) == {"N": 2, "T": 7}
