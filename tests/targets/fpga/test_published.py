"""The publishers' int8 models of MLPerf Tiny: their circuits' integers on all evaluation samples, and the goals."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from tapeout.targets.fpga import dialect as d
from tapeout.targets.fpga import live
from tapeout.targets.fpga.devices import device
from tapeout.targets.fpga.fold import fold
from tests.asset_samples import samples
from tests.assets import needs_assets
from tests.targets.fpga.networks import circuit, results, runtime
from tests.targets.fpga.published import MODELS, published

pytestmark = [needs_assets, pytest.mark.slow]


@functools.cache
def whole(name: str) -> d.Graph:
    return circuit(published(name, tail=False))


@functools.cache
def folded(name: str) -> d.Graph:
    return fold(whole(name), device("xc7z020"))


def evaluation(name: str) -> Any:
    (data,) = samples(name, 1000, "eval").values()
    return np.asarray(data, np.float32)


@pytest.mark.parametrize("name", ["ad01_autoencoder", "kws01_dscnn", "vww01_mobilenetv1"])
def test_every_code_is_that_of_the_integer_kernels(name: str) -> None:
    """ONNX Runtime's fused kernels and the circuit agree on every output of every sample."""
    data = evaluation(name)
    assert len(data) >= 180
    np.testing.assert_array_equal(results(folded(name), data), runtime(published(name, tail=False), data))


def test_sums_round_as_onnx_says() -> None:
    """ONNX Runtime's fused addition rounds one pair of codes of ResNet8's first sum otherwise than DequantizeLinear,
    Add and QuantizeLinear do, which the circuit follows: that moves some outputs by up to 4 quanta."""
    name = "ic01_resnet8"
    data, graph = evaluation(name), folded(name)
    expected, made = runtime(published(name, tail=False), data), results(graph, data)
    steps = np.rint((made - expected) / graph.tensors[graph.output_ports[0].tensor].scale)
    assert np.abs(steps).max() <= 4 and np.mean(steps != 0) < 0.03
    assert np.mean(made.argmax(1) == expected.argmax(1)) > 0.99
    assert all(n.differs == 0 for n in graph.nodes if isinstance(n, d.Add))


@pytest.mark.parametrize(
    ("name", "cycles"),
    [
        ("ic01_resnet8", 66_000),
        ("kws01_dscnn", 16_200),
        ("vww01_mobilenetv1", 30_000),
        ("ad01_autoencoder", 2_444),
    ],
)
def test_the_goals_in_cycles(name: str, cycles: int) -> None:
    assert folded(name).interval <= cycles


def test_half_of_the_visual_wake_words_model_is_constant() -> None:
    graph = whole("vww01_mobilenetv1")
    less = live.without(graph, live.kept(graph))
    assert live.operations(graph) == 7_489_664 and live.operations(less) == 3_727_313


@pytest.mark.parametrize("name", MODELS)
def test_every_channel_is_exact(name: str) -> None:
    """By a line of at most 34 bits, or by a table; few need one."""
    forms = [n.requantize for n in whole(name).nodes if isinstance(n, d.Folded)]
    channels, tables = sum(len(f.multiplier) for f in forms), sum(len(f.tables) for f in forms)
    assert tables <= 0.07 * channels
    assert max(int(f.multiplier.max()).bit_length() for f in forms) <= 34
