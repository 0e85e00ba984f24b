"""The whole road of a small graph for tests: passes, acceptance, a plan's file, the CPU executor."""

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
from tapeout.targets.nvidia import TARGET
from tapeout.targets.nvidia.executor import Executor
from tapeout.targets.nvidia.plan.parts import Plan
from tapeout.targets.nvidia.plan.read import PlanFile

Arrays = dict[str, np.ndarray[Any, Any]]
HEADER = '<ir_version: 10, opset_import: ["" : 25]>\n'


def legalized(text: str, **options: str) -> tuple[ir.Model, Request]:
    model, request = from_text(HEADER + text), Request(device="cpu", options=options)
    pipeline.run(model, TARGET.passes(request))
    return model, request


def planned(text: str, **options: str) -> Plan:
    return opened(text, **options).plan


def opened(text: str, **options: str) -> PlanFile:
    """The plan's file, which lives on in memory."""
    model, request = legalized(text, **options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.plan"
        write(TARGET, model, path, request)
        return PlanFile(path)


def ran(text: str, inputs: Mapping[str, Any], **options: str) -> Arrays:
    return Executor(opened(text, **options)).run(inputs)


def agrees(text: str, inputs: Mapping[str, Any], tolerance: float = 1e-5, **options: str) -> Arrays:
    """The outputs, held to ONNX Runtime on the source: real numbers relative to the largest, others equal."""
    with Reference(from_text(HEADER + text)) as reference:
        expected = reference.run(inputs)
    found = ran(text, inputs, **options)
    for name, right in expected.items():
        value = found[name]
        assert (value.shape, value.dtype) == (right.shape, right.dtype), name
        if np.issubdtype(right.dtype, np.floating) and right.size:
            error = np.abs(value.astype(np.float64) - right).max() / max(np.abs(right).max(), 1e-30)
            assert error <= tolerance, f"{name}: relative error {error:.2g}"
        else:
            np.testing.assert_array_equal(value, right, err_msg=name)
    return found
