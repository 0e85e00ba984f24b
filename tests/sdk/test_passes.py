"""`standard_passes` and `Outline`: the road of a simple target, by its rows alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tapeout.compiler.calibration import Calibration
from tapeout.compiler.errors import VendorToolError
from tapeout.compiler.pipeline import run
from tapeout.compiler.reference import Reference
from tapeout.sdk import Declaration, Request, UnsupportedError, lowered, standard_passes
from tests.passtext import imported, parse

FUNCTIONS = """
<domain: "acme", opset_import: ["" : 25]>
ConvRelu <strides> (x, w, b) => (y) {
    c = Conv <strides: ints = @strides> (x, w, b)
    y = Relu (c)
}
<domain: "acme", opset_import: ["" : 25]>
Halve (x) => (y) {
    half = Constant <value_float: float = 0.5> ()
    y = Mul (x, half)
}
"""


def rows(folder: Path, text: str, functions: str | None = FUNCTIONS) -> Declaration:
    head = 'api = 1\nname = "acme"\n' + ('functions = "f.txt"\n' if functions else "")
    (folder / "target.toml").write_text(head + text)
    (folder / "f.txt").write_text(functions or "")
    return Declaration.load(folder / "target.toml")


def through(declaration: Declaration, text: str, **how: object) -> ir.Model:
    model = imported(parse(text))
    before = model.clone()
    run(model, standard_passes(Request(), declaration, **how))  # type: ignore[arg-type]
    with Reference(before) as a, Reference(model) as b:
        feed = {
            v.name or "": np.random.default_rng(0)
            .standard_normal([int(d) for d in v.shape or ()])
            .astype(np.float32)
            for v in before.graph.inputs
        }
        expected, found = a.run(feed), b.run(feed)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)
    return model


def ops(model: ir.Model) -> list[str]:
    return [n.op_type for n in model.graph]


PATTERN = '[[op."acme::ConvRelu"]]\nlower = "k"\nquantity."stride.max" = {max = 2}\n[[op."acme::Halve"]]\n'
CONV = "agraph (float[1,2,8,8] x, float[3,2,3,3] w, float[3] v) => (float[1,3,a,b] y)"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("c = Conv (x, w, v) y = Relu (c)", ["ConvRelu"]),
        ("c = Conv (x, w) y = Relu (c)", ["ConvRelu"]),  # an optional input may be missing
        ("c = Conv <strides=[2,2]> (x, w, v) y = Relu (c)", ["ConvRelu"]),
        ("c = Conv <strides=[3,3]> (x, w, v) y = Relu (c)", ["Conv", "Relu"]),  # no row takes the call
        ("c = Conv <pads=[1,1,1,1]> (x, w, v) y = Relu (c)", ["Conv", "Relu"]),  # the body has no pads
        ("c = Conv <group=1, kernel_shape=[3,3]> (x, w, v) y = Relu (c)", ["ConvRelu"]),
        ("c = Conv <pads=[0,0,0,0], dilations=[1,1]> (x, w, v) y = Relu (c)", ["ConvRelu"]),
        ("c = Conv (x, w, v) d = Relu (c) y = Add (c, d)", ["Conv", "Relu", "Add"]),  # read elsewhere
        (
            "c = Conv (x, w, v) d = Relu (c) h = Constant<value_float=0.5>() y = Mul (h, d)",
            ["ConvRelu", "Halve"],
        ),
    ],
)
def test_patterns(body: str, expected: list[str], tmp_path: Path) -> None:
    taken = rows(tmp_path, PATTERN)
    model = through(taken, f"{CONV} {{ {body} }}")
    assert ops(model) == expected
    if expected[0] == "ConvRelu":
        assert next(row.lower for _, row in lowered(model, taken)) == "k"
    else:
        with pytest.raises(UnsupportedError, match="acme has no kernel for"):
            list(lowered(model, taken))


def test_strides_are_handed_on(tmp_path: Path) -> None:
    model = through(rows(tmp_path, PATTERN), f"{CONV} {{ c = Conv <strides=[2,1]> (x, w, v) y = Relu (c) }}")
    assert tuple(next(iter(model.graph)).attributes["strides"].as_ints()) == (2, 1)
    assert ("acme", "ConvRelu", "") in model.functions


@pytest.mark.parametrize(
    ("functions", "says"),
    [
        (
            '<domain: "tapeout", opset_import: ["" : 25]> F (x) => (y) { y = Relu (x) }',
            "is not the target's own",
        ),
        (
            '<domain: "acme", opset_import: ["" : 25]> F (x) => (y) { y = Rely (x) }',
            "unknown operator 'Rely'",
        ),
        ("this is no ONNX", "is not ONNX text"),
    ],
)
def test_functions_that_are_not_understood(functions: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(VendorToolError, match=says):
        rows(tmp_path, "[[op.Relu]]\n", functions)


def test_what_rows_do_not_take_is_written_out(tmp_path: Path) -> None:
    taken = rows(tmp_path, "".join(f"[[op.{o}]]\n" for o in ("Add", "Mul", "Exp", "Div", "Tanh")), None)
    model = through(taken, "agraph (float[2,3] x) => (float[2,3] y) { y = Swish (x) }")
    assert "Swish" not in ops(model)


def test_channels_last(tmp_path: Path) -> None:
    taken = rows(tmp_path, '[[op."tapeout::ConvNHWC"]]\n[[op.Transpose]]\n', None)
    model = through(taken, f"{CONV} {{ y = Conv (x, w, v) }}", channels_last=True)
    assert "ConvNHWC" in ops(model) and list(lowered(model, taken))


INTEGERS = """
[[op.Gemm]]
lower = "gemm"
ports.A = {role = "act", dtype = "int8"}
ports.B = {role = "weight", dtype = "int8", symmetric = true}
ports.C = {role = "bias", dtype = "int32", scale = "A*B"}
ports.Y = {dtype = "int8"}
[[op.Relu]]
lower = "relu"
ports."*" = {dtype = "int8"}
same_scale = ["X", "Y"]
[[op.QuantizeLinear]]
[[op.DequantizeLinear]]
"""


def test_a_static_scheme(tmp_path: Path) -> None:
    """Measured and quantized by the rows: every kernel is taken as the integers that it computes in."""
    taken = rows(tmp_path, INTEGERS, None)
    text = "agraph (float[4,8] x) => (float[4,5] y) <float[8,5] w, float[5] b> { g = Gemm (x, w, b) y = Relu (g) }"
    proto = parse(text)
    rng = np.random.default_rng(0)
    from onnx import numpy_helper

    for tensor, shape in zip(proto.graph.initializer, ((8, 5), (5,)), strict=True):
        tensor.CopyFrom(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), tensor.name))
    model = imported(proto)
    request = Request("int8", calibration=Calibration("random", model))
    run(model, standard_passes(request, taken))
    assert {row.lower for _, row in lowered(model, taken)} >= {"gemm", "relu"}
    assert "QuantizeLinear" in ops(model)
