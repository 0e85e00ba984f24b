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

_HEAD = f'<ir_version: 10, opset_import: ["" : {OPSET}, "{DOMAIN}" : 1]>\nagraph () => () {{}}\n'

# Every function that a pass or a target has declared: these have one body each in the whole process.
DECLARED: dict[ir.OperatorIdentifier, ir.Function] = {}

_OWN = "tapeout.functions"


def own(model: ir.Model) -> None:
    """Let `of` find the functions that `model` has brought: another model's of the same name may say otherwise."""
    for graph in (model.graph, *model.graph.subgraphs()):
        graph.meta[_OWN] = model.functions


def of(node: ir.Node) -> ir.Function | None:
    """The function that `node` calls: its model's, else the one that is declared; None where neither is known."""
    brought = {} if node.graph is None else node.graph.meta.get(_OWN, {})
    found: ir.Function | None = brought.get(node.op_identifier())
    return found if found is not None else DECLARED.get(node.op_identifier())


@functools.cache
def _parsed(text: str) -> ir.Function:
    (function,) = ir.from_onnx_text(_HEAD + text).functions.values()
    return function


def declare(model: ir.Model, text: str) -> ir.Function:
    """Add the function written in `text` (ONNX's text syntax, from `<domain: ...>` to `}`) to `model`, once."""
    return add(model, _parsed(text))


def parsed(text: str) -> list[ir.Function]:
    """Every function written in `text`. Raises ValueError where that is not ONNX's text syntax."""
    try:
        return list(ir.from_onnx_text(_HEAD + text).functions.values())
    except Exception as error:
        raise ValueError(str(error)) from error


def add(model: ir.Model, function: ir.Function) -> ir.Function:
    """Add `function` to `model`, once; the one that the model then has."""
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
