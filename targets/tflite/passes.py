"""The road of a float model to TFLite, as one visible tuple."""

from __future__ import annotations

from tapeout.compiler.pipeline import Pass
from tapeout.compiler.target import Request


def passes(request: Request) -> tuple[Pass, ...]:
    """The passes for `request.scheme`, in order."""
    return ()
