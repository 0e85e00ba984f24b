"""The whole road of a small graph for tests: passes, acceptance, emission, both resolvers."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler import pipeline
from tapeout.compiler.declaration import Refusal
from tapeout.compiler.ir.load import from_text
from tapeout.compiler.ir.save import to_bytes
from tapeout.compiler.target import Request
from tapeout.targets.tflite import TARGET
from tapeout.targets.tflite.run import RESOLVERS, LiteRT

Arrays = dict[str, np.ndarray[Any, Any]]
HEADER = '<ir_version: 10, opset_import: ["" : 25]>\n'


def legalized(text: str, scheme: str = "float32") -> ir.Model:
    """The graph `text`, in ONNX's text syntax without a header, after the target's passes."""
    model = from_text(text if text.lstrip().startswith("<") else HEADER + text)
    pipeline.run(model, TARGET.passes(Request(scheme)))
    return model


def refusals(model: ir.Model) -> list[Refusal]:
    return TARGET.declaration("cpu").accept(model).refused


def emitted(model: ir.Model) -> bytes:
    sink = io.BytesIO()
    TARGET.emit(model, sink, Request())
    return sink.getvalue()


def inputs_of(model: ir.Model, bind: Mapping[str, int] | None = None, seed: int = 0) -> Arrays:
    """Random inputs; integers from 0 to 9, symbolic dimensions from `bind`, else 2."""
    rng = np.random.default_rng(seed)
    found: Arrays = {}
    for value in model.graph.inputs:
        assert value.shape is not None and value.dtype is not None and value.name is not None
        shape = [d if isinstance(d, int) else (bind or {}).get(str(d.value), 2) for d in value.shape]
        dtype = value.dtype.numpy()
        if np.issubdtype(dtype, np.floating):
            found[value.name] = np.asarray(rng.standard_normal(shape) * 2).astype(dtype)
        elif dtype == np.bool_:
            found[value.name] = np.asarray(rng.random(shape) < 0.5)
        else:
            found[value.name] = np.asarray(rng.integers(0, 10, shape)).astype(dtype)
    return found


def reference(model: ir.Model, inputs: Arrays) -> Arrays:
    """The outputs of `model` in ONNX Runtime without optimizations."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def agrees(
    text: str,
    *,
    inputs: Arrays | None = None,
    bind: Mapping[str, int] | None = None,
    tolerance: float = 1e-5,
    scheme: str = "float32",
) -> list[str]:
    """Hold the TFLite file of `text` against the source in ONNX Runtime; returns the operators in it.

    `tolerance` is relative to the largest magnitude of an output; integers and booleans must be equal.
    """
    source = from_text(text if text.lstrip().startswith("<") else HEADER + text)
    given = inputs or inputs_of(source, bind)
    expected = reference(source, given)
    model = legalized(text, scheme)
    assert [str(r) for r in refusals(model)] == []
    content = emitted(model)
    for resolver in RESOLVERS:
        found = LiteRT(content, resolver).run(given)
        assert list(found) == list(expected) or set(found) == set(expected)
        for name, right in expected.items():
            value = found[name]
            assert value.shape == right.shape, (
                f"{resolver} {name}: shape {value.shape}, expected {right.shape}"
            )
            assert value.dtype == right.dtype, f"{resolver} {name}: {value.dtype}, expected {right.dtype}"
            if np.issubdtype(right.dtype, np.floating) and right.size:
                error = np.abs(value.astype(np.float64) - right).max() / max(np.abs(right).max(), 1e-30)
                assert error <= tolerance, f"{resolver} {name}: relative error {error:.2g}"
            else:
                np.testing.assert_array_equal(value, right, err_msg=f"{resolver} {name}")
    return operators(content)


def operators(content: bytes) -> list[str]:
    """The builtin operators of the first subgraph, in order."""
    from ai_edge_litert import schema_py_generated as s

    names = {v: k for k, v in vars(s.BuiltinOperator).items() if isinstance(v, int)}
    model = s.ModelT.InitFromObj(s.Model.GetRootAs(content, 0))
    return [names[model.operatorCodes[o.opcodeIndex].builtinCode] for o in model.subgraphs[0].operators]
