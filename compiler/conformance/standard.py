"""The ONNX standard's own node cases, which `onnx.backend.test` builds in Python (no download)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from tapeout.compiler.conformance.case import Array, Case

if TYPE_CHECKING:
    import onnx


def cases(pattern: str | None = None, every: int = 1) -> list[Case]:
    """The node cases whose data are all numeric arrays (1,661 in onnx 1.23), in onnx's order.

    `pattern` is a regular expression searched in the name; of those that match, each `every`-th is taken.
    Numeric means one array per graph input and output, of numpy kind b, i, u or f.
    """
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        collected = collect_testcases(None)
    ops = {c.name: _op(c.model) for c in collected}
    found = []
    for c in collected:
        if c.model is None or not c.data_sets or (pattern and not re.search(pattern, c.name)):
            continue
        # Every node case has one data set; a second one would need a second Case.
        inputs, outputs = ([_array(v) for v in side] for side in c.data_sets[0])
        if any(a is None for a in (*inputs, *outputs)):
            continue
        found.append(
            Case(
                c.name,
                ops.get(re.sub(r"_expanded.*$", "", c.name), ops[c.name]),
                c.model.SerializeToString(),
                {v.name: a for v, a in zip(c.model.graph.input, inputs, strict=True) if a is not None},
                {v.name: a for v, a in zip(c.model.graph.output, outputs, strict=True) if a is not None},
                c.rtol,
                c.atol,
            )
        )
    return found[::every]


def _op(model: onnx.ModelProto) -> str:
    nodes = model.graph.node
    return nodes[-1].op_type if nodes else "(empty)"


def _array(value: Any) -> Array | None:
    import onnx

    if isinstance(value, onnx.TensorProto):
        value = onnx.numpy_helper.to_array(value)
    if not isinstance(value, np.ndarray | np.generic) or value.dtype.kind not in "biuf":
        return None
    return np.asarray(value)
