"""--prune and --factorize: what they leave, say and refuse."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tapeout.__main__ import main
from tapeout.calibrating import Samples
from tapeout.compiler.ir.load import load
from tapeout.compiler.ir.save import save
from tapeout.compiler.recipe import Recipe
from tapeout.compressing import asked, compressed
from tapeout.passes.sparsity import facts
from tapeout.passes.sparsity.layers import layers
from tapeout.road import Wish, opened, prepare
from tests.asset_samples import samples as samples_of
from tests.assets import model_path, needs_assets
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
        (["--prune", "sparsegpt=0.5,multiple=8"], True, "has no option 'multiple'"),
        (["--prune", "channels=0.5,multipel=8"], True, "did you mean 'multiple'?"),
        (["--prune", "channels=0.5,multiple=x"], True, "expected a whole number"),
        (["--prune", "channels=0.5,importance=tailor"], True, "did you mean 'taylor'?"),
        (["--prune", "blocks=0.3"], True, "no Add joins a value with what is computed from it"),
        (["--prune", "magnitude=3:5"], True, "no multiple of 5"),
        (["--prune", "channels=1"], True, "no share between 0 and 1"),
        (["--prune", "channels=0.9999"], True, "can be removed, and 100% are asked for"),
        (["--prune", "sparsegpt=0.5"], False, "there is none"),
        (["--factorize", "svd=0.999"], True, "factorization can remove at most"),
        (["--factorize", "qr=0.5"], True, "unknown method 'qr'"),
        (["--factorize", "svd=0.5,by=enery"], True, "did you mean 'energy'?"),
        (["--factorize", "circulant=0.5"], True, "still takes b * b multiplications"),
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


RECIPE = """
[[step]]
prune = "magnitude"
ratio = 0.5
[[step.rule]]
node = "{first}"
skip = true
[[step.rule]]
op = "Gemm"
pattern = "2:4"
"""


def written(model: Path, recipe: str) -> str:
    place = model.with_name("recipe.toml")
    place.write_text(recipe)
    return str(place)


def compressed_model(model: Path, recipe: str) -> ir.Model:
    """The model behind the steps of a recipe that needs no data."""
    with ExitStack() as stack:
        prepared = prepare(opened(stack, str(model)), Wish())
        return compressed(prepared, Recipe.parse(recipe).steps, None, model.parent).prepared.model


def names(model: Path) -> list[str]:
    return [n.name or "" for n in load(model).graph]


def test_rules_say_what_holds_for_single_layers(model: Path) -> None:
    first, *_ = names(model)
    made = compressed_model(model, RECIPE.format(first=first))
    dense, second, last = (layer.weight()[0] for layer in layers(made.graph))
    assert np.count_nonzero(dense) == dense.size
    assert np.mean(second == 0) == pytest.approx(0.5, abs=0.01)
    assert facts.holds("2:4", last)
    assert list(facts.facts(made).values()) == ["2:4"]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tflite", "openvino"])
def test_one_recipe_prunes_factorizes_and_quantizes(
    model: Path, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = """
[[step]]
prune = "channels"
ratio = 0.2
[[step.rule]]
node = "{first}"
skip = true
[[step]]
factorize = "svd"
ratio = 0.2
[[step.rule]]
op = "Gemm"
rank = 4
[[step]]
quantize = "int8"
[[step.rule]]
op = "Gemm"
scheme = "float32"
"""
    place = written(model, recipe.format(first=names(model)[0]))
    out = model.with_name({"tflite": "net.tflite", "openvino": "net.xml"}[target])
    given = ["--calibration", str(model.with_name("calib.npz"))]
    assert main(["export", str(model), "--target", target, "-o", str(out), "--recipe", place, *given]) == 0
    report = json.loads(out.with_name(f"{out.name}.report.json").read_text())
    told = report["compression"]
    assert [s["step"] for s in told] == [
        "source", "prune channels=0.2", "factorize svd=0.2", "quantize int8"
    ]  # fmt: skip
    assert told[1]["operations"] <= 0.8 * told[0]["operations"]
    assert told[3]["weight_bytes"] < 0.6 * told[2]["weight_bytes"]  # three layers in int8, one in float32
    assert all({"sqnr", "lost", "agreement", "zeros"} <= set(s) for s in told[1:])
    assert report["proof"]["proven"]
    assert any("keeps its channels: a rule says so" in reason for reason in told[1]["left"])
    manifest = json.loads(out.with_name(f"{out.name}.manifest.json").read_text())
    assert manifest["compression"][1]["rules"] == [{"ops": ["Gemm"], "rank": [4]}]
    assert "quantize int8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ('[[step]]\nprune = "magnitude"\nratio = 1', "the ratio 1 lies outside (0, 1)"),
        ('[[step]]\nprune = "magnitude"\npattern = "1x4:1.5"', "the ratio 1.5 lies outside (0, 1)"),
        ('[[step]]\nprune = "magnitude"\npattern = "4:2"', "keeps 4 of each 2"),
        ('[[step]]\nprune = "magnitud"\nratio = 0.5', "did you mean 'magnitude'?"),
        ('[[step]]\nprune = "magnitude"', "says no amount"),
        ('[[step]]\nprune = "constant-channels"\nratio = 0.5', "takes no amount"),
        (
            '[[step]]\nfactorize = "svd"\nratio = 0.5\n[[step.rule]]\nop = "Gemm"\nratio = 0.5',
            "takes no ratio",
        ),
        ('[[step]]\nprune = "channels"\nratio = 0.5\n[[step.rule]]\nop = "Gemm"\nrank = 3', "takes no rank"),
        (
            '[[step]]\nprune = "wanda"\nratio = 0.5\n[[step.rule]]\nop = "Gemm"\nmethod = "svd"',
            "method 'svd'",
        ),
        (
            '[[step]]\nprune = "magnitude"\nratio = 0.5\n[[step.rule]]\nop = "Relu"\nskip = true',
            "matches nothing",
        ),
        (
            '[[step]]\nprune = "magnitude"\nratio = 0.5\n[[step.rule]]\nnode = "?*_99"\nskip = true',
            "matches nothing",
        ),
        (
            '[[step]]\nfactorize = "svd"\nratio = 0.2\n[[step.rule]]\nop = "Gemm"\nrank = 9',
            "pays below rank 8.6",
        ),
    ],
)
def test_a_recipe_that_cannot_be_says_why_and_leaves_nothing(
    model: Path, recipe: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = written(model, recipe)
    before = sorted(model.parent.iterdir())
    assert export(model, "--recipe", place) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert sorted(model.parent.iterdir()) == before


def test_steps_of_a_recipe_and_of_the_command_line_are_not_mixed(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = written(model, '[[step]]\nprune = "magnitude"\nratio = 0.5')
    assert export(model, "--recipe", place, "--factorize", "svd=0.2") == 2
    assert "say them in one place" in capsys.readouterr().err


UNCUT = """
net (float[1,16] x) => (float[1,8] y) <float[16,8] w> {
    product = MatMul(x, w)
    y = Softmax(product)
}"""
ODD = "net (float[1,30] x) => (float[1,7] y) <float[30,7] w> { y = MatMul(x, w) }"


@pytest.mark.parametrize(
    ("network_text", "arguments", "said"),
    [
        (
            UNCUT,
            ["--prune", "channels=0.3"],
            ["no channel of the model can be removed", "Softmax '"],
        ),
        (
            ODD,
            ["--prune", "magnitude=2:4"],
            ["nothing can be pruned to 2:4", "30 inputs are no multiple of 4"],
        ),
        (ODD, ["--prune", "magnitude=2x3:0.5"], ["7 outputs are no multiple of 2"]),
    ],
)
def test_a_model_that_cannot_be_pruned_says_by_which_nodes(
    tmp_path: Path,
    network_text: str,
    arguments: list[str],
    said: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = network(network_text)
    save(made, tmp_path / "net.onnx")
    np.savez(tmp_path / "calib.npz", x=np.concatenate([f["x"] for f in samples(made, 8)]))
    before = sorted(tmp_path.iterdir())
    assert export(tmp_path / "net.onnx", *arguments) == 2
    error = capsys.readouterr().err
    assert [text for text in said if text not in error] == [] and "Traceback" not in error
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_zeros_are_packed_where_that_is_asked_for(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = []
    for option in ("false", "true"):
        assert export(model, "--prune", "magnitude=0.8", "--option", f"sparse={option}", data=False) == 0
        sizes.append(model.with_name("net.tflite").stat().st_size)
    said = capsys.readouterr().err
    assert sizes[1] < 0.6 * sizes[0]
    assert "fewer bytes, no less time" in said
    told = json.loads(model.with_name("net.tflite.report.json").read_text())["zeros"]["packed"]
    assert told["dense_bytes"] - told["bytes"] >= sizes[0] - sizes[1]


def test_a_pruned_model_is_a_plain_model(model: Path) -> None:
    """No masks, no operators of ours: what is saved between the steps and the target is ONNX that others read."""
    with ExitStack() as stack:
        prepared = prepare(opened(stack, str(model)), Wish())
        data = Samples(str(model.with_name("calib.npz")))
        made = compressed(prepared, asked(["channels=0.2"], [], None), data, model.parent)
    proto = onnx.load(made.path)
    onnx.checker.check_model(proto)
    assert {n.domain for n in proto.graph.node} == {""}


def test_channels_that_are_left_are_a_multiple(model: Path) -> None:
    with ExitStack() as stack:
        prepared = prepare(opened(stack, str(model)), Wish())
        data = Samples(str(model.with_name("calib.npz")))
        todo = asked(["channels=0.3,multiple=8"], [], None)
        made = compressed(prepared, todo, data, model.parent)
    left = [layer.outputs for layer in layers(made.prepared.model.graph)]
    assert left[-1] == 10 and all(count % 8 == 0 for count in left[:-1]) and sum(left) < 106
    assert made.told[1]["operations"] <= 0.7 * made.told[0]["operations"]


def test_ranks_are_a_multiple(model: Path) -> None:
    with ExitStack() as stack:
        prepared = prepare(opened(stack, str(model)), Wish())
        data = Samples(str(model.with_name("calib.npz")))
        made = compressed(prepared, asked([], ["svd=0.3,multiple=8"], None), data, model.parent)
    inner = [layer.outputs for layer in layers(made.prepared.model.graph)]
    assert len(inner) > 3 and all(count % 8 == 0 for count in inner[:-1])


@pytest.mark.slow
@pytest.mark.parametrize("importance", ["magnitude", "activation", "sensitivity", "taylor"])
def test_importance_of_choice_in_rounds(model: Path, importance: str) -> None:
    step = f"channels=0.3,importance={importance},rounds=2"
    assert export(model, "--prune", step) == 0
    told = json.loads(model.with_name("net.tflite.report.json").read_text())["compression"]
    assert told[1]["step"] == f"prune {step}"
    assert told[1]["operations"] <= 0.7 * told[0]["operations"]


@pytest.mark.slow
def test_blocks_go_whole(tmp_path: Path) -> None:
    made = network("""
net (float[1,8,8,8] x) => (float[1,4] y) <float[8,8,3,3] w1, float[8,8,3,3] w2, float[4,8] w3, float[4] b3> {
    a = Conv<pads=[1,1,1,1]>(x, w1)
    s = Add(x, a)
    b = Conv<pads=[1,1,1,1]>(s, w2)
    t = Add(s, b)
    p = GlobalAveragePool(t)
    f = Flatten(p)
    y = Gemm<transB=1>(f, w3, b3)
}""")
    save(made, tmp_path / "net.onnx")
    np.savez(tmp_path / "calib.npz", x=np.concatenate([f["x"] for f in samples(made, 16)]))
    assert export(tmp_path / "net.onnx", "--prune", "blocks=0.4") == 0
    told = json.loads((tmp_path / "net.tflite.report.json").read_text())["compression"]
    assert told[1]["operations"] == pytest.approx(0.5 * told[0]["operations"], rel=0.01)


@needs_assets
@pytest.mark.slow
@pytest.mark.parametrize(("target", "suffix"), [("tflite", ".tflite"), ("openvino", ".xml")])
def test_a_real_model_through_all_steps(target: str, suffix: str, tmp_path: Path) -> None:
    """Visual wake words: half of its operations are channels that never change; what int8 says of the rest is still
    what the dense model says."""
    name = "vww01_mobilenetv1"
    np.savez(tmp_path / "calib.npz", **samples_of(name, 24, "calib"))
    place = written(
        tmp_path / "m.onnx",
        """
[[step]]
prune = "constant-channels"
[[step]]
prune = "magnitude"
ratio = 0.3
[[step.rule]]
node = "model/conv2d/*"
skip = true
[[step]]
factorize = "svd"
ratio = 0.02
[[step]]
quantize = "int8"
""",
    )
    out = tmp_path / f"m{suffix}"
    given = [
        "--target",
        target,
        "-o",
        str(out),
        "--recipe",
        place,
        "--calibration",
        str(tmp_path / "calib.npz"),
    ]
    assert main(["export", str(model_path(name)), *given]) == 0
    report = json.loads(out.with_name(f"{out.name}.report.json").read_text())
    told = report["compression"]
    assert [s["step"].split("=")[0] for s in told] == [
        "source", "prune constant-channels", "prune magnitude", "factorize svd", "quantize int8"
    ]  # fmt: skip
    assert told[1]["operations"] < 0.55 * told[0]["operations"] and told[1]["agreement"] == 1
    assert told[2]["zeros"] == pytest.approx(0.3 * told[2]["weights"], rel=0.05)
    assert told[4]["weight_bytes"] < 0.4 * told[3]["weight_bytes"]
    assert told[4]["agreement"] >= 0.75
    assert any("stays dense: a rule says so" in reason for reason in told[2]["left"])
    assert report["verification"]["proven"]
