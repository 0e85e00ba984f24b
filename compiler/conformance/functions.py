"""Where the functions that rows name come from: the declaration's own, and those that the passes make."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from tapeout.compiler import pipeline
from tapeout.compiler.conformance.drafts import build
from tapeout.compiler.conformance.draws import Draws, Wish
from tapeout.compiler.conformance.generated import INVALID
from tapeout.compiler.conformance.makers import MAKERS
from tapeout.compiler.declaration import Declaration
from tapeout.compiler.ir import functions
from tapeout.compiler.schemes import WEIGHTS
from tapeout.compiler.target import Request

if TYPE_CHECKING:
    from tapeout.compiler.target import Target

TRIES = 6  # nodes of each operator that the passes are shown
PRODUCTS = ("MatMul", "Gemm")


def harvest(target: Target, device: str, declaration: Declaration) -> set[str]:
    """Let every function that a row names be known; returns the names of those that stay unknown.

    The passes are shown nodes of the operators that a function is called after, and products, until they have made
    the functions that the rows name.
    """
    for function in declaration.functions.values():
        functions.DECLARED.setdefault(function.identifier(), function)
    unknown = _unknown(declaration)
    plain = "float32" if "float32" in target.schemes else target.schemes[0]
    for op in [op for op in MAKERS if "::" not in op and (op in PRODUCTS or _near(op, unknown))]:
        for number in range(TRIES):
            if not unknown:
                return unknown
            _show(target, Request(plain, device), op, number)
            unknown = _unknown(declaration)
    for scheme in [s for s in target.schemes if s in WEIGHTS]:
        if unknown:
            _show(target, Request(scheme, device), "Gemm", 0)
            unknown = _unknown(declaration)
    return unknown


def _show(target: Target, request: Request, op: str, number: int) -> None:
    """Run the passes on a node of the operator."""
    with contextlib.suppress(*INVALID):
        built = build(MAKERS[op](Wish(Draws([number, 1])), op).constant(1))
        pipeline.run(built.model, target.passes(request))


def _near(op: str, unknown: set[str]) -> bool:
    return any(op in name for name in unknown)


def _unknown(declaration: Declaration) -> set[str]:
    known = {f"{domain}::{name}" for domain, name, _ in functions.DECLARED}
    return {op for op in declaration.operators() if "::" in op} - known
