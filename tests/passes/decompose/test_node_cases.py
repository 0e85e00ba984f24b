"""The standard's own node cases through the decompositions: what comes out equals what the standard expects."""

from __future__ import annotations

import functools
import warnings
from collections import defaultdict
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tapeout.compiler import pipeline
from tapeout.passes.decompose import (
    DEPTH_TO_SPACE_DCR,
    ELU_OF_ONE,
    PLAIN_GEMM,
    RESIZE_BY_MATMUL,
    RULES,
    SOFTMAX_ON_LAST_AXIS,
    Decompose,
)
from tests.passtext import _minimal, run

pytestmark = pytest.mark.slow  # building the cases takes seconds

PASSES = (SOFTMAX_ON_LAST_AXIS, DEPTH_TO_SPACE_DCR, RESIZE_BY_MATMUL, PLAIN_GEMM, ELU_OF_ONE, Decompose())

# Inputs that models have as constants; the cases have them as inputs.
CONSTANTS = {"Resize": (1, 2, 3), "DFT": (1, 2), "STFT": (1, 2, 3), "CenterCropPad": (1,)}

# Operators, and how many of their cases at least are decomposed and right.
LEAST = {
    "Attention": 88, "RotaryEmbedding": 8, "LayerNormalization": 19, "RMSNormalization": 19, "GroupNormalization": 2,
    "InstanceNormalization": 2, "BatchNormalization": 2, "LpNormalization": 6, "MeanVarianceNormalization": 1,
    "GlobalAveragePool": 2, "GlobalMaxPool": 2, "LpPool": 7, "Swish": 1, "Mish": 1, "Softplus": 2, "Softsign": 2,
    "Elu": 3, "Selu": 3, "Celu": 1, "ThresholdedRelu": 3, "Shrink": 2, "HardSigmoid": 3, "HardSwish": 1,
    "LeakyRelu": 3, "PRelu": 2, "Gelu": 4, "Hardmax": 7, "Erf": 1, "Atan": 2, "Asin": 2, "Acos": 2, "IsNaN": 2,
    "IsInf": 3, "Einsum": 5, "Gemm": 11, "DFT": 5, "STFT": 2, "Resize": 34, "DepthToSpace": 1, "Softmax": 7,
    "LogSoftmax": 7, "CenterCropPad": 6, "NegativeLogLikelihoodLoss": 18, "SoftmaxCrossEntropyLoss": 34,
    "ReduceLogSumExp": 9, "GreaterOrEqual": 8, "DynamicQuantizeLinear": 3,
}  # fmt: skip


def _since(op_type: str, opset: int) -> int | None:
    try:
        return int(onnx.defs.get_schema(op_type, opset).since_version)
    except onnx.defs.SchemaError:
        return None


@functools.cache
def _cases() -> dict[str, list[tuple[str, onnx.ModelProto, Any]]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        found: dict[str, list[tuple[str, onnx.ModelProto, Any]]] = defaultdict(list)
        for case in collect_testcases(None):
            model = case.model
            domains = {o.domain for o in model.opset_import}
            if len(model.graph.node) != 1 or domains != {""} or not case.data_sets:
                continue
            op_type = model.graph.node[0].op_type
            version = min(model.opset_import[0].version, 25)
            if op_type == "Attention" or _since(op_type, version) == _since(op_type, 25):
                found[op_type].append((case.name, model, case.data_sets[0]))
    return found


def test_every_rule_has_cases() -> None:
    assert {o for r in RULES for o in r.ops} - LEAST.keys() == {"GlobalLpPool"}


@pytest.mark.parametrize("op_type", sorted(LEAST))
def test_node_cases(op_type: str) -> None:
    right = 0
    for name, proto, (inputs, expected) in _cases()[op_type]:
        data = {i.name: np.asarray(x) for i, x in zip(proto.graph.input, inputs, strict=True)}
        if any(x.dtype.kind not in "fiub" for x in (*data.values(), *map(np.asarray, expected))):
            continue
        model, data = _constants(proto, data)
        graph = _minimal(model)
        if not sum(step.count for step in pipeline.run(graph, PASSES).steps):
            continue
        assert op_type in ("Softmax", "LogSoftmax", "Elu", "DepthToSpace") or op_type not in {
            n.op_type for n in graph.graph
        }, f"{name}: the operator is still there"
        after = ir.to_proto(graph)
        after.ir_version = min(after.ir_version, 13)
        got = run(after, data)
        for info, value in zip(proto.graph.output, expected, strict=True):
            result, value = got[info.name], np.asarray(value)
            assert result.dtype == value.dtype and result.shape == value.shape, f"{name}: '{info.name}'"
            atol = 2e-3 if value.dtype == np.float16 else 1e-5
            np.testing.assert_allclose(
                result.astype(np.float64), value.astype(np.float64), rtol=1e-3, atol=atol, err_msg=name
            )
        right += 1
    assert right >= LEAST[op_type], f"only {right} cases were decomposed"


def _constants(proto: onnx.ModelProto, data: dict[str, Any]) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The case in the opset of the IR, inputs that models have as constants made constants."""
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    model.opset_import[0].version = 25
    node = model.graph.node[0]
    fixed = {node.input[i] for i in CONSTANTS.get(node.op_type, ()) if i < len(node.input)} - {""}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(data[n], n) for n in sorted(fixed))
    kept = [i for i in model.graph.input if i.name not in fixed]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return model, {k: v for k, v in data.items() if k not in fixed}
