"""The road of a model to OpenVINO, as one visible tuple."""

from __future__ import annotations

from tapeout.sdk import CANONICALIZE, FUSION, Decompose, Pass, Request


def passes(request: Request) -> tuple[Pass, ...]:
    """The passes for `request.scheme`, in order."""
    return (*CANONICALIZE, *FUSION, Decompose(kernels(request.device)), *CANONICALIZE)


def kernels(device: str) -> frozenset[str]:
    """The standard operators that are not written out in simpler ones: rows take them."""
    from tapeout.targets.openvino import declaration

    return frozenset(op for op in declaration(device).rows if "::" not in op)
