"""When beats arrive: the first and the last of every tensor, counted from the first beat at the inputs (predicted).

A node can begin when the part of its input that its first output needs is there, and ends when its own work is done or
a last row of windows after its last input, whichever is later. In between both move evenly.
"""

from __future__ import annotations

from dataclasses import replace

from tapeout.targets.fpga import dialect as d
from tapeout.targets.fpga.cost import cycles, products

# Stages of the library's pipelines: window, multiply-accumulate, requantize, and the FIFOs between.
WINDOW, SUMS, CODES = 4, 3, 7


def needed(node: d.Node, x: d.Tensor) -> float:
    """The share of the input that the first output needs."""
    if isinstance(node, d.Dense | d.GlobalAverage):
        return 1.0
    if isinstance(node, d.Conv | d.Depthwise | d.AveragePool | d.MaxPool):
        if node.window.kernel == (1, 1):
            return 1 / x.pixels
        reach = (node.window.kernel[0] - 1) * node.window.dilations[0] + 1 - node.window.pads[0]
        return min(max(reach, 1) / x.shape[0], 1.0)
    return 0.0


def stages(node: d.Node) -> int:
    """Cycles through a node's pipelines."""
    if isinstance(node, d.GlobalAverage):
        return CODES
    if isinstance(node, d.Folded):
        return WINDOW + SUMS + CODES
    return WINDOW + SUMS if isinstance(node, d.MaxPool) else CODES


def parts(node: d.Node) -> int:
    """Into how many parts a node's work falls, of which the last can begin only with the last input."""
    if isinstance(node, d.Dense):
        return 1
    pixelwise = not isinstance(
        node, d.Conv | d.Depthwise | d.AveragePool | d.MaxPool
    ) or node.window.kernel == (1, 1)
    return max(node.output.elements, 2) if pixelwise else node.output.shape[0]


def first_group(node: d.Node, x: d.Tensor) -> int:
    """Cycles of the products of one group of outputs."""
    if isinstance(node, d.Folded) and not isinstance(node, d.GlobalAverage):
        return products(node, x) // node.simd
    return 1


def with_latency(graph: d.Graph) -> d.Graph:
    """The circuit with the latency of its nodes, each fed without pause, and of the whole."""
    tensors, nodes = graph.tensors, []
    arrivals = {p.tensor: (0.0, float(tensors[p.tensor].elements // p.lanes)) for p in graph.input_ports}
    for node in graph.nodes:
        x = tensors[node.inputs[0].tensor]
        beats, share = x.elements / node.inputs[0].lanes, needed(node, x)
        own = stages(node) + first_group(node, x)
        ends = [arrivals[s.tensor] for s in node.inputs]
        first = max(a + share * (b - a) for a, b in ends) + own
        work = node.output.elements // node.lanes if isinstance(node, d.GlobalAverage) else cycles(node, x)
        last = max(first + work, max(b for _, b in ends) + work / parts(node) + own)
        arrivals[node.output.name] = first, last
        nodes.append(replace(node, latency=round(share * beats) + own))
    total = max(arrivals[p.tensor][1] for p in graph.output_ports)
    return replace(graph, nodes=tuple(nodes), latency=round(total))
