"""The road of a model to integers, as one visible tuple."""

from __future__ import annotations

from tapeout.sdk import Pass, Request, standard_passes
from tapeout.targets.fpga import declaration


def passes(request: Request) -> tuple[Pass, ...]:
    """The passes for `request.scheme`, in order: channels last, since streams are."""
    return standard_passes(request, declaration(request.device), channels_last=True)
