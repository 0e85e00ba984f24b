"""The road of a model to integers, as one visible tuple."""

from __future__ import annotations

from tapeout.sdk import Pass, Request, standard_passes
from tapeout.targets.fpga import declaration

# What the host may finish with is left whole, so that messages name it and `--fallback host` keeps it together.
TAIL = ("Softmax", "LogSoftmax", "Hardmax", "ArgMax", "ArgMin", "TopK")


def passes(request: Request) -> tuple[Pass, ...]:
    """The passes for `request.scheme`, in order: channels last, since streams are."""
    return standard_passes(request, declaration(request.device), keep=TAIL, channels_last=True)
