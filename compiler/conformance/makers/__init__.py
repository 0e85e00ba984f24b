"""One maker for each operator: random valid nodes whose numbers lie within, on, or just outside a row's bounds."""

from __future__ import annotations

from tapeout.compiler.conformance.draws import Maker
from tapeout.compiler.conformance.makers import elementwise, moving, other, windows

MAKERS: dict[str, Maker] = {**elementwise.MAKERS, **moving.MAKERS, **windows.MAKERS, **other.MAKERS}


def maker(op: str) -> Maker:
    """The maker of an operator; where there is none, one that goes by ONNX's schema alone."""
    return MAKERS.get(op, elementwise.generic)
