"""Keras configurations, read as data before anything is loaded: what is not Keras's own, or carries code, is refused.

Read by tapeout itself and, as a file beside it, by the script `keras_step.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

# Keras's own modules, whose classes a configuration may name.
KERAS_MODULES = frozenset(
    {"keras", "keras.layers", "keras.models", "keras.initializers", "keras.regularizers", "keras.constraints",
     "keras.activations", "keras.optimizers", "keras.losses", "keras.metrics", "keras.dtype_policies",
     "keras.optimizers.schedules", "keras.src.models.functional", "keras.src.models.sequential",
     "keras.src.engine.functional", "keras.src.engine.sequential"}
)  # fmt: skip
# The modules of the operators that a functional model may call without a layer: `x + y`, `keras.ops.mean(x)`. Their
# classes are named in capitals; what else these modules hold are functions and imports.
KERAS_OPERATORS = re.compile(r"keras\.src\.ops\.(core|einops|image|linalg|math|nn|numpy)")
OPERATOR = re.compile(r"[A-Z][A-Za-z0-9]*")
# Layers that carry code, load other files, or work on text.
UNSAFE = {
    "Lambda": "a Lambda layer holds Python code",
    "TorchModuleWrapper": "it holds a pickled torch module",
    "TFSMLayer": "it loads another SavedModel",
    "JaxLayer": "it holds Python code",
    "FlaxLayer": "it holds Python code",
    "StringLookup": "it works on text",
    "IntegerLookup": "it reads a vocabulary",
    "TextVectorization": "it works on text",
    "HashedCrossing": "it works on text",
    "Hashing": "it works on text",
}
# A stored array may not be larger than this many times what is stored of it.
EXPANSION = 2000


class Refused(Exception):
    """What cannot be converted; `kind` is the failure's class, as `isolated.py` lists them."""

    def __init__(self, kind: str, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.kind, self.message, self.hint = kind, message, hint


def check_config(config: Any) -> None:
    """Raise Refused where a Keras configuration names what is not Keras's own, or what carries code."""
    unsafe: dict[str, str] = {}
    custom: dict[str, str] = {}
    for made in _objects(config):
        name, module = str(made.get("class_name")), made.get("module")
        inner = made.get("config")
        label = str(inner.get("name", name)) if isinstance(inner, dict) else name
        bare = name.rpartition(">")[2]
        if bare in UNSAFE:
            unsafe[label] = f"{bare} '{label}': {UNSAFE[bare]}"
        elif name in ("function", "__lambda__", "__tensor__", "__numpy__") and name in (
            "function",
            "__lambda__",
        ):
            custom[label] = f"a Python function ({str(inner)[:60]})"
        elif (
            ">" in name
            or made.get("registered_name") not in (None, name)
            or (module is not None and not _own(str(module), name))
        ):
            custom[label] = f"{name} '{label}'" + (f" of {module}" if module else "")
    if unsafe:
        raise Refused(
            "unsupported",
            "the model has layers that cannot be read safely: " + "; ".join(list(unsafe.values())[:10]),
            "write them with Keras's own layers (keras.ops in a functional model), or leave them to the application",
        )
    if custom:
        raise Refused(
            "unsupported",
            "the model has custom layers or functions, whose code is not in the file: "
            + "; ".join(list(custom.values())[:10]),
            "save it as a SavedModel where its code is at hand: model.export('folder')",
        )


def _own(module: str, name: str) -> bool:
    """Whether the class `name` of `module` is Keras's own, and one that models are made of."""
    if KERAS_OPERATORS.fullmatch(module):
        return OPERATOR.fullmatch(name) is not None
    return module in KERAS_MODULES


def _objects(config: Any) -> Iterator[Mapping[str, Any]]:
    """Every serialized object inside a configuration."""
    pending: list[tuple[Any, int]] = [(config, 0)]
    while pending:
        found, depth = pending.pop()
        if depth > 200:
            raise Refused("resource", "the model's configuration is nested more than 200 deep")
        if isinstance(found, dict):
            if "class_name" in found:
                yield found
            pending.extend((v, depth + 1) for v in found.values())
        elif isinstance(found, list):
            pending.extend((v, depth + 1) for v in found)
