"""The one door to the vendor's package, and what is said where it is missing."""

from __future__ import annotations

import functools
import importlib.metadata
from typing import Any

from tapeout.sdk import VendorToolError


def openvino() -> Any:
    """The package `openvino`. Raises VendorToolError where it is not installed or does not load."""
    try:
        import openvino as found
    except ImportError as error:
        raise VendorToolError(
            f"the target 'openvino' needs the package 'openvino', which does not load: {error}",
            hint="pip install 'tapeout[openvino]'",
        ) from error
    return found


@functools.cache
def core() -> Any:
    """The runtime, opened once per process: it keeps the plugins of the devices that were used."""
    return openvino().Core()


@functools.cache
def version() -> str:
    return importlib.metadata.version("openvino")
