"""--prune and --factorize: what they leave, say and refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from tapeout.__main__ import main
from tapeout.compiler.ir.save import save
from tests.passes.networks import network, samples

NETWORK = """
net (float[1,3,16,16] image) => (float[1,10] y) <
    float[32,3,3,3] w1, float[32] b1, float[64,32,3,3] w2, float[64] b2, float[10,64] w3, float[10] b3> {
    a = Conv<pads=[1,1,1,1], strides=[2,2]>(image, w1, b1)
    r = Relu(a)
    b = Conv<pads=[1,1,1,1]>(r, w2, b2)
    s = Relu(b)
    p = GlobalAveragePool(s)
    f = Flatten(p)
    y = Gemm<transB=1>(f, w3, b3)
}"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    made = network(NETWORK)
    save(made, tmp_path / "net.onnx")
    np.savez(tmp_path / "calib.npz", image=np.concatenate([f["image"] for f in samples(made, 16)]))
    return tmp_path / "net.onnx"


def export(model: Path, *arguments: str, data: bool = True) -> int:
    out = model.with_name("net.tflite")
    given = ["--calibration", str(model.with_name("calib.npz"))] if data else []
    return main(["export", str(model), "-o", str(out), *given, *arguments])


@pytest.mark.slow
def test_steps_in_order_before_quantization(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = ("--prune", "channels=0.3", "--prune", "sparsegpt=0.5", "--factorize", "svd=0.2")
    assert export(model, *steps, "--quantize", "int8") == 0
    said = capsys.readouterr().err
    assert [line.split("  ")[0] for line in said.splitlines()[1:7]] == [
        "", "source", "prune channels=0.3", "prune sparsegpt=0.5", "factorize svd=0.2", "quantize int8"
    ]  # fmt: skip
    report = json.loads(model.with_name("net.tflite.report.json").read_text())["compression"]
    assert report[1]["operations"] <= 0.72 * report[0]["operations"]
    assert report[2]["zeros"] / report[2]["weights"] == pytest.approx(0.5, abs=0.02)
    assert all(step["lost"] > 0 and 0 <= step["agreement"] <= 1 for step in report[1:])
    source = json.loads(model.with_name("net.tflite.report.json").read_text())["source"]
    assert source["weights"] > report[1]["weight_bytes"] and f"{source['nodes']} nodes" in said
    manifest = json.loads(model.with_name("net.tflite.manifest.json").read_text())
    assert [step["step"] for step in manifest["compression"]] == [s["step"] for s in report[1:4]]
    assert [f["name"] for f in manifest["inputs"]] == ["net.onnx"]


@pytest.mark.slow
def test_a_float_artifact_of_a_pruned_model_is_verified_and_the_same_each_time(model: Path) -> None:
    contents = []
    for _ in range(2):
        assert export(model, "--prune", "wanda=2:4") == 0
        contents.append(model.with_name("net.tflite").read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    ("arguments", "data", "said"),
    [
        (["--prune", "sparsegtp=0.5"], True, "did you mean 'sparsegpt'?"),
        (["--prune", "sparsegpt=1.5"], True, "outside (0, 1)"),
        (["--prune", "sparsegpt"], True, "says no amount"),
        (["--prune", "magnitude=3:5"], True, "no multiple of 5"),
        (["--prune", "channels=1"], True, "no share between 0 and 1"),
        (["--prune", "channels=0.9999"], True, "can be removed, and 100% are asked for"),
        (["--prune", "sparsegpt=0.5"], False, "there is none"),
        (["--factorize", "svd=0.999"], True, "factorization can remove at most"),
        (["--factorize", "qr=0.5"], True, "unknown method 'qr'"),
    ],
)
def test_what_cannot_be_done_says_why_and_leaves_nothing(
    model: Path, arguments: list[str], data: bool, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(model.parent.iterdir())
    assert export(model, *arguments, data=data) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert sorted(model.parent.iterdir()) == before


def test_a_pruned_model_is_a_plain_model(model: Path) -> None:
    """No masks, no operators of ours: what is saved between the steps and the target is ONNX that others read."""
    from contextlib import ExitStack

    from tapeout.calibrating import Samples
    from tapeout.compressing import asked, compressed
    from tapeout.road import Wish, opened, prepare

    with ExitStack() as stack:
        prepared = prepare(opened(stack, str(model)), Wish())
        data = Samples(str(model.with_name("calib.npz")))
        made = compressed(prepared, asked(["channels=0.2"], [], None), data, model.parent)
    proto = onnx.load(made.path)
    onnx.checker.check_model(proto)
    assert {n.domain for n in proto.graph.node} == {""}
