"""Imports onnx_ir without sympy, which it needs for arithmetic on symbolic dimensions only.

Importing sympy takes 0.3 s, a quarter of the time that exporting a small network may take. While onnx_ir is
imported a stand-in takes sympy's place; it imports the real one when something in it is first used.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any


class _Later(types.ModuleType):
    """Stands for a module. Functions asked for during `importing` are calls to come, everything else is real."""

    importing = True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*arguments: Any, **options: Any) -> Any:
            return getattr(importlib.import_module(self.__name__), name)(*arguments, **options)

        return call if self.importing else getattr(importlib.import_module(self.__name__), name)


def import_onnx_ir() -> None:
    """Import onnx_ir, with sympy left for later where neither is imported yet."""
    if "onnx_ir" in sys.modules or "sympy" in sys.modules:
        return
    later = sys.modules["sympy"] = _Later("sympy")
    try:
        importlib.import_module("onnx_ir")
    finally:
        later.importing = False
        if sys.modules.get("sympy") is later:
            del sys.modules["sympy"]
