"""Patterns of zeros as named facts: the weight of which source node holds which pattern ("2:4", "1x4").

A fact is written when a weight is pruned and stays with the model (metadata `tapeout.sparsity`) through quantization
and layout. An emitter that relies on one looks it up by the node and holds the weight to it first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from tapeout.compiler.ir.origin import origin
from tapeout.passes.sparsity.layers import layers
from tapeout.passes.sparsity.pattern import Pattern

Array = np.ndarray[Any, Any]

KEY = "tapeout.sparsity"
# Of the zeros of a weight in blocks at least this share lies in blocks of zeros: a kept element may be zero too.
WHOLE = 0.9


def facts(model: ir.Model) -> dict[str, str]:
    """The patterns of `model` by source node."""
    found: dict[str, str] = json.loads(model.metadata_props.get(KEY, "{}"))
    return found


def fact(model: ir.Model, node: ir.Node) -> str | None:
    """The pattern of the weight of `node`; None where nothing is said of it."""
    known = facts(model)
    return next((known[name] for name in origin(node) if name in known), None)


def state(model: ir.Model, patterns: Mapping[str, Pattern]) -> None:
    """Write down the patterns, by layer name, that the layers of `model` really hold."""
    said = facts(model)
    for layer in layers(model.graph):
        pattern = patterns.get(layer.name)
        name = name_of(pattern) if pattern is not None else None
        if name is not None and all(holds(name, weight) for weight in layer.weight()):
            said[(origin(layer.node) or (layer.name,))[0]] = name
    if said:
        model.metadata_props[KEY] = json.dumps(said)


def name_of(pattern: Pattern) -> str | None:
    """ "2:4" or "1x4"; None where any weight may be zero."""
    if pattern.of:
        return f"{pattern.keep}:{pattern.of}"
    return f"{pattern.block[0]}x{pattern.block[1]}" if pattern.block != (1, 1) else None


def holds(name: str, weight: Array) -> bool:
    """Whether `weight` [outputs, inputs], real or codes whose zero is 0, has the pattern: at most N of each M inputs
    are not zero, or its zeros lie in whole blocks."""
    found = re.fullmatch(r"(\d+)([:x])(\d+)", name)
    if found is None:
        raise ValueError(f"'{name}' is no pattern such as 2:4 or 1x4")
    first, second = int(found[1]), int(found[3])
    outputs, inputs = weight.shape
    kept = weight != 0
    if found[2] == ":":
        return inputs % second == 0 and bool((kept.reshape(outputs, -1, second).sum(-1) <= first).all())
    if outputs % first or inputs % second:
        return False
    blocks = ~kept.reshape(outputs // first, first, inputs // second, second).any((1, 3))
    zeros = kept.size - int(kept.sum())
    return bool(zeros > 0 and blocks.sum() * first * second >= WHOLE * zeros)
