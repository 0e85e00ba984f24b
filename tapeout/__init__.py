"""tapeout: trained models in, verified artifacts for the hardware that runs them out.

    import tapeout
    result = tapeout.export("model.onnx", target="tflite")
    result.artifact, result.manifest, result.report

Every failure is a `tapeout.TapeoutError` with an `exit_code`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tapeout.api import Export, bench, calibrate, compare, explain, export, inspect, sensitivity, verify
    from tapeout.compiler.errors import TapeoutError

__all__ = [
    "Export",
    "TapeoutError",
    "__version__",
    "bench",
    "calibrate",
    "compare",
    "explain",
    "export",
    "inspect",
    "sensitivity",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "TapeoutError":
        from tapeout.compiler.errors import TapeoutError

        return TapeoutError
    if name == "__version__":
        from importlib.metadata import version

        return version("tapeout")
    if name in __all__:
        from tapeout import api

        return getattr(api, name)
    raise AttributeError(f"module 'tapeout' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
