"""The hand-over to TensorRT: files, scripts, explicit quantization, refusals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper as h
from onnx import numpy_helper as nh

import tapeout
from tapeout.compiler.errors import UnsupportedError, UsageError
from tests.assets import model_path, needs_assets

FREE: Any = "N"


def network() -> onnx.ModelProto:
    rng = np.random.default_rng(3)
    weights = {
        "w": rng.standard_normal((16, 3, 3, 3)) / 5,
        "b": rng.standard_normal(16),
        "m": rng.standard_normal((16, 10)) / 4,
    }
    nodes = [
        h.make_node("Conv", ["image", "w", "b"], ["c"], name="stem/conv", pads=[1] * 4),
        h.make_node("Relu", ["c"], ["r"], name="stem/relu"),
        h.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        h.make_node("Flatten", ["p"], ["f"], name="flat"),
        h.make_node("MatMul", ["f", "m"], ["scores"], name="head"),
    ]
    graph = h.make_graph(
        nodes, "net",
        [h.make_tensor_value_info("image", 1, [FREE, 3, 8, 8])],
        [h.make_tensor_value_info("scores", 1, [FREE, 10])],
        [nh.from_array(a.astype(np.float32), n) for n, a in weights.items()],
    )  # fmt: skip
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("scheme", ["float32", "float16", "bfloat16"])
def test_a_typed_file_and_two_scripts(tmp_path: Path, scheme: str) -> None:
    made = tapeout.export(network(), "tensorrt", quantize=scheme, output=tmp_path / "net.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "net.onnx", "net.onnx.build.py", "net.onnx.build.sh", "net.onnx.manifest.json", "net.onnx.report.json",
    ]  # fmt: skip
    assert made.report["verification"]["holds"]
    assert made.report["proof"]["unproven"], "ONNX Runtime on the CPU is no GPU"
    model = onnx.load(tmp_path / "net.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [o.domain for o in model.opset_import] == [""] and model.opset_import[0].version <= 25
    assert {n.name for n in model.graph.node} >= {"stem/conv", "pool"}


def test_the_same_bytes_again(tmp_path: Path) -> None:
    names = ("", ".build.sh", ".build.py")
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        tapeout.export(network(), "tensorrt", quantize="float16", output=folder / "n.onnx", verify=False)
    for name in names:
        first, second = ((folder / f"n.onnx{name}").read_bytes() for folder in folders)
        assert first == second


def test_the_shell_script_hands_sizes_to_trtexec(tmp_path: Path) -> None:
    """A trtexec that prints its arguments stands for the real one."""
    options = {"size.N": "1:8:16", "level": "5", "refit": "true", "cache": "shared cache"}
    tapeout.export(network(), "tensorrt", output=tmp_path / "my net.onnx", options=options, verify=False)
    tool = tmp_path / "trtexec"
    tool.write_text('#!/bin/sh\nfor a in "$@"; do echo "$a"; done\n')
    tool.chmod(0o755)
    ran = subprocess.run(
        ["sh", tmp_path / "my net.onnx.build.sh", "--verbose"],
        env={"TRTEXEC": str(tool), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True, timeout=20,
    )  # fmt: skip
    assert ran.stdout.splitlines() == [
        "--onnx=my net.onnx", "--saveEngine=my net.engine", "--skipInference", "--builderOptimizationLevel=5",
        "--timingCacheFile=shared cache", "--minShapes=image:1x3x8x8", "--optShapes=image:8x3x8x8",
        "--maxShapes=image:16x3x8x8", "--refit", "--verbose",
    ]  # fmt: skip


FAKE = '''
"""Stands for TensorRT's package: writes down what it is asked."""
import enum
asked = []
class Logger:
    INFO = 1
    def __init__(self, level): pass
class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1
class BuilderFlag(enum.Enum):
    REFIT = "refit"
class Cache:
    def serialize(self): return b"cache"
class Config:
    builder_optimization_level = 0
    def set_flag(self, flag): asked.append(flag.value)
    def create_timing_cache(self, content): return Cache()
    def set_timing_cache(self, cache, ignore): pass
    def get_timing_cache(self): return Cache()
    def add_optimization_profile(self, profile): asked.append(profile.shapes)
class Profile:
    def __init__(self): self.shapes = {}
    def set_shape(self, name, *shapes): self.shapes[name] = shapes
class Builder:
    def __init__(self, logger): pass
    def create_network(self, flags):
        asked.append(flags)
        return object()
    def create_builder_config(self): return Config()
    def create_optimization_profile(self): return Profile()
    def build_serialized_network(self, network, config):
        return repr((asked, config.builder_optimization_level)).encode()
class OnnxParser:
    num_errors = 0
    def __init__(self, network, logger): pass
    def parse_from_file(self, path): return open(path, "rb").read(1) != b""
'''


def test_the_python_script_builds_a_typed_network(tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text(FAKE)
    options = {"size.N": "2:4:8", "refit": "true"}
    tapeout.export(network(), "tensorrt", output=tmp_path / "net.onnx", options=options, verify=False)
    subprocess.run(
        [sys.executable, tmp_path / "net.onnx.build.py"],
        env={"PYTHONPATH": str(tmp_path)},
        check=True,
        timeout=60,
    )
    shapes = {"image": ((2, 3, 8, 8), (4, 3, 8, 8), (8, 3, 8, 8))}
    assert (tmp_path / "net.engine").read_text() == repr(([2, "refit", shapes], 3))
    assert (tmp_path / "timing.cache").read_bytes() == b"cache"


def test_int8_is_symmetric_and_biases_are_real(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "c.npz", image=rng.standard_normal((16, 3, 8, 8)).astype(np.float32))
    made = tapeout.export(
        network(), "tensorrt", quantize="int8", calibration=tmp_path / "c.npz", output=tmp_path / "net.onnx"
    )
    assert made.report["verification"]["holds"]
    graph = onnx.load(tmp_path / "net.onnx").graph
    known = {t.name: nh.to_array(t) for t in graph.initializer}
    conversions = [n for n in graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert all(not known[n.input[2]].any() for n in conversions)
    weight = next(n for n in conversions if n.input[0] in known and known[n.input[0]].ndim == 4)
    assert known[weight.input[0]].dtype == np.int8 and known[weight.input[1]].shape == (16,)
    conv = next(n for n in graph.node if n.op_type == "Conv")
    assert known[conv.input[2]].dtype == np.float32


def test_asymmetric_codes_are_refused_with_what_to_do(tmp_path: Path) -> None:
    scale, zero = nh.from_array(np.float32(0.1), "s"), nh.from_array(np.int8(3), "z")
    nodes = [
        h.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        h.make_node("DequantizeLinear", ["q", "s", "z"], ["r"], name="dq"),
        h.make_node("Tanh", ["r"], ["y"], name="tanh"),
    ]
    value = h.make_tensor_value_info
    graph = h.make_graph(nodes, "g", [value("x", 1, [4])], [value("y", 1, [4])], [scale, zero])
    with pytest.raises(UnsupportedError, match="zero points must be 0"):
        tapeout.export(
            h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10),
            "tensorrt", output=tmp_path / "q.onnx",
        )  # fmt: skip


@pytest.mark.parametrize(
    "options, words",
    [
        ({"size.M": "1:2:3"}, "no free size 'M', they have N"),
        ({"size.N": "4:2:8"}, "LEAST <= BEST <= MOST"),
        ({"size.N": "many"}, "size.N=1:8:32"),
        ({"size.N": "1:1:1,2:2:8"}, "expected one size or LEAST:BEST:MOST"),
        ({"level": "9"}, "expected 0 to 5"),
        ({"refit": "yes"}, "expected true or false"),
        ({"levle": "3"}, "did you mean 'level'"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        tapeout.export(network(), "tensorrt", options=options, output=tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@needs_assets
@pytest.mark.parametrize(
    "name", ["ic01_resnet8", "kwt1", "minilm_l6", "mnist_lstm", "silero_vad", "ultraface_rfb320"]
)
@pytest.mark.parametrize("scheme", ["float32", "float16", "bfloat16"])
def test_real_models(tmp_path: Path, name: str, scheme: str) -> None:
    made = tapeout.export(model_path(name), "tensorrt", quantize=scheme, output=tmp_path / "x.onnx")
    assert made.report["verification"]["holds"]
