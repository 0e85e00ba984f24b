"""Which weights stay wide: found where one does the harm, none where rounding is not to blame."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from tapeout.compiler.ir.load import from_proto
from tapeout.compiler.narrowing import Choice, as_option, choose, matches, patterns

SIZES = {"a": (16, 32), "sensitive": (32, 8), "b": (8, 16)}


def chain(amplified: float = 3000.0) -> ir.Model:
    """x a b, where between a and b what is left of h sensitive - h exact, which cancel, is made large."""
    proto = parser.parse_model("""<ir_version: 10, opset_import: ["" : 25]>
    m (float[4,16] x) => (float[4,16] y) {
        h = MatMul (x, a)
        k = MatMul (h, sensitive)
        r = MatMul (h, exact)
        d = Sub (k, r)
        s = Mul (d, large)
        t = Add (s, r)
        y = MatMul (t, b)
    }""")
    rng = np.random.default_rng(0)
    made: dict[str, Any] = {n: rng.standard_normal(s).astype(np.float32) for n, s in SIZES.items()}
    made |= {"exact": made["sensitive"], "large": np.float32(amplified)}
    for name, array in made.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return from_proto(proto)


def halves(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    found: dict[str, ir.TensorProtocol] = {}
    for name in SIZES:
        tensor = model.graph.initializers[name].const_value
        assert tensor is not None
        found[name] = ir.tensor(tensor.numpy().astype(np.float16))
    return found


def samples(count: int = 3) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((4, 16)).astype(np.float32)} for _ in range(count)]


def test_the_weight_that_does_the_harm_stays_wide() -> None:
    model = chain()
    choice = choose(model, halves(model), samples(), {"y": 1e-2})
    assert choice is not None and choice.wide == ("sensitive",)
    assert choice.helps and choice.before > 10 and choice.after < 0.85
    assert (choice.weights, choice.wide_bytes, choice.bytes) == (3, 1024, 2048 + 1024 + 512)
    assert "1 of 3 weights (29% of their bytes)" in choice.describe()
    assert choice == choose(chain(), halves(model), samples(), {"y": 1e-2})


def test_where_rounding_does_no_harm_there_is_no_choice() -> None:
    model = chain(amplified=1.0)
    assert choose(model, halves(model), samples(), {"y": 1e-2}) is None
    assert choose(model, {}, samples(), {"y": 1e-2}) is None


def test_a_tolerance_that_no_rounding_meets_needs_everything_wide() -> None:
    model = chain()
    choice = choose(model, halves(model), samples(), {"y": 1e-9})
    assert choice is not None and choice.share == 1 and not choice.helps


@pytest.mark.parametrize(
    ("name", "pattern", "fits"),
    [
        ("conv.weight~12", "conv.weight", True),
        ("conv.weight~12", "conv.weight~12", True),
        ("conv.weight~12", "conv.weight~1", False),
        ("conv.weight", "conv", False),
        ("conv.weight", "conv.*", True),
        ("convxweight", "conv.*", False),
        ("w[0]", "w[0]", True),
        ("a,b", "a?b", True),
        ("anything", "*", True),
    ],
)
def test_names_and_patterns(name: str, pattern: str, fits: bool) -> None:
    assert matches(name, [pattern]) is fits


def test_the_option_holds_any_name() -> None:
    names = ("conv;1", "a,b", "w[0]~3")
    option = as_option(names, "stem.*")
    assert patterns(option)[0] == "stem.*"
    assert all(matches(n, patterns(option)) for n in names)
    assert as_option(names, option) == option


def test_the_share_of_a_choice() -> None:
    assert not Choice(("w",), 2, 80, 100, 5.0, 0.5).helps
    assert Choice(("w",), 2, 70, 100, 5.0, 0.5).helps
    assert not Choice(("w",), 2, 10, 100, 5.0, 1.5).helps
