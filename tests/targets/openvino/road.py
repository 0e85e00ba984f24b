"""The whole road of a small graph for tests: passes, acceptance, emission, the CPU plugin."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler import pipeline
from tapeout.compiler.ir.load import from_text
from tapeout.compiler.reference import Reference
from tapeout.compiler.target import Request, write
from tapeout.targets.openvino import TARGET
from tapeout.targets.openvino.run import OpenVINO

Arrays = dict[str, np.ndarray[Any, Any]]
HEADER = '<ir_version: 10, opset_import: ["" : 25]>\n'


def legalized(text: str, request: Request) -> ir.Model:
    model = from_text(HEADER + text)
    pipeline.run(model, TARGET.passes(request))
    return model


def refusals(text: str, request: Request | None = None) -> list[str]:
    request = request or Request()
    model = legalized(text, request)
    return [str(r) for r in TARGET.declaration(request.device).accept(model).refused]


def ran(text: str, inputs: Mapping[str, Any], request: Request | None = None) -> Arrays:
    """The outputs of the files that `text` becomes."""
    request = request or Request()
    model = legalized(text, request)
    assert [str(r) for r in TARGET.declaration(request.device).accept(model).refused] == []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.xml"
        write(TARGET, model, path, request)
        return OpenVINO(path).run(inputs)


def agrees(text: str, inputs: Mapping[str, Any], tolerance: float = 1e-5) -> Arrays:
    """The same, held to ONNX Runtime on the source: real numbers relative to the largest, others equal."""
    with Reference(from_text(HEADER + text)) as reference:
        expected = reference.run(inputs)
    found = ran(text, inputs)
    assert set(found) >= set(expected)
    for name, right in expected.items():
        value = found[name]
        assert (value.shape, value.dtype) == (right.shape, right.dtype), name
        if np.issubdtype(right.dtype, np.floating) and np.isfinite(right).all() and right.size:
            error = np.abs(value.astype(np.float64) - right).max() / max(np.abs(right).max(), 1e-30)
            assert error <= tolerance, f"{name}: relative error {error:.2g}"
        else:
            np.testing.assert_array_equal(value, right, err_msg=name)
    return found
