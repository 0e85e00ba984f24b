"""Model-local functions: operators that ONNX lacks, each specified by a body of plain ONNX.

A function is written once as ONNX text and added to a model when a pass first uses it. Bodies are frozen: the
driver compares their digests after every pass.
"""

from __future__ import annotations

import functools
import hashlib

import onnx_ir as ir

DOMAIN = "tapeout"
OPSET = 25

# Every function that a pass has declared or a model has brought, for shape inference, which sees nodes only.
DECLARED: dict[ir.OperatorIdentifier, ir.Function] = {}


@functools.cache
def _parsed(text: str) -> ir.Function:
    source = f'<ir_version: 10, opset_import: ["" : {OPSET}, "{DOMAIN}" : 1]>\nagraph () => () {{}}\n{text}'
    model = ir.from_onnx_text(source)
    (function,) = model.functions.values()
    return function


def declare(model: ir.Model, text: str) -> ir.Function:
    """Add the function written in `text` (ONNX's text syntax, from `<domain: ...>` to `}`) to `model`, once."""
    function = _parsed(text)
    DECLARED.setdefault(function.identifier(), function)
    known = model.functions.get(function.identifier())
    if known is None:
        known = model.functions[function.identifier()] = function.clone()
        model.graph.opset_imports.setdefault(function.domain, 1)
    return known


def digest(function: ir.Function) -> str:
    """A digest of the body, to notice that a pass has changed what must not change."""
    return hashlib.sha256(
        ir.serde.serialize_function(function).SerializeToString(deterministic=True)
    ).hexdigest()
