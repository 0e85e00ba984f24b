"""What a node costs: cycles of an inference, multipliers, memories, lookup tables, as the Verilog library spends them.

Cycles follow from the library's pipelines and are exact but for a few at the start of each row of windows.
Multipliers and memories follow from widths and depths. Lookup tables are a fit to what yosys 0.23 counts for single
modules of xc7; they are estimates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tapeout.targets.fpga import dialect as d
from tapeout.targets.fpga.devices import Device
from tapeout.targets.fpga.layout import Scaling, geometry

# Shapes of a memory of 18 kbit: bits of a word, words.
SHAPES = ((36, 512), (18, 1024), (9, 2048), (4, 4096), (2, 8192), (1, 16384))
BITS = 8  # of an element
# A FIFO of more cells than this, of 3 bits by 64 words in four lookup tables, lies in a memory.
CELLS = 16
# What is left of lookup tables where synthesis looks across modules.
ACROSS = 0.9
# A table of constants of more words than this lies in a memory.
WORDS = 512


@dataclass(frozen=True)
class Cost:
    """What one node takes of a device, and its cycles of one inference once the pipeline is full."""

    cycles: int = 0
    dsp: int = 0
    bram: int = 0
    lut: int = 0

    def __add__(self, other: Cost) -> Cost:
        """Both beside one another."""
        cycles = max(self.cycles, other.cycles)
        return Cost(cycles, self.dsp + other.dsp, self.bram + other.bram, self.lut + other.lut)


def cycles(node: d.Node, x: d.Tensor) -> int:
    """Cycles between the starts of two inferences, were the node alone and fed without pause."""
    beats_in = max(-(-x.elements // s.lanes) for s in node.inputs)
    beats_out = node.output.elements // node.lanes
    if isinstance(node, d.GlobalAverage):
        return max(beats_in, beats_out)
    if isinstance(node, d.Folded):
        group = max(products(node, x) // node.simd, node.pe // node.lanes)
        groups = node.output.pixels * (node.output.channels // node.pe)
        return max(groups * group, beats_in)
    if isinstance(node, d.MaxPool):
        return max(beats_out * math.prod(node.window.kernel), beats_in)
    return max(beats_in, beats_out)


def products(node: d.Folded, x: d.Tensor) -> int:
    """Products of one output."""
    if isinstance(node, d.Conv):
        return math.prod(node.weights.shape[1:])
    if isinstance(node, d.Dense):
        return x.elements
    if isinstance(node, d.GlobalAverage):
        return x.pixels
    assert isinstance(node, d.Depthwise | d.AveragePool)
    return math.prod(node.window.kernel)


def cost(node: d.Node, x: d.Tensor, device: Device) -> Cost:
    """What a node with its window, its memories, its width converters and the FIFOs of its inputs takes."""
    found = _modules(node, x, device)
    return replace(found, lut=round(found.lut * ACROSS))


def _modules(node: d.Node, x: d.Tensor, device: Device) -> Cost:
    found = Cost(cycles(node, x))
    for s in node.inputs:
        found += fifo(s.lanes * BITS, s.depth)
    shape = geometry(node, x)
    if shape is not None:
        single = shape.height == shape.width == 1  # nothing to count but beats
        found += Cost(bram=memory(node.inputs[0].lanes * BITS, shape.beats), lut=145 if single else 220)
    if isinstance(node, d.Folded):
        return found + _folded(node, x, device)
    if isinstance(node, d.Add):
        each = sum(multipliers(BITS, m.bit_length(), device) for m in node.multipliers)
        return found + Cost(dsp=node.lanes * each, lut=node.lanes * 20 + fifo(node.lanes * BITS, 8).lut)
    if isinstance(node, d.Lookup):
        return found + Cost(lut=node.lanes * 32)
    return found + Cost(lut=node.lanes * 16)


def _folded(node: d.Folded, x: d.Tensor, device: Device) -> Cost:
    folds = node.output.channels // node.pe
    total = requantizers(node, device)
    if node.pe != node.lanes:  # finished sums wait for the requantizers
        total += Cost(lut=node.pe * node.accumulator)
    if isinstance(node, d.Conv | d.Dense):
        packed = device.packing > 1 and node.pe > 1
        used = -(-node.pe // 2) * node.simd if packed else node.pe * node.simd
        depth, width = folds * products(node, x) // node.simd, node.pe * node.simd * BITS
        # Two products in one come apart in logic, and are added there; single ones are added in the multipliers.
        logic = node.pe * (30 * node.simd + 10) if packed else node.pe * (node.simd - 1) * 15
    elif isinstance(node, d.Depthwise):
        used, depth, width, logic = node.pe, folds * products(node, x), node.pe * BITS, 0
    else:
        return total + Cost(lut=node.pe * node.accumulator * 2 + 20)
    return total + Cost(dsp=used, bram=memory(width, depth), lut=logic + 20)


def requantizers(node: d.Folded, device: Device) -> Cost:
    """The requantizers of a node: `lanes` of them, each with its part of a memory of bias, multiplier and offset."""
    form, scaling = node.requantize, Scaling(node.bias, node.requantize, node.accumulator)
    groups, bits = node.output.channels // node.lanes, sum(scaling.widths) * node.lanes
    each = 0 if form.ties_to_even else multipliers(node.accumulator, scaling.widths[1], device)
    stored = memory(bits, groups) if groups > WORDS else 0
    entries = len(form.tables) * 256
    tables = node.lanes * memory(node.accumulator, entries) if entries else 0
    constants = 0 if stored else bits * -(-groups // 64) * 3 // 5  # many of their bits are the same
    logic = constants + node.lanes * 60 + fifo(node.lanes * BITS, 16).lut
    return Cost(dsp=node.lanes * each, bram=stored + tables, lut=logic)


def multipliers(value: int, factor: int, device: Device) -> int:
    """Hard multipliers of a signed number of `value` bits by a positive one of `factor` bits: where it is wider than
    the narrow side of a multiplier, which has a sign too, it is taken in parts (rtl/requantize.v)."""
    if value <= device.narrow and factor < device.wide:
        return 1
    return -(-factor // (device.narrow - 1)) * -(-(value - 1) // (device.wide - 1))


def memory(width: int, depth: int) -> int:
    """Memories of 18 kbit for `depth` words of `width` bits, in the best of their shapes."""
    return min(-(-width // bits) * -(-depth // words) for bits, words in SHAPES)


def fifo(width: int, depth: int) -> Cost:
    """A FIFO in front of a reader: small ones lie in lookup tables."""
    if not depth:
        return Cost()
    if depth <= 32:  # cells of 6 bits by 32 words
        return Cost(lut=(8 if depth <= 2 else 20) + 4 * -(-width // 6))
    cells = -(-width // 3) * -(-depth // 64)
    if cells > CELLS:
        return Cost(bram=memory(width, depth), lut=45)
    return Cost(lut=45 + 4 * cells)
