"""Rules of a recipe that mix schemes for activations with schemes for weights alone, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import tapeout
from tapeout.compiler import pipeline
from tapeout.compiler.calibration import Calibration
from tapeout.compiler.errors import UnsupportedError
from tapeout.compiler.ir.load import from_proto
from tapeout.compiler.ir.origin import origin
from tapeout.compiler.operators import Activation, storage
from tapeout.compiler.recipe import Recipe
from tapeout.compiler.target import Request
from tapeout.targets.tflite import TARGET

WIDTH = 64


def network() -> onnx.ModelProto:
    """Three products by matrices, "one", "two" and "three", with Relu between."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array((rng.standard_normal((WIDTH, WIDTH)) / 8).astype(np.float32), f"w{i}")
        for i in range(3)
    ]
    nodes = []
    for i, name in enumerate(("one", "two", "three")):
        read = "x" if i == 0 else f"r{i - 1}"
        nodes.append(helper.make_node("MatMul", [read, f"w{i}"], ["y" if i == 2 else f"p{i}"], name=name))
        if i < 2:
            nodes.append(helper.make_node("Relu", [f"p{i}"], [f"r{i}"], name=f"relu{i}"))
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [4, WIDTH]) for n in "xy")
    return helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], weights), opset_imports=[helper.make_opsetid("", 21)]
    )


def samples() -> list[Mapping[str, np.ndarray[Any, Any]]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((4, WIDTH)).astype(np.float32)} for _ in range(6)]


def stored(model: ir.Model) -> dict[str, tuple[str, str]]:
    """For each product what it computes with, and the type of its weight."""
    found = {}
    for node in model.graph:
        if node.op_type == "FullyConnected":
            x, weight = node.inputs[:2]
            assert x is not None and weight is not None
            result = storage(node.outputs[0], output=True, fuses=(Activation("Relu"),))
            integers = storage(x).quantized and result.quantized
            held = storage(weight).dtype
            assert held is not None
            name = next(n for n in origin(node) if n in ("one", "two", "three"))
            found[name] = ("INT8" if integers else "FLOAT", held.name)
    return found


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (
            'scheme = "int8"\n[[rule]]\nnode = "two"\nscheme = "w8"\n[[rule]]\nnode = "three"\nscheme = "w4"',
            {"one": ("INT8", "INT8"), "two": ("FLOAT", "INT8"), "three": ("FLOAT", "INT4")},
        ),
        (
            'scheme = "w4"\n[[rule]]\nnode = "two"\nscheme = "int8"\n[[rule]]\nnode = "three"\nscheme = "float32"',
            {"one": ("FLOAT", "INT4"), "two": ("INT8", "INT8"), "three": ("FLOAT", "FLOAT")},
        ),
    ],
)
def test_each_layer_gets_the_scheme_that_its_rule_says(
    recipe: str, expected: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(recipe)
    made = tapeout.export(
        network(), target="tflite", recipe=path, calibration=samples, output=tmp_path / "net.tflite"
    )
    assert made.artifact.exists()  # verified, on both resolvers

    plan, model = Recipe.parse(recipe), from_proto(network())
    assert plan.scheme is not None
    request = Request(plan.scheme, calibration=Calibration(samples, model), recipe=plan)
    pipeline.run(model, TARGET.passes(request))
    assert stored(model) == expected


def test_rules_that_store_nothing_are_an_error() -> None:
    proto = network()
    for tensor in proto.graph.initializer[1:]:
        small = numpy_helper.to_array(tensor)[:, :8] if tensor.name == "w2" else numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(small, tensor.name))
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 8
    model = from_proto(proto)
    plan = Recipe.parse('[[rule]]\nnode = "three"\nscheme = "w8"')
    request = Request("int8", calibration=Calibration(samples, model), recipe=plan)
    with pytest.raises(UnsupportedError, match=r"rules .* no weight .* fewer than 1024 elements"):
        pipeline.run(model, TARGET.passes(request))
