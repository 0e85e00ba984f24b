"""What a device holds, from the facts of its declaration."""

from __future__ import annotations

import functools
from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """dsp: hard multipliers; bram: memories of 18 kbit; lut: lookup tables, all as the data sheet counts them.

    packing: products of 8 by 8 bits that one multiplier computes at once where they share a factor.
    wide, narrow: signed widths of a multiplier's operands. mhz: the clock that reports assume; nothing proves it.
    """

    name: str
    family: str
    part: str
    dsp: int
    bram: int
    lut: int
    packing: int
    wide: int
    narrow: int
    mhz: int


@functools.cache
def device(name: str) -> Device:
    """The device `name`, one of the target's."""
    from tapeout.targets.fpga import declaration

    return Device(name, **declaration(name).facts)
