"""LSTM, GRU and RNN written out in steps equal ONNX Runtime's own kernels."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from tapeout.compiler.ir.check import faults
from tapeout.compiler.ir.load import from_proto
from tapeout.compiler.ir.save import to_bytes
from tapeout.passes.decompose.recurrent import Recurrent

pytestmark = pytest.mark.slow

# Float32 rounding of the state, carried over up to 70 steps of values of order one.
TOLERANCE = 1e-5
BATCH, INPUT, HIDDEN = 3, 4, 6


def run(model: bytes, feeds: dict[str, Any]) -> list[np.ndarray[Any, Any]]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return list(ort.InferenceSession(model, options).run(None, feeds))


def layer(
    kind: str,
    steps: int,
    *,
    direction: str,
    lens: bool,
    state: bool,
    bias: bool,
    dynamic: bool,
    **attributes: Any,
):
    rng = np.random.default_rng(7)
    gates, d = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind], 2 if direction == "bidirectional" else 1
    peepholes = attributes.pop("peepholes", False)
    feeds: dict[str, Any] = {
        "X": rng.normal(size=(steps, BATCH, INPUT)),
        "W": rng.normal(size=(d, gates * HIDDEN, INPUT)) * 0.5,
        "R": rng.normal(size=(d, gates * HIDDEN, HIDDEN)) * 0.5,
    }
    if bias:
        feeds["B"] = rng.normal(size=(d, 2 * gates * HIDDEN))
    if lens:
        feeds["L"] = np.array([steps, 2, steps - 1], np.int32)
    if state:
        feeds["H"] = rng.normal(size=(d, BATCH, HIDDEN))
        if kind == "LSTM":
            feeds["C"] = rng.normal(size=(d, BATCH, HIDDEN))
    if peepholes:
        feeds["P"] = rng.normal(size=(d, 3 * HIDDEN))
    feeds = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in feeds.items()}
    names = ["X", "W", "R", "B", "L", "H"] + (["C", "P"] if kind == "LSTM" else [])
    outputs = ["Y", "Y_h"] + (["Y_c"] if kind == "LSTM" else [])
    node = helper.make_node(
        kind,
        [n if n in feeds else "" for n in names],
        outputs,
        hidden_size=HIDDEN,
        direction=direction,
        **attributes,
    )
    free = {"X": ["T", "N", INPUT], "L": ["N"]} if dynamic else {}
    inputs = [
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), free.get(k, v.shape))
        for k, v in feeds.items()
    ]
    graph = helper.make_graph(
        [node], "layer", inputs, [helper.make_tensor_value_info(o, 1, None) for o in outputs]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10), feeds


def check(proto: onnx.ModelProto, feeds: dict[str, Any], expected_op: str | None = None) -> None:
    model = from_proto(proto)
    assert Recurrent(unroll=16)(model).count == 1
    assert faults(model) == []
    kinds = {n.op_type for n in model.graph}
    assert not kinds & {"LSTM", "GRU", "RNN"}
    assert expected_op is None or (expected_op in kinds)
    for expected, found in zip(
        run(proto.SerializeToString(), feeds), run(to_bytes(model), feeds), strict=True
    ):
        assert np.abs(expected - found).max() < TOLERANCE


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_directions_lengths_states_and_biases(kind: str, direction: str) -> None:
    for lens, state, bias in itertools.product((False, True), repeat=3):
        check(*layer(kind, 5, direction=direction, lens=lens, state=state, bias=bias, dynamic=False))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_long_or_unknown_lengths_become_a_scan(kind: str, dynamic: bool) -> None:
    proto, feeds = layer(
        kind, 20, direction="bidirectional", lens=True, state=True, bias=True, dynamic=dynamic
    )
    check(proto, feeds, "Scan")


def test_peepholes_and_coupled_gates() -> None:
    # input_forget is left out: ONNX Runtime couples the gates only inside its optimized kernel's peephole path.
    check(
        *layer(
            "LSTM", 5, direction="forward", lens=False, state=True, bias=True, dynamic=False, peepholes=True
        )
    )


def test_gru_that_resets_after_the_product() -> None:
    for bias in (False, True):
        check(
            *layer(
                "GRU",
                5,
                direction="reverse",
                lens=True,
                state=True,
                bias=bias,
                dynamic=False,
                linear_before_reset=1,
            )
        )


@pytest.mark.parametrize("name, alpha, beta", [
    ("Relu", [], []), ("LeakyRelu", [0.2], []), ("ThresholdedRelu", [0.5], []), ("ScaledTanh", [0.8], [1.2]),
    ("HardSigmoid", [0.3], [0.4]), ("Elu", [0.7], []), ("Softsign", [], []), ("Softplus", [], []),
    ("Affine", [0.5], [0.1]),
])  # fmt: skip
def test_activations_with_their_parameters(name: str, alpha: list[float], beta: list[float]) -> None:
    more = {"activation_alpha": alpha} if alpha else {}
    more |= {"activation_beta": beta} if beta else {}
    check(
        *layer(
            "RNN",
            4,
            direction="forward",
            lens=False,
            state=False,
            bias=True,
            dynamic=False,
            activations=[name],
            **more,
        )
    )


def test_clipping_limits_what_goes_into_the_activations() -> None:
    for kind in ("LSTM", "GRU", "RNN"):
        check(
            *layer(kind, 5, direction="forward", lens=False, state=False, bias=True, dynamic=False, clip=0.3)
        )
