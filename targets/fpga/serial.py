"""A circuit as a file: JSON that names every class of the dialect, arrays in base64, a digest over all of it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from tapeout.sdk import InvalidModelError
from tapeout.targets.fpga import dialect
from tapeout.targets.fpga.dialect import Graph

SCHEMA = "tapeout.circuit/1"
FILE = "circuit.json"
_CLASSES = {
    name: kind for name, kind in vars(dialect).items() if isinstance(kind, type) and is_dataclass(kind)
}


def dump(graph: Graph) -> bytes:
    """The file of a circuit; the same circuit gives the same bytes."""
    content = _plain(graph)
    head = {"schema": SCHEMA, "sha256": _digest(content)}
    return (json.dumps(head | {"circuit": content}, indent=1, ensure_ascii=False) + "\n").encode()


def load(data: bytes, name: str = FILE) -> Graph:
    """The circuit of a file's content. Raises InvalidModelError where it is none, or not as it was written."""
    try:
        found = json.loads(data)
        schema = found["schema"]
        if schema != SCHEMA:
            raise InvalidModelError(
                f"'{name}' has the schema {schema!r}, expected '{SCHEMA}'", hint="export it again"
            )
        if found["sha256"] != _digest(found["circuit"]):
            raise InvalidModelError(f"'{name}' is damaged: its digest differs", hint="export it again")
        graph = _made(found["circuit"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidModelError(
            f"'{name}' is no circuit: {type(error).__name__}: {error}", hint="export it again"
        ) from error
    if not isinstance(graph, Graph):
        raise InvalidModelError(f"'{name}' holds a {type(graph).__name__}, expected a Graph")
    return graph


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        inner = {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
        return {"is": type(value).__name__} | inner
    if isinstance(value, np.ndarray):
        small = value.astype(value.dtype.newbyteorder("<"))
        text = base64.b64encode(np.ascontiguousarray(small).tobytes()).decode()
        return {"is": "array", "dtype": value.dtype.name, "shape": list(value.shape), "data": text}
    if isinstance(value, Mapping):
        return {"is": "map", "items": [[_plain(k), _plain(v)] for k, v in sorted(value.items())]}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    return value


def _made(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_made(v) for v in value)
    if not isinstance(value, dict):
        return value
    kind = value["is"]
    if kind == "array":
        dtype = np.dtype(value["dtype"]).newbyteorder("<")
        flat = np.frombuffer(base64.b64decode(value["data"]), dtype)
        return flat.reshape(value["shape"]).astype(dtype.newbyteorder("="))
    if kind == "map":
        return {_made(k): _made(v) for k, v in value["items"]}
    return _CLASSES[kind](**{k: _made(v) for k, v in value.items() if k != "is"})
