"""Named arithmetic of a node, which declarations bound in data: `stride.max`, `W.abs_sum`, `kernel.area`.

A quantity is a function of a call (a node through its operator's interface) that returns a number, a string,
a bool or a tuple; None where it is not known statically. A port's quantity is written `PORT.NAME` and is a
function of the value at that port as well. A name that ends in `.*` takes the rest of the name as an
argument: `attr.mode`, `X.dim.-1`.

Plugins add their own with `@quantity(...)` on functions that they hand to `Declaration.load(quantities=...)`.
"""

from __future__ import annotations

from tapeout.compiler.quantities import control, general, ports, windows
from tapeout.compiler.quantities.registry import PORTS, REGISTRY, Measure, Quantity, Vocabulary, quantity

__all__ = [
    "PORTS",
    "REGISTRY",
    "Measure",
    "Quantity",
    "Vocabulary",
    "control",
    "general",
    "ports",
    "quantity",
    "windows",
]
