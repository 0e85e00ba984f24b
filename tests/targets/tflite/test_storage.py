"""float16 storage: what becomes narrow, what stays wide, and that a file holds each weight once."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from tapeout.compiler import pipeline
from tapeout.compiler.ir.load import from_proto, load
from tapeout.compiler.narrowing import narrowed
from tapeout.compiler.target import Request
from tapeout.passes.quantization.half_storage import unfit
from tapeout.targets.tflite import TARGET
from tests.assets import model_path, needs_assets
from tests.targets.tflite.road import emitted, operators

TEXT = """agraph (float[2,64] x) => (float[2,64] y) {
    h = MatMul (x, large)
    k = MatMul (h, second)
    y = Add (k, bias)
}"""


def model(scale: float = 1.0, text: str = TEXT, **shapes: tuple[int, ...]) -> ir.Model:
    proto = parser.parse_model('<ir_version: 10, opset_import: ["" : 25]>' + text)
    rng = np.random.default_rng(0)
    for name, shape in (shapes or {"large": (64, 128), "second": (128, 64), "bias": (64,)}).items():
        array = rng.standard_normal(shape) * (scale if name == "second" else 1)
        proto.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    return from_proto(proto)


def after(made: ir.Model, **options: str) -> tuple[ir.Model, dict[str, str]]:
    history = pipeline.run(made, TARGET.passes(Request("float16", options=options)))
    step = next(s for s in history.steps if s.name == "half-storage")
    return made, {d.node.split("~")[0]: d.reason for d in step.declined}


def names(made: ir.Model) -> set[str]:
    return {n.split("~")[0] for n in narrowed(made)}


def test_large_weights_become_narrow_and_small_ones_stay() -> None:
    made, reasons = after(model())
    assert names(made) == {"large", "second"} and not reasons


@pytest.mark.parametrize("pattern", ["second", "sec*", "nothing,second"])
def test_weights_named_by_the_option_stay_wide(pattern: str) -> None:
    made, reasons = after(model(), wide=pattern)
    assert names(made) == {"large"} and "stay float32" in reasons["second"]


@pytest.mark.parametrize(
    ("scale", "word"), [(1e6, "beyond float16"), (1e-6, "round its values"), (0.0, None)]
)
def test_values_that_float16_does_not_hold_stay_wide(scale: float, word: str | None) -> None:
    made, reasons = after(model(scale))
    assert names(made) == ({"large"} if word else {"large", "second"})
    assert word is None or word in reasons["second"]


def test_a_dead_channel_keeps_no_weight_wide() -> None:
    array = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    array[3] *= 1e-8
    assert unfit(ir.tensor(array)) is None
    assert unfit(ir.tensor(array * np.float32(np.nan))) is not None


def dequantized(content: bytes) -> tuple[int, int, int]:
    """DEQUANTIZE operators, those that nobody reads, and those of a buffer that another has widened."""
    from ai_edge_litert import schema_py_generated as s

    made = s.ModelT.InitFromObj(s.Model.GetRootAs(content, 0))
    count = unread = twice = 0
    for graph in made.subgraphs:
        read = {int(i) for o in graph.operators for i in o.inputs} | {int(i) for i in graph.outputs}
        seen: set[int] = set()
        for operator in graph.operators:
            if made.operatorCodes[operator.opcodeIndex].builtinCode != s.BuiltinOperator.DEQUANTIZE:
                continue
            buffer = graph.tensors[int(operator.inputs[0])].buffer
            count, unread = count + 1, unread + (int(operator.outputs[0]) not in read)
            twice += buffer in seen
            seen.add(buffer)
    return count, unread, twice


def test_a_shared_depthwise_kernel_is_stored_and_widened_once() -> None:
    text = """agraph (float[1,64,8,8] x) => (float[1,64,8,8] y) {
        h = Conv <group = 64, pads = [1,1,1,1]> (x, w)
        k = Tanh (h)
        y = Conv <group = 64, pads = [1,1,1,1]> (k, w)
    }"""
    made, _ = after(model(text=text, w=(64, 1, 3, 3)))
    content = emitted(made)
    assert operators(content).count("DEPTHWISE_CONV_2D") == 2
    assert dequantized(content) == (1, 0, 0)
    assert len(content) < 64 * 9 * 2 + 2500


@needs_assets
@pytest.mark.parametrize("name", ["kws01_dscnn", "mnist_lstm", "sww01_wakeword", "basic_pitch"])
def test_no_file_of_a_real_model_widens_for_nobody_or_grows(name: str) -> None:
    sizes: dict[str, int] = {}
    for scheme in ("float32", "float16"):
        made = load(model_path(name))
        pipeline.run(made, TARGET.passes(Request(scheme)))
        content = emitted(made)
        sizes[scheme] = len(content)
    assert dequantized(content)[1:] == (0, 0)
    assert sizes["float16"] < 0.82 * sizes["float32"]


@needs_assets
@pytest.mark.slow
@pytest.mark.parametrize("name", ["basic_pitch", "mobilenet_v1_025_224", "yunet_n", "yolox_nano"])
def test_a_real_model_that_rounding_harms_holds(name: str, tmp_path: Any) -> None:
    import tapeout

    done = tapeout.export(model_path(name), "tflite", quantize="float16", output=tmp_path / "m.tflite")
    assert done.report["verification"]["holds"]
    wide = done.manifest["options"].get("wide")
    if wide is None:
        return
    again = tapeout.export(
        model_path(name), "tflite", quantize="float16", output=tmp_path / "n.tflite", options={"wide": wide}
    )
    assert "narrowing" not in again.report  # the option asks for what was measured
    assert again.manifest["artifact"]["sha256"] == done.manifest["artifact"]["sha256"]
